"""Runs of a small net on small data: their configuration, and what they leave."""

import jax
from flax import nnx

from jaxmamba3d.config import (
    DataConfig,
    ExperimentConfig,
    NetOptions,
    OptimConfig,
    PredictConfig,
    TrainConfig,
)
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


def params_of(run, which="latest"):
    template = nnx.state(run.abstract_net(), nnx.Param)
    return jax.tree.leaves(restore_params(run.fold_folder(0) / "checkpoints", template, which))
