"""ACDC on a laptop's CPU: the authors' plans and splits, a small network and a short training.

python train.py configs/acdc_small.py --data.dataset PATH/TO/ACDC

Fold 0, 128 cases to train on, 32 to score; 2 CPU cores shared with other work, 36 minutes of processor time:

| net | Dice RV | Dice MLV | Dice LVC | mean Dice | mean HD95 (mm) |
|---|---:|---:|---:|---:|---:|
| segmamba | 0.522 | 0.376 | 0.596 | 0.498 | 167 |

The heart is found, but stray voxels are left far away from it; patch and training are small. The settings
were chosen by this fold's training curves.
"""

from dataclasses import replace

import acdc

from jaxmamba3d.config import ExperimentConfig, NetOptions, OptimConfig, PredictConfig, TrainConfig


def get_config() -> ExperimentConfig:
    config = acdc.get_config()
    return replace(
        config,
        output="runs/acdc_small",
        data=replace(config.data, patch_size=(16, 64, 64), foreground_fraction=0.5),
        net=NetOptions(
            name="segmamba",
            features=(4, 16, 32, 64),
            blocks_per_stage=(1, 1, 1, 1),
            decoder_blocks_per_stage=(1, 1, 1),
        ),
        optim=OptimConfig(learning_rate=6e-3, schedule="one_cycle", schedule_unit="step"),
        train=TrainConfig(
            epochs=24,
            steps_per_epoch=50,
            validation_steps=4,
            mirror_axes=(),
            rotate_and_scale=False,
            vary_intensities=False,
        ),
        predict=PredictConfig(tile_step=0.75),
    )
