"""Checkpoints: parameters, optimizer, input position and what they belong to, written by Orbax."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxmamba3d.checks import check_that
from jaxmamba3d.training.steps import TrainState


class Checkpoints:
    """The checkpoints of one training run: the latest ones and the best.

    Args:
        folder: made if missing; holds `latest/EPOCH` and `best/EPOCH`.
        keep: latest checkpoints that stay.
        identity: JSON-able description of net and data; restoring under another one is refused.
    """

    def __init__(self, folder: Path, *, keep: int, identity: dict[str, Any]):
        self._identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
        self._managers = {
            name: ocp.CheckpointManager(
                folder.absolute() / name,
                options=ocp.CheckpointManagerOptions(max_to_keep=count, enable_async_checkpointing=False),
            )
            for name, count in (("latest", keep), ("best", 1))
        }

    def save(
        self, state: TrainState, *, epoch: int, iterator: dict[str, Any], best_score: float, is_best: bool
    ) -> None:
        """Writes the state after `epoch` finished epochs, and again as the best one if it is.

        Args:
            state: see `TrainState`.
            epoch: finished epochs.
            iterator: the training iterator's `get_state()`.
            best_score: highest validation score up to now.
            is_best: whether this epoch has reached it.
        """
        meta = {"identity": self._identity, "epoch": epoch, "iterator": iterator, "best_score": best_score}
        # The latest comes last: a run killed in between does this epoch again, and with it its best.
        for name in ("best", "latest") if is_best else ("latest",):
            self._managers[name].save(
                epoch,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(_named_leaves(state.params)),
                    optimizer=ocp.args.StandardSave(_named_leaves((state.optimizer, state.step))),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state, laid out and placed as the template, with its meta data; None if there is none.

        Raises:
            ValueError: the checkpoint is of another net or data (the difference is named), or imported.
        """
        manager = self._managers["latest"]
        epoch = manager.latest_step()
        if epoch is None:
            return None
        step = Path(manager.directory) / str(epoch)
        check_that((step / "meta").exists(), str(step), "of a training to go on with", "imported weights")
        meta = manager.restore(epoch, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        _check_identity(Path(manager.directory), meta["identity"], self._identity)
        rest = (template.optimizer, template.step)
        restored = manager.restore(
            epoch,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(template.params)),
                optimizer=ocp.args.StandardRestore(_abstract(rest)),
            ),
        )
        optimizer, step = _unflatten(rest, restored["optimizer"])
        return TrainState(_unflatten(template.params, restored["params"]), optimizer, step), meta

    def close(self) -> None:
        """Ends the managers' threads."""
        for manager in self._managers.values():
            manager.close()


def has_checkpoint(folder: Path, which: str = "latest") -> bool:
    """Whether a finished checkpoint lies in a folder of checkpoints; unfinished ones have other names."""
    steps = folder / which
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


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
    with ocp.CheckpointManager(steps) as manager:
        epoch = manager.latest_step()
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(template, here)))
        return _unflatten(template, manager.restore(epoch, args=args)["params"])


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


def _check_identity(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    found = "; ".join(f"{key}: {stored.get(key)} there, {wanted.get(key)} here" for key in different)
    wish = "of this net and data (choose another output folder, or the same settings)"
    check_that(not different, f"checkpoint {folder}", wish, found)
