"""Runs of a small net on small data: their configuration, and what they leave."""

import dataclasses

import jax

from jaxmamba3d.config import (
    DataConfig,
    ExperimentConfig,
    NetOptions,
    OptimConfig,
    PredictConfig,
    TrainConfig,
)
from jaxmamba3d.files import write_json
from jaxmamba3d.training import restore_params

EPOCHS = 3
TRAINING = {
    "epochs": EPOCHS,
    "steps_per_epoch": 4,
    "validation_steps": 2,
    "rotate_and_scale": False,
    "vary_intensities": False,
}


def small_config(dataset, output, **train) -> ExperimentConfig:
    return ExperimentConfig(
        output=str(output),
        data=DataConfig(str(dataset), patch_size=(8, 8, 8), batch_size=2),
        net=NetOptions("resunet", (4, 8), blocks_per_stage=(1, 1), decoder_blocks_per_stage=(1,)),
        optim=OptimConfig(schedule="constant", learning_rate=1e-2),
        train=TrainConfig(**(TRAINING | train)),
        predict=PredictConfig(mirroring=False, window_batch=2),
    )


def all_folds_config(dataset, folder) -> ExperimentConfig:
    """A short training on each of two folds that validate three of the dataset's cases."""
    names = [f"case_{number}" for number in range(5)]
    splits = [{"train": [n for n in names if n not in val], "val": val} for val in (names[:1], names[1:3])]
    write_json(folder / "splits_final.json", splits)
    config = small_config(dataset, folder / "run", epochs=1, steps_per_epoch=2, validation_steps=1)
    data = dataclasses.replace(config.data, splits=str(folder / "splits_final.json"), fold="all")
    return dataclasses.replace(config, data=data)


def params_of(run, which="latest"):
    template = run.abstract_params()
    return jax.tree.leaves(restore_params(run.fold_folder(0) / "checkpoints", template, which))
