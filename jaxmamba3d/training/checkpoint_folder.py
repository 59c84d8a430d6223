"""What lies in a folder of checkpoints: how far a training has come, and parameters."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxmamba3d.checks import check_that
from jaxmamba3d.files import load_json
from jaxmamba3d.training.epoch import EpochProgress

CHECKPOINTS = "checkpoints"
"""Their folder in that of a fold."""

DAMAGES = "OUT_OF_RANGE|DATA_LOSS|NOT_FOUND|FAILED_PRECONDITION|not found in the checkpoint|is not JSON"
"""In errors of files that are not whole."""


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


def has_checkpoint(folder: Path, which: str = "latest") -> bool:
    """Whether a finished checkpoint lies in a folder of checkpoints."""
    return bool(_finished_steps(folder / which))


def is_imported(folder: Path) -> bool:
    """Whether the latest checkpoint in a folder of checkpoints was trained elsewhere; see `save_params`."""
    return has_checkpoint(folder) and not any((newest(folder) / x).exists() for x in ("meta", "optimizer"))


def read_saved(folder: Path) -> Saved | None:
    """What the latest checkpoint in a folder of checkpoints says of itself; None if there is none.

    Raises:
        ValueError: it is damaged, or no training's but imported.
    """
    if not has_checkpoint(folder):
        return None
    latest = newest(folder)
    check_that(not is_imported(folder), str(latest), "of a training that can be resumed", "imported weights")
    with damage_named(latest, remedy_for(latest)):
        meta = load_json(latest / "meta" / "metadata", "how far a training has come")
        identity, meta["so_far"] = meta.pop("identity"), EpochProgress(**meta["so_far"])
        return Saved(int(latest.name), identity, Position(**meta))


def newest(folder: Path, which: str = "latest") -> Path:
    """The finished checkpoint of the last step in a folder that has one."""
    return folder / which / str(_finished_steps(folder / which)[-1])


def _finished_steps(folder: Path) -> list[int]:
    """In ascending order; unfinished ones have other names."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def save_params(folder: Path, params: Any) -> None:
    """Writes parameters that were trained elsewhere as the latest checkpoint, for `restore_params`.

    Args:
        folder: of checkpoints; must not hold any.
        params: the parameters of a net.
    """
    with ocp.CheckpointManager(folder.absolute() / "latest") as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.StandardSave(named_leaves(params))))


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
        step = newest(folder, which)
        try:
            return _restore_params(step.absolute(), template)
        except ValueError:
            if has_checkpoint(folder, which) and step == newest(folder, which):
                raise


def _restore_params(checkpoint: Path, template: Any) -> Any:
    # Of several processes each reads by itself, so that none waits for another.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
    named = damage_named(checkpoint, "train this fold again")
    with ocp.CheckpointManager(checkpoint.parent, options=options) as manager, named:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_leaves(template, here)))
        return from_named_leaves(template, manager.restore(int(checkpoint.name), args=args)["params"])


def check_path(folder: Path) -> None:
    """Raises ValueError unless Orbax finds checkpoints below a folder: it takes brackets for a pattern."""
    path = folder.resolve()
    check_that(
        "[" not in str(path), "output", "a path without [, behind which checkpoints are not found again", path
    )


@contextlib.contextmanager
def damage_named(checkpoint: Path, remedy: str) -> Iterator[None]:
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


def remedy_for(checkpoint: Path) -> str:
    """What a training can do about a damaged checkpoint."""
    older = _finished_steps(checkpoint.parent)[:-1]
    return f"remove it to {f'resume from that of step {older[-1]}' if older else 'train without it'}"


def named_leaves(tree: Any) -> dict[str, jax.Array]:
    """A flat dictionary with readable names: independent of how flax and optax nest their states."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def abstract_leaves(
    tree: Any, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What Orbax restores: shapes, dtypes and placement, that of the leaves unless one is given."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or leaf.sharding)
        for name, leaf in named_leaves(tree).items()
    }


def from_named_leaves(template: Any, leaves: dict[str, jax.Array]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in named_leaves(template)])
