"""The training of an experiment's fold."""

from collections.abc import Sequence

import jax
from flax import nnx

from jaxmamba3d.data import Workspace
from jaxmamba3d.data.nifti import is_upside_down
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.experiment.prediction import check_window_batch
from jaxmamba3d.experiment.pretrained import start_from
from jaxmamba3d.nets import abstract_net
from jaxmamba3d.run import Run
from jaxmamba3d.training import SETTINGS, train_fold


def train(run: Run, workspace: Workspace, fold: int) -> None:
    """Trains a fold, or resumes where it stopped.

    Raises:
        ValueError: see `start_from`, `check_window_batch` and `train_fold`.
        FloatingPointError, InterruptedTraining: see `train_fold`.
    """
    check_window_batch(run)
    data, train_config = run.config.data, run.config.train
    split = workspace.split(fold)
    plan, task = run.configuration, run.task()

    def batches(names: Sequence[str], seed: int, patch_size: Sequence[int]):
        return training_batches(
            workspace.cases_folder(data.configuration),
            names,
            patch_size=patch_size,
            final_patch_size=plan.patch_size,
            batch_size=plan.batch_size,
            foreground_fraction=data.foreground_fraction,
            seed=seed,
            threads=data.read_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    identity = {
        "net": run.net.architecture(),
        "configuration": data.configuration,
        **run.labels.to_json(),
        "patch_size": plan.patch_size,
        "batch_size": plan.batch_size,
        "training cases": sorted(split["train"]),
        SETTINGS: run.config.decisive_settings(),
    }

    def draw_params() -> nnx.State:
        net = run.build_net()
        if train_config.start_from is not None:
            start_from(train_config.start_from, net)
        return nnx.state(net, nnx.Param)

    train_fold(
        abstract_net(run.net),
        run.config,
        task,
        draw_params=draw_params,
        training_batches=batches(split["train"], train_config.seed, task.augmentation.initial_patch_size),
        validation_batches=lambda: batches(split["val"], train_config.seed + 1, plan.patch_size),
        training_cases=split["train"],
        validation_cases=split["val"],
        spacing=plan.spacing,
        upside_down=_upside_down(run, workspace),
        folder=run.fold_folder(fold),
        identity=identity,
    )


def _upside_down(run: Run, workspace: Workspace) -> bool:
    """Whether pictures of all patches stand on their heads; False where plans change the axes' order."""
    in_order, found = tuple(run.plans.transpose_forward) == (0, 1, 2), workspace.orientations
    return in_order and bool(found) and all(map(is_upside_down, found))
