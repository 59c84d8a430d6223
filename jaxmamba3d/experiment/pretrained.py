"""Trainings that start from what another run has learnt."""

import logging
from pathlib import Path

import jax
from flax import nnx

from jaxmamba3d.checks import check_that
from jaxmamba3d.nets import UNet3D
from jaxmamba3d.run import Run, open_run
from jaxmamba3d.training import has_checkpoint, restore_params

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.5
"""Of a net's numbers, that must come from the other run: with fewer, another net was meant."""


def check_source(source: str, net: UNet3D) -> None:
    """Raises where `start_from` would, without reading the parameters; `net` may be abstract."""
    run, _ = _open_fold(source)
    _fitting(net, run.abstract_params(), source)


def start_from(source: str, net: UNet3D) -> None:
    """Gives a net the parameters of a trained fold, where names and shapes agree.

    The others stay as they are: the heads of other classes, the first convolution of other channels.

    Args:
        source: the folder of a run's fold, such as runs/segmamba/fold_0, whose latest checkpoint is taken.
        net: changed in place.

    Raises:
        FileNotFoundError: there is no such run, or no checkpoint of the fold.
        ValueError: too few parameters agree, or the checkpoint is damaged.
    """
    run, fold = _open_fold(source)
    theirs = restore_params(run.checkpoints(fold), run.abstract_params())
    fitting = _fitting(net, theirs, source)
    ours = nnx.state(net, nnx.Param)
    nnx.update(net, jax.tree_util.tree_map_with_path(lambda path, x: fitting.get(_name(path), x), ours))
    fresh = [name for name in _named(ours) if name not in fitting]
    left = f"; fresh: {', '.join(fresh)}" if fresh else ""
    logger.info("starting from %d parameters of %s%s", len(fitting), source, left)


def _open_fold(source: str) -> tuple[Run, int]:
    folder = Path(source)
    number = folder.name.removeprefix("fold_")
    check_that(number.isdigit(), "train.start_from", "a fold's folder, such as runs/segmamba/fold_0", source)
    run = open_run(folder.parent)
    if not has_checkpoint(run.checkpoints(int(number))):
        raise FileNotFoundError(f"{folder}: no finished checkpoint to start from; train this fold first")
    return run, int(number)


def _fitting(net: UNet3D, theirs: nnx.State, source: str) -> dict[str, jax.Array]:
    """Those of the parameters that the net has too."""
    ours = _named(nnx.state(net, nnx.Param))
    fitting = {
        name: value
        for name, value in _named(theirs).items()
        if name in ours and ours[name].shape == value.shape
    }
    share = sum(x.size for x in fitting.values()) / sum(x.size for x in ours.values())
    wanted = "a fold of a net like this one"
    check_that(
        share >= LEAST_SHARE, "train.start_from", wanted, f"{source}, which has {share:.0%} of its parameters"
    )
    return fitting


def _named(state: nnx.State) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
