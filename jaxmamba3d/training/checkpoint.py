"""Checkpoints: parameters, optimizer, input position and what they belong to, written by Orbax."""

import contextlib
import dataclasses
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

from jaxmamba3d.checks import check_that, differences
from jaxmamba3d.files import NO_ROOM, unwritten
from jaxmamba3d.training.epoch import EpochSoFar
from jaxmamba3d.training.steps import TrainState
from jaxmamba3d.wording import memory

CHECKPOINTS = "checkpoints"
"""Their folder in that of a fold."""

SETTINGS = "settings"
"""The part of a checkpoint's identity that a training may be allowed to change on its way."""


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a training has come; JSON-able by `dataclasses.asdict`.

    Args:
        epoch: finished epochs.
        iterator: the training iterator's `get_state()`.
        best_score: highest validation score up to now.
        so_far: the steps of the epoch that has begun.
    """

    epoch: int
    iterator: dict[str, Any]
    best_score: float
    so_far: EpochSoFar = dataclasses.field(default_factory=EpochSoFar)


class _Manager(ocp.CheckpointManager):
    """Asks nobody whether to stop: JAX's preemption service wants all questions in one order, the loop's."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one training run: the latest ones, and the parameters of the best.

    Args:
        folder: made if missing; holds `latest/STEP` and `best/STEP`.
        keep: latest checkpoints that stay.
        identity: JSON-able description of net, data and, as `SETTINGS`, of how it is trained; restoring under
            another one is refused.
        allow_changed_settings: but not if only its settings differ.
    """

    def __init__(
        self, folder: Path, *, keep: int, identity: dict[str, Any], allow_changed_settings: bool = False
    ):
        self._free = {SETTINGS} if allow_changed_settings else set()
        self._folder, self._keep = folder, keep
        self._identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
        self._managers = {
            name: _Manager(
                folder.absolute() / name,
                options=ocp.CheckpointManagerOptions(max_to_keep=count, enable_async_checkpointing=False),
            )
            for name, count in (("latest", keep), ("best", 1))
        }

    def check_room(self, state: TrainState) -> None:
        """Raises ValueError if the disk is too full for what will lie there at once."""
        params, rest = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(part))
            for part in (state.params, (state.optimizer, state.step))
        )
        needed = (self._keep + 1) * (params + rest) + 2 * params  # the oldest goes when the newest is whole
        held = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._folder).free
        choose = "make room, lower train.keep_checkpoints, or choose another output"
        wish = f"on a disk with room for {memory(needed - held)} of checkpoints ({choose})"
        check_that(needed <= held + free, str(self._folder), wish, memory(free))

    def save(self, state: TrainState, position: Position, *, is_best: bool = False) -> None:
        """Writes the state, and its parameters as the best ones if they are.

        Args:
            state: see `TrainState`.
            position: how far the training has come.
            is_best: whether the epoch that ends here has the highest validation score up to now.

        Raises:
            OSError: the disk is full.
        """
        meta = {"identity": self._identity, **dataclasses.asdict(position)}
        step = int(state.step)
        parts = {
            "params": ocp.args.StandardSave(_named_leaves(state.params)),
            "meta": ocp.args.JsonSave(meta),
        }
        rest = ocp.args.StandardSave(_named_leaves((state.optimizer, state.step)))
        with _full_disks_named(self._folder):
            # The latest comes last: a run killed in between does this epoch again, and with it its best.
            if is_best:
                self._managers["best"].save(step, args=ocp.args.Composite(**parts))
            self._managers["latest"].save(step, args=ocp.args.Composite(**parts, optimizer=rest))

    def restore(self, template: TrainState) -> tuple[TrainState, Position] | None:
        """The latest state, laid out and placed as the template, with its position; None if there is none.

        Raises:
            ValueError: the checkpoint is of another net or data (the difference is named), or imported.
        """
        manager = self._managers["latest"]
        latest = manager.latest_step()
        if latest is None:
            return None
        check_can_go_on(self._folder)
        meta = manager.restore(latest, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        self._check_identity(meta.pop("identity"))
        rest = (template.optimizer, template.step)
        restored = manager.restore(
            latest,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(template.params)),
                optimizer=ocp.args.StandardRestore(_abstract(rest)),
            ),
        )
        optimizer, step = _unflatten(rest, restored["optimizer"])
        position = Position(**meta | {"so_far": EpochSoFar(**meta["so_far"])})
        return TrainState(_unflatten(template.params, restored["params"]), optimizer, step), position

    def _check_identity(self, stored: dict[str, Any]) -> None:
        there, here = (
            {key: value for key, value in identity.items() if key not in self._free}
            for identity in (stored, self._identity)
        )
        different = "; ".join(differences(there, here))
        wish = "of this net, data and settings (choose another output folder, or the same settings)"
        check_that(not different, f"checkpoint {self._managers['latest'].directory}", wish, different)

    def close(self) -> None:
        """Ends the managers' threads."""
        for manager in self._managers.values():
            manager.close()


def has_checkpoint(folder: Path, which: str = "latest") -> bool:
    """Whether a finished checkpoint lies in a folder of checkpoints; unfinished ones have other names."""
    steps = folder / which
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


def is_imported(folder: Path) -> bool:
    """Whether the latest checkpoint in a folder of checkpoints was trained elsewhere; see `save_params`."""
    return has_checkpoint(folder) and not (_latest(folder) / "meta").exists()


def check_can_go_on(folder: Path) -> None:
    """Raises ValueError if the latest checkpoint in a folder of checkpoints is no training's."""
    if is_imported(folder):
        check_that(False, str(_latest(folder)), "of a training to go on with", "imported weights")


def _latest(folder: Path) -> Path:
    return max((p for p in (folder / "latest").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


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

    Args:
        folder: the folder given to `Checkpoints`.
        template: parameters of the same net, or their shapes; they come to the default device.
        which: latest | best.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    steps = folder.absolute() / which
    if not has_checkpoint(folder, which):
        raise FileNotFoundError(f"{steps}: no finished checkpoint here; train this fold first")
    # Of several processes each reads by itself, so that none waits for another.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
    with ocp.CheckpointManager(steps, options=options) as manager:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(template, here)))
        return _unflatten(template, manager.restore(manager.latest_step(), args=args)["params"])


@contextlib.contextmanager
def _full_disks_named(folder: Path) -> Iterator[None]:
    """Says in one sentence what Orbax and TensorStore say in pages, the latter by a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        cause = OSError(int(code[1]), os.strerror(int(code[1]))) if code else error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            logging.getLogger("asyncio").disabled = True  # it would follow with a page for every other file
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
