"""The training of an experiment's fold."""

from collections.abc import Sequence

import jax

from jaxmamba3d.data import Workspace
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.run import Run
from jaxmamba3d.training import train_fold


def train(run: Run, workspace: Workspace) -> None:
    """Trains the config's fold, or goes on where it stopped."""
    data, train_config = run.config.data, run.config.train
    split = workspace.split(data.fold)

    def batches(names: Sequence[str], seed: int):
        return training_batches(
            workspace.cases_folder(data.configuration),
            names,
            patch_size=run.configuration.patch_size,
            batch_size=run.configuration.batch_size,
            foreground_fraction=data.foreground_fraction,
            seed=seed,
            threads=data.read_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    identity = {
        "net": run.net.architecture(),
        **run.labels.to_json(),
        "patch_size": run.configuration.patch_size,
        "batch_size": run.configuration.batch_size,
        "training cases": sorted(split["train"]),
    }
    train_fold(
        run.build_net(),
        run.config,
        batch_size=run.configuration.batch_size,
        labels=run.labels,
        batch_dice=run.configuration.batch_dice,
        training_batches=batches(split["train"], train_config.seed),
        validation_batches=lambda: batches(split["val"], train_config.seed + 1),
        folder=run.fold_folder(data.fold),
        identity=identity,
    )
