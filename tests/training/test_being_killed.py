"""A training that is killed, at any moment and however often, ends as one that never was, bit for bit."""

import random
import signal

import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_datasets import write_nnunet
from training_programs import Program, epochs_of, wait_for, write_config

from jaxmamba3d.command import TRY_AGAIN

TRAINING = {
    "batch_size": 2,
    "epochs": 3,
    "steps_per_epoch": 12,
    "vary_intensities": True,
    "rotate_and_scale": True,
}


def state_of(run):
    """All that the checkpoints hold: name -> array, and what they say of the place in the data."""
    found = {}
    for which in ("latest", "best"):
        with ocp.CheckpointManager(run / "fold_0" / "checkpoints" / which) as manager:
            step = manager.latest_step()
            parts = ("params", "optimizer") if which == "latest" else ("params",)
            arguments = dict.fromkeys(parts, ocp.args.StandardRestore()) | {"meta": ocp.args.JsonRestore()}
            restored = manager.restore(step, args=ocp.args.Composite(**arguments))
        found |= {f"{which} {part} {name}": x for part in parts for name, x in restored[part].items()}
        meta = restored["meta"]
        told = [meta[key] for key in ("epoch", "best_score", "best_step")]
        found[f"{which} place"] = [step, *told, str(meta["iterator"])]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    write_nnunet(folder / "Dataset001_Small", channels=2)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder):
    """The run that nobody disturbs."""
    config = write_config(folder / "unbroken", folder / "Dataset001_Small", **TRAINING)
    code, output = Program(config, devices=2).finish()
    assert code == 0, output
    return folder / "unbroken" / "run"


def begin(folder, name):
    return write_config(folder / name, folder / "Dataset001_Small", **TRAINING), folder / name / "run"


def assert_same(run, unbroken):
    rows = epochs_of(unbroken)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert epochs_of(run) == rows
    found, expected = state_of(run), state_of(unbroken)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = found[name] == value if isinstance(value, list) else np.array_equal(found[name], value)
        assert same, name
    assert not list(run.rglob("*tmp*")), "what was half-written is gone"


def test_sigterm_saves_and_asks_to_be_started_again(folder, unbroken):
    config, run = begin(folder, "terminated")
    program = Program(config, devices=2)
    table = run / "fold_0" / "metrics.csv"
    wait_for(table.is_file, program)
    program.process.send_signal(signal.SIGTERM)
    code, output = program.finish()
    assert code == TRY_AGAIN, output
    assert "stopped by SIGTERM after" in output
    rows = epochs_of(run)
    assert 1 <= len(rows) < 3
    code, output = Program(config, devices=2).finish()
    assert code == 0, output
    assert "resuming after" in output
    assert_same(run, unbroken)


def test_killed_while_a_checkpoint_is_written(folder, unbroken):
    config, run = begin(folder, "while_writing")
    for which in ("latest", "best", "latest"):
        program = Program(config, devices=2)
        steps = run / "fold_0" / "checkpoints" / which

        def half_written(steps=steps):
            return steps.is_dir() and any(not path.name.isdigit() for path in steps.iterdir())

        while half_written():  # what the last kill left is cleared when the run begins
            assert program.process.poll() is None, program.output()
        wait_for(half_written, program)
        program.process.kill()
        assert program.finish()[0] == -signal.SIGKILL
    code, output = Program(config, devices=2).finish()
    assert code == 0, output
    assert_same(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(folder, unbroken, seed):
    config, run = begin(folder, f"random_{seed}")
    moments = random.Random(seed)
    kills = 0
    while True:
        program = Program(config, devices=2)
        # Too short to get to the end at first, then a little longer each time.
        code, output = program.finish(moments.uniform(1, 4) + kills)
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
        kills += 1
    assert kills > 0
    assert_same(run, unbroken)
