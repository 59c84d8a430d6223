"""What lies on the disk of a training, and disks that are too full for it."""

import dataclasses
import errno
import gc
import shutil
from collections import namedtuple
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from jaxmamba3d.checks import InterruptedTraining
from jaxmamba3d.config import OptimConfig, Optimizer, TrainConfig
from jaxmamba3d.training import Checkpoints, check_path, make_optimizer, restore_params
from jaxmamba3d.training.checkpoint_folder import Position
from jaxmamba3d.training.steps import TrainState

Usage = namedtuple("Usage", "total used free")
STATE = TrainState({"w": jnp.arange(8.0)}, {"momentum": jnp.ones(8)}, jnp.int32(5))
POSITION = Position(epoch=1, iterator={}, best_score=0.5)
AS_THE_BEST = dataclasses.replace(POSITION, best_step=5)
LATEST, BEST = 2 * 8 * 4 + 4, 8 * 4
"""Bytes of one checkpoint."""


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, identity={})
    yield checkpoints
    checkpoints.close()


def test_the_best_are_parameters_alone(checkpoints, tmp_path):
    checkpoints.save(STATE, AS_THE_BEST)
    checkpoints.close()
    parts = {which: {p.name for p in (tmp_path / which / "5").iterdir()} for which in ("latest", "best")}
    assert parts["latest"] - parts["best"] == {"optimizer"}
    params = restore_params(tmp_path, STATE.params, "best")
    np.testing.assert_array_equal(params["w"], STATE.params["w"])
    anew = Checkpoints(tmp_path, keep=1, identity={})
    restored, position = anew.restore(STATE)
    anew.close()
    np.testing.assert_array_equal(restored.optimizer["momentum"], 1)
    assert (int(restored.step), position) == (5, AS_THE_BEST)


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizers_state_comes_back(name, checkpoints):
    optimizer = make_optimizer(OptimConfig(optimizer=name), TrainConfig())
    params = {"w": jnp.arange(8.0)}
    begun = optimizer.init(params)
    _, moved = optimizer.update(params, begun, params)
    checkpoints.save(TrainState(params, moved, jnp.int32(1)), POSITION)
    restored = checkpoints.restore(TrainState(params, begun, jnp.int32(0)))[0].optimizer
    assert jax.tree.structure(restored) == jax.tree.structure(moved)
    jax.tree.map(np.testing.assert_array_equal, restored, moved)
    assert optax.tree.norm(optax.tree.sub(restored, begun)) > 1


def test_what_is_written_is_the_state_that_was_given(checkpoints):
    """Though its arrays are donated to the next step at once, and it is written meanwhile."""
    state = TrainState({"w": jnp.arange(2.0**24)}, {"momentum": jnp.ones(8)}, jnp.int32(5))
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints.save(state, POSITION)
    after = overwrite(state.params["w"])
    params = checkpoints.restore(TrainState({"w": after}, state.optimizer, state.step))[0].params
    np.testing.assert_array_equal(params["w"], np.arange(2.0**24, dtype=np.float32))


@pytest.mark.parametrize("left", [[], ["3"]], ids=["never one", "an older one"])
def test_a_best_that_was_not_written_in_time_is_written_at_the_next_start(tmp_path, left):
    """The process was killed when the latest was whole and the best, of the same step, was not."""
    checkpoints = Checkpoints(tmp_path, keep=1, identity={})
    checkpoints.save(STATE, AS_THE_BEST)
    checkpoints.close()
    best = tmp_path / "best"
    for name in left:
        shutil.copytree(best / "5", best / name)
    shutil.rmtree(best / "5")
    anew = Checkpoints(tmp_path, keep=1, identity={})
    anew.restore(STATE)
    anew.close()
    assert [path.name for path in best.iterdir()] == ["5"]
    np.testing.assert_array_equal(restore_params(tmp_path, STATE.params, "best")["w"], STATE.params["w"])


