"""The checkpoints of a training: all that it needs to go on, written by Orbax."""

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
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxmamba3d.checks import InterruptedTraining, check_that, differences
from jaxmamba3d.files import DISK_FULL, unwritten
from jaxmamba3d.training.checkpoint_folder import (
    Position,
    abstract_leaves,
    damage_named,
    from_named_leaves,
    has_checkpoint,
    named_leaves,
    newest,
    read_saved,
    remedy_for,
)
from jaxmamba3d.training.processes import is_main_process, main_process_says
from jaxmamba3d.training.steps import TrainState
from jaxmamba3d.wording import memory

logger = logging.getLogger(__name__)

SETTINGS = "settings"
"""The part of a checkpoint's identity that a training may be allowed to change on its way."""


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
            rest = ocp.args.StandardSave(named_leaves((state.optimizer, state.step)))
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
        params = ocp.args.StandardSave(named_leaves(state.params))
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
        latest = newest(self._folder)
        with damage_named(latest, remedy_for(latest)):
            restored = self._managers["latest"].restore(
                saved.step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract_leaves(template.params)),
                    optimizer=ocp.args.StandardRestore(abstract_leaves(rest)),
                ),
            )
        optimizer, step = from_named_leaves(rest, restored["optimizer"])
        state = TrainState(from_named_leaves(template.params, restored["params"]), optimizer, step)
        whole = has_checkpoint(self._folder, "best") and newest(self._folder, "best").name == str(saved.step)
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
