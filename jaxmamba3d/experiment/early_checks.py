"""What would go wrong late, found before cases are preprocessed."""

import logging
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.data import Workspace, read_label_values
from jaxmamba3d.data.patches import is_forced
from jaxmamba3d.experiment.pretrained import check_source
from jaxmamba3d.files import check_writable
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import abstract_net
from jaxmamba3d.run import Run, describe_run
from jaxmamba3d.training import check_can_go_on, devices_for, has_checkpoint, is_main_process

logger = logging.getLogger(__name__)

FATES = {"train": "the net cannot learn it", "val": "of it, only false voxels can be scored"}
PARTS = {"train": "training", "val": "validation"}


def check_early(config: ExperimentConfig, workspace: Workspace) -> None:
    """Checks what an experiment will need: its net, devices, folders and the classes of its folds.

    Classes that no case of a fold has are a warning, for data is as it is, and so is a batch so small that
    no patch of it need hold foreground.

    Raises:
        FileNotFoundError: there is no run to start from.
        ValueError: the net does not fit the patch, or the batch the devices; the run to start from is of
            another net; the run folder is another run's, is in use, holds imported weights, a damaged
            checkpoint or may not be written; or the training cases of a fold are background alone.
        UnsupportedError: the implementation of the scan that the config names cannot run the net's.
    """
    run = describe_run(config, workspace)
    train = config.train
    batch_size = run.configuration.batch_size
    devices_for(batch_size, accumulate=train.accumulate, shard_parameters=train.shard_parameters)
    _check_forced(batch_size, config.data.foreground_fraction)
    folds = workspace.folds(config.data.fold)
    for fold in folds:
        check_writable(run.fold_folder(fold), "output")
        if is_main_process():  # when the others check, it holds the lock for all of them
            run.check_free(fold)
        check_can_go_on(run.checkpoints(fold), config)
    if train.start_from is not None and not all(has_checkpoint(run.checkpoints(fold)) for fold in folds):
        check_source(train.start_from, abstract_net(run.net))
    if run.net.scan_implementation is not None:
        _check_scans(run)
    names = {name for fold in folds for part in PARTS for name in workspace.split(fold)[part]}
    cases = [case for case in workspace.dataset.cases if case.name in names]
    values = read_label_values(cases, workspace.folder, threads=config.data.processes)
    for fold in folds:
        check_classes(run.labels, fold, workspace.split(fold), values)


def _check_forced(batch_size: int, foreground_fraction: float) -> None:
    """Warns where the share of forced patches, rounded for a batch, is none."""
    if foreground_fraction > 0 and not is_forced(batch_size - 1, batch_size, foreground_fraction):
        logger.warning(
            "data.foreground_fraction %g of data.batch_size %d rounds to no patch: none need hold "
            "foreground; raise one of them",
            foreground_fraction,
            batch_size,
        )


def _check_scans(run: Run) -> None:
    net = abstract_net(run.net)
    patch = jax.ShapeDtypeStruct((1, *run.configuration.patch_size, run.net.in_channels), jnp.float32)
    nnx.eval_shape(lambda net, patch: net(patch), net, patch)


def check_classes(
    labels: Labels,
    fold: int,
    split: Mapping[str, Sequence[str]],
    values: Mapping[str, Collection[int] | None],
) -> None:
    """Warns of each class or region that no training or no validation case of a fold has.

    Args:
        labels: of the dataset.
        fold: its number, for messages.
        split: the case names `train` and `val`.
        values: of each case's label, None where they are not known.

    Raises:
        ValueError: no training case has any of them.
    """
    for part, name in PARTS.items():
        found = [values[case] for case in split[part]]
        held = set().union(*(labels.declared if known is None else known for known in found))
        absent = [structure for structure, entry in labels.structures.items() if held.isdisjoint(entry)]
        if part == "train":
            some = len(absent) < len(labels.structures)
            wanted = f"labelled with at least one of {', '.join(labels.structures)}"
            check_that(some, f"some of the {len(found)} training cases of fold {fold}", wanted, "none")
        for structure in absent:
            what = "fold %d: none of its %d %s cases has %s; %s"
            logger.warning(what, fold, len(found), name, structure, FATES[part])
