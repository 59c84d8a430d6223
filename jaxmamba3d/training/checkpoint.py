"""Checkpoints: parameters, optimizer, input position and what they belong to, written by Orbax."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxmamba3d.checks import InterruptedTraining, check_that, differences
from jaxmamba3d.files import DISK_FULL, load_json, unwritten
from jaxmamba3d.training.epoch import EpochProgress
from jaxmamba3d.training.processes import is_main_process, main_process_says
from jaxmamba3d.training.steps import TrainState
from jaxmamba3d.wording import memory

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Their folder in that of a fold."""

DAMAGES = "OUT_OF_RANGE|DATA_LOSS|NOT_FOUND|FAILED_PRECONDITION|not found in the checkpoint|is not JSON"
"""In errors of files that are not whole."""

SETTINGS = "settings"
"""The part of a checkpoint's identity that a training may be allowed to change on its way."""


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a training has come; JSON-able by `dataclasses.asdict`.

    Args:
        epoch: finished epochs.
        iterator: the training iterator's `get_state()`.
        best_score: highest moving average of validation scores up to now.
        moving_score: the latest; None before the first epoch is finished.
        best_step: after which the moving average was highest; None before the first epoch is finished.
        so_far: the steps of the epoch that has begun.
    """

    epoch: int
    iterator: dict[str, Any]
    best_score: float
    moving_score: float | None = None
    best_step: int | None = None
    so_far: EpochProgress = dataclasses.field(default_factory=EpochProgress)


class Saved(NamedTuple):
    """What a checkpoint says of itself: the steps taken, what it belongs to, and how far it has come."""

    step: int
    identity: dict[str, Any]
    position: Position


class _Manager(ocp.CheckpointManager):
    """Asks nobody whether to stop: JAX's preemption service wants all questions in one order, the loop's."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one training run: the latest ones, and the parameters of the best.

    They are written while the training goes on; errors in writing are raised by the next call. A context
    manager, which ends when all is written; it must be used by every process, and by one training at a time.

    Args:
        folder: made if missing; holds `latest/STEP` and `best/STEP`.
        keep: latest checkpoints that stay.
        identity: JSON-able description of net, data and, as `SETTINGS`, of how it is trained; restoring under
            another one is refused.
        allow_changed_settings: restore under an identity that differs in `SETTINGS` alone.
    """

    def __init__(
        self, folder: Path, *, keep: int, identity: dict[str, Any], allow_changed_settings: bool = False
    ):
        self._free = {SETTINGS} if allow_changed_settings else set()
        self._folder, self._keep = folder, keep
        self._identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
        if is_main_process():
            _remove_half_written(folder)
        self._managers = {
            name: _Manager(
                folder.absolute() / name,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=count,
                    # Both write at the same time, and processes must not take one's barriers for the other's.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
                ),
            )
            for name, count in (("latest", keep), ("best", 1))
        }

    def check_room(self, state: TrainState) -> None:
        """Raises ValueError if the disk is too full for what will lie there at once."""
        latest, best = _sizes(state)
        needed = (self._keep + 1) * latest + 2 * best  # the oldest goes when the newest is whole
        held = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._folder).free
        choose = "make room, lower train.keep_checkpoints, or choose another output"
        wanted = f"on a disk with room for {memory(needed - held)} of checkpoints ({choose})"
        check_that(needed <= held + free, str(self._folder), wanted, memory(free))

    def save(self, state: TrainState, position: Position) -> None:
        """Writes the state, and its parameters as the best ones if the position says so.

        Args:
            state: see `TrainState`; may be donated to the next step at once.
            position: how far the training has come.

        Raises:
            OSError: the disk is full, or was for the last checkpoint.
        """
        step = int(state.step)
        is_best = position.best_step == step
        with _full_disks_named(self._folder):
            self._wait()  # older checkpoints are deleted when the last are written, and leave their room
            latest, best = _sizes(state)
            if shutil.disk_usage(self._folder).free < latest + is_best * best:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # Orbax would say it in pages
            if is_best:
                self._save_best(state, position)
            rest = ocp.args.StandardSave(_named_leaves((state.optimizer, state.step)))
            self._managers["latest"].save(step, args=self._parts(state, position, optimizer=rest))

    def _save_best(self, state: TrainState, position: Position) -> None:
        """Also where a best one of a later step lies there, from before the training was taken up anew."""
        manager, step = self._managers["best"], int(state.step)
        for later in manager.all_steps():
            if later >= step:
                manager.delete(later)  # else Orbax would keep it, and not save
        manager.save(step, args=self._parts(state, position))

    def _parts(self, state: TrainState, position: Position, **more: ocp.args.CheckpointArgs):
        """What a checkpoint consists of."""
        meta = {"identity": self._identity, **dataclasses.asdict(position)}
        params = ocp.args.StandardSave(_named_leaves(state.params))
        return ocp.args.Composite(params=params, meta=ocp.args.JsonSave(meta), **more)

    def restore(self, template: TrainState) -> tuple[TrainState, Position] | None:
        """The latest state, laid out and placed as the template, with its position; None if there is none.

        Raises:
            ValueError: the checkpoint is of another net or data (the difference is named), imported or
                damaged.
            OSError: the best one must be written again, and the disk is full.
        """
        self._wait()
        saved = read_saved(self._folder)
        if saved is None:
            return None
        self._check_identity(saved.identity)
        rest = (template.optimizer, template.step)
        latest = _latest(self._folder)
        with _damage_named(latest, _without(latest)):
            restored = self._managers["latest"].restore(
                saved.step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(template.params)),
                    optimizer=ocp.args.StandardRestore(_abstract(rest)),
                ),
            )
        optimizer, step = _unflatten(rest, restored["optimizer"])
        state = TrainState(_unflatten(template.params, restored["params"]), optimizer, step)
        whole = has_checkpoint(self._folder, "best") and _latest(self._folder, "best").name == str(saved.step)
        if main_process_says(saved.position.best_step == saved.step and not whole):
            with _full_disks_named(self._folder):  # the process was killed before that was written
                self._save_best(state, saved.position)
                self._wait()
        return state, saved.position

    def _check_identity(self, stored: dict[str, Any]) -> None:
        there, here = (
            {key: value for key, value in identity.items() if key not in self._free}
            for identity in (stored, self._identity)
        )
        different = "; ".join(differences(there, here))
        wanted = "of this net, data and settings (choose another output folder, or the same settings)"
        check_that(not different, f"checkpoint {self._managers['latest'].directory}", wanted, different)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None or issubclass(kind, InterruptedTraining):
                raise
            logger.error("%s", error)  # and what is on its way already says why the training ends

    def close(self) -> None:
        """Returns when all is written.

        Raises:
            OSError: the disk is full.
        """
        with _full_disks_named(self._folder):
            try:
                self._wait()
            finally:
                for manager in self._managers.values():
                    manager.close()

    def _wait(self) -> None:
        for manager in self._managers.values():
            manager.wait_until_finished()


def _remove_half_written(folder: Path) -> None:
    """What a process that was killed, or a disk that was full, has left in a folder of checkpoints."""
    for path in folder.glob("*/*"):
        if path.is_dir() and ocp.utils.is_tmp_checkpoint(path):
            shutil.rmtree(path, ignore_errors=True)


def _sizes(state: TrainState) -> tuple[int, int]:
    """Bytes of a latest and of a best checkpoint."""
    params, rest = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        for part in (state.params, (state.optimizer, state.step))
    )
    return params + rest, params


def has_checkpoint(folder: Path, which: str = "latest") -> bool:
    """Whether a finished checkpoint lies in a folder of checkpoints; unfinished ones have other names."""
    steps = folder / which
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


def is_imported(folder: Path) -> bool:
    """Whether the latest checkpoint in a folder of checkpoints was trained elsewhere; see `save_params`."""
    return has_checkpoint(folder) and not any((_latest(folder) / x).exists() for x in ("meta", "optimizer"))


def read_saved(folder: Path) -> Saved | None:
    """What the latest checkpoint in a folder of checkpoints says of itself; None if there is none.

    Raises:
        ValueError: it is damaged, or no training's but imported.
    """
    if not has_checkpoint(folder):
        return None
    latest = _latest(folder)
    check_that(not is_imported(folder), str(latest), "of a training that can be resumed", "imported weights")
    with _damage_named(latest, _without(latest)):
        meta = load_json(latest / "meta" / "metadata", "how far a training has come")
        identity, meta["so_far"] = meta.pop("identity"), EpochProgress(**meta["so_far"])
        return Saved(int(latest.name), identity, Position(**meta))


def _latest(folder: Path, which: str = "latest") -> Path:
    return max((p for p in (folder / which).iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def save_params(folder: Path, params: Any) -> None:
    """Writes parameters that were trained elsewhere as the latest checkpoint, for `restore_params`.

    Args:
        folder: of checkpoints; must not hold any.
        params: the parameters of a net.
    """
    with ocp.CheckpointManager(folder.absolute() / "latest") as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(_named_leaves(params))))


def restore_params(folder: Path, template: Any, which: str = "latest") -> Any:
    """The parameters of a training run's checkpoint, without its optimizer.

    A training that goes on may replace the checkpoint while it is read: then its successor is read.

    Args:
        folder: the folder given to `Checkpoints`.
        template: parameters of the same net, or their shapes; they come to the default device.
        which: latest | best.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged.
    """
    while True:
        if not has_checkpoint(folder, which):
            steps = folder.absolute() / which
            raise FileNotFoundError(f"{steps}: no finished checkpoint here; train this fold first")
        step = _latest(folder, which)
        try:
            return _restore_params(step.absolute(), template)
        except ValueError:
            if has_checkpoint(folder, which) and step == _latest(folder, which):
                raise


def _restore_params(checkpoint: Path, template: Any) -> Any:
    # Of several processes each reads by itself, so that none waits for another.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
    named = _damage_named(checkpoint, "train this fold again")
    with ocp.CheckpointManager(checkpoint.parent, options=options) as manager, named:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(template, here)))
        return _unflatten(template, manager.restore(int(checkpoint.name), args=args)["params"])


def check_path(folder: Path) -> None:
    """Raises ValueError unless Orbax finds checkpoints below a folder: it takes brackets for a pattern."""
    path = folder.resolve()
    check_that(
        "[" not in str(path), "output", "a path without [, behind which checkpoints are not found again", path
    )


@contextlib.contextmanager
def _damage_named(checkpoint: Path, remedy: str) -> Iterator[None]:
    """Says in one sentence what Orbax and TensorStore say of a file that is not there or not whole."""
    try:
        yield
    except Exception as error:  # Orbax raises this very class
        cause = error.__cause__ or error
        lost = isinstance(cause, FileNotFoundError | json.JSONDecodeError)
        if not lost and not re.search(DAMAGES, str(cause)):
            raise
        reason = " ".join(str(cause).split())[:200]
        raise ValueError(
            f"{checkpoint} must be a whole checkpoint, got {type(cause).__name__}: {reason}; copy it again, "
            f"or {remedy}"
        ) from error


def _without(checkpoint: Path) -> str:
    """What a training can do about a damaged checkpoint."""
    older = sorted(int(p.name) for p in checkpoint.parent.iterdir() if p.name.isdigit())[:-1]
    return f"remove it to {f'resume from that of step {older[-1]}' if older else 'train without it'}"


@contextlib.contextmanager
def _full_disks_named(folder: Path) -> Iterator[None]:
    """Says in one sentence what Orbax and TensorStore say of it, the latter by a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        cause = OSError(int(code[1]), os.strerror(int(code[1]))) if code else error
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            raise unwritten(folder, cause) from error
        raise


def _named_leaves(tree: Any) -> dict[str, jax.Array]:
    """A flat dictionary with readable names: independent of how flax and optax nest their states."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract(tree: Any, sharding: jax.sharding.Sharding | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """What Orbax restores: shapes, dtypes and placement, that of the leaves unless one is given."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or leaf.sharding)
        for name, leaf in _named_leaves(tree).items()
    }


def _unflatten(template: Any, leaves: dict[str, jax.Array]) -> Any:
    return jax.tree.unflatten(
        jax.tree.structure(template), [leaves[name] for name in _named_leaves(template)]
    )