def test_the_best_of_a_training_that_was_taken_up_anew_gives_way(checkpoints, tmp_path):
    """Though it is of a later step."""
    checkpoints.save(STATE, AS_THE_BEST)
    checkpoints.close()
    again = TrainState({"w": jnp.zeros(8)}, STATE.optimizer, jnp.int32(2))
    shutil.rmtree(tmp_path / "latest")
    anew = Checkpoints(tmp_path, keep=1, identity={})
    anew.save(again, dataclasses.replace(POSITION, best_step=2))
    anew.close()
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]
    np.testing.assert_array_equal(restore_params(tmp_path, STATE.params, "best")["w"], 0)


def test_only_the_training_asks_whether_to_stop(checkpoints, monkeypatch):
    """JAX's service takes the latest question for how far a process has come."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    checkpoints.save(STATE, AS_THE_BEST)
    assert asked == []


def test_too_little_room_is_seen_before_it_is_needed(checkpoints, tmp_path, monkeypatch):
    """There must be room for the newest before the one before it goes; what is there already counts."""

    def check_with(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
        checkpoints.check_room(STATE)

    needed = 2 * LATEST + 2 * BEST
    check_with(needed)
    message = r"must be on a disk with room for 0\.0 MiB of checkpoints \(make room, .*\), got 0\.0 MiB"
    with pytest.raises(ValueError, match=message):
        check_with(needed - 1)
    (tmp_path / "latest" / "4").mkdir()
    (tmp_path / "latest" / "4" / "params").write_bytes(bytes(LATEST))
    check_with(needed - LATEST)


def test_a_disk_without_room_is_left_as_it_is(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(LATEST + BEST, 1, LATEST + BEST - 1))
    with pytest.raises(
        OSError, match=rf"{tmp_path} could not be written: No space left on device; make room"
    ):
        checkpoints.save(STATE, AS_THE_BEST)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    checkpoints.save(STATE, POSITION)
    assert checkpoints.restore(STATE)[1] == POSITION


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file [os_error_code='28']"),
    ],
)
def test_a_disk_that_fills_up_is_said_in_a_sentence(checkpoints, tmp_path, monkeypatch, error):
    def save(*_, **__):
        raise error

    checkpoints.save(STATE, POSITION)
    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    reason = r"(Disk quota exceeded|No space left on device)"
    with pytest.raises(OSError, match=rf"{tmp_path} could not be written: {reason}; make room and start aga"):
        checkpoints.save(STATE, AS_THE_BEST)
    assert checkpoints.restore(STATE)[1] == POSITION


@pytest.mark.parametrize(
    ("part", "share"),
    [
        ("meta/metadata", 0.5),
        ("meta", None),
        ("params/_METADATA", 0),
        ("params/manifest.ocdbt", 0.5),
        ("optimizer", None),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # of Orbax, by damage
def test_a_damaged_checkpoint_is_said_with_what_to_do(tmp_path, part, share):
    """And one that is kept beside it goes on."""
    checkpoints = Checkpoints(tmp_path, keep=2, identity={})
    checkpoints.save(STATE, POSITION)
    checkpoints.save(STATE._replace(step=jnp.int32(6)), POSITION)
    checkpoints.close()
    path = tmp_path / "latest" / "6" / part
    if share is None:
        shutil.rmtree(path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    def restore():
        again = Checkpoints(tmp_path, keep=2, identity={})
        try:
            return again.restore(STATE)
        finally:
            again.close()

    message = rf"{tmp_path}/latest/6 must be a whole checkpoint, got \w+: .*; copy it again, or"
    with pytest.raises(ValueError, match=rf"{message} remove it to resume from that of step 5$"):
        restore()
    if part.startswith("params"):
        with pytest.raises(ValueError, match=rf"{message} train this fold again$"):
            restore_params(tmp_path, STATE.params)
    shutil.rmtree(tmp_path / "latest" / "6")
    assert int(restore()[0].step) == 5
    gc.collect()  # here, where that warning is expected


@pytest.mark.parametrize(
    "error", [MemoryError("no more"), PermissionError(13, "locked"), KeyError("unknown")]
)
def test_what_is_no_damage_stays_what_it_is(checkpoints, tmp_path, monkeypatch, error):
    """Nobody is told to remove a good checkpoint."""

    def restore(*_, **__):
        raise error

    checkpoints.save(STATE, POSITION)
    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with pytest.raises(type(error)) as caught:
        checkpoints.restore(STATE)
    assert caught.value is error
    with pytest.raises(type(error)):
        restore_params(tmp_path, STATE.params)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    """A training that goes on writes the next one and removes it."""
    checkpoints = Checkpoints(tmp_path, keep=1, identity={})
    checkpoints.save(STATE, POSITION)
    checkpoints.close()
    restore, read = ocp.CheckpointManager.restore, []

    def restore_slowly(manager, step, **options):
        read.append(step)
        if step == 5:
            shutil.copytree(tmp_path / "latest" / "5", tmp_path / "latest" / "6")
            shutil.rmtree(tmp_path / "latest" / "5" / "params")
        return restore(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore_slowly)
    params = restore_params(tmp_path, STATE.params)
    np.testing.assert_array_equal(params["w"], STATE.params["w"])
    assert read == [5, 6]


def test_what_a_killed_process_had_begun_is_removed(checkpoints, tmp_path):
    """A checkpoint within an epoch, whose step is none of those saved later."""
    checkpoints.save(STATE, POSITION)
    checkpoints.close()
    for which in ("latest", "best"):
        unfinished = tmp_path / which / "7.orbax-checkpoint-tmp"
        unfinished.mkdir()
        (unfinished / "params").write_bytes(bytes(LATEST))
    Checkpoints(tmp_path, keep=1, identity={}).close()
    assert [path.name for path in tmp_path.glob("*/*")] == ["5"]


class TestErrorsInWriting:
    """They come up while the training goes on, and at its end, when all must be written."""

    @pytest.fixture(autouse=True)
    def _full_disk(self, monkeypatch):
        def wait(_):
            raise ValueError("RESOURCE_EXHAUSTED: Error writing local file [os_error_code='28']")

        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", wait)

    def test_are_said_by_the_next_call(self, tmp_path):
        with pytest.raises(OSError, match=rf"{tmp_path} could not be written: No space left on device"):
            Checkpoints(tmp_path, keep=1, identity={}).save(STATE, POSITION)

    def test_are_said_at_the_end(self, tmp_path):
        with (
            pytest.raises(OSError, match="could not be written: No space left on device"),
            Checkpoints(tmp_path, keep=1, identity={}),
        ):
            pass

    def test_are_said_in_place_of_the_interruption_that_promises_a_saved_state(self, tmp_path):
        with (
            pytest.raises(OSError, match="could not be written: No space left on device"),
            Checkpoints(tmp_path, keep=1, identity={}),
        ):
            raise InterruptedTraining("stopped by SIGTERM")

    def test_do_not_hide_why_a_training_ends(self, tmp_path, caplog):
        with pytest.raises(FloatingPointError, match="step 3"), Checkpoints(tmp_path, keep=1, identity={}):
            raise FloatingPointError("step 3 is not finite")
        assert "could not be written: No space left on device" in caplog.text


def test_paths_that_orbax_takes_for_patterns_are_refused(tmp_path, monkeypatch):
    check_path(tmp_path / "lr=1e-3 {ä}")
    with pytest.raises(ValueError, match=r"output must be a path without \[, .*, got .*runs\[1\]"):
        check_path(tmp_path / "runs[1]")
    (tmp_path / "here [2]").mkdir()
    monkeypatch.chdir(tmp_path / "here [2]")
    with pytest.raises(ValueError, match="a path without"):
        check_path(Path("run"))


def test_other_errors_stay_as_they_are(checkpoints, monkeypatch):
    def save(*_, **__):
        raise ValueError("something else")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(ValueError, match=r"^something else$"):
        checkpoints.save(STATE, POSITION)


def test_the_latest_checkpoint_is_the_highest_number_and_one_best_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, identity={})
    for step in (9, 10):
        state = TrainState({"w": jnp.arange(8.0)}, {"m": jnp.ones(8)}, jnp.int32(step))
        checkpoints.save(state, Position(epoch=step, iterator={}, best_score=0.5, best_step=step))
    restored, position = checkpoints.restore(state)
    checkpoints.close()
    assert (int(restored.step), position.epoch) == (10, 10)
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["10"]
