"""ACDC on a laptop's CPU: the authors' splits, half the resolution within slices, a small network.

python train.py configs/acdc_small.py --data.dataset PATH/TO/ACDC

Fold 0, 128 cases to train on, 32 to score; half an hour on 2 CPU cores shared with other work:

| net | Dice RV | Dice MLV | Dice LVC | mean Dice | mean HD95 (mm) |
|---|---:|---:|---:|---:|---:|
| segmamba | 0.811 | 0.787 | 0.880 | 0.826 | 9.2 |
| its largest components | 0.816 | 0.791 | 0.885 | 0.831 | 6.0 |

Of three settings tried on this fold these are the last. Patches of 64x64 voxels at full resolution left stray
voxels far away from the heart (mean Dice 0.50); half the features of the first stage and 12 epochs gave 0.68.
"""

from dataclasses import replace

import acdc

from jaxmamba3d.config import ExperimentConfig, NetOptions, OptimConfig, TrainConfig


def get_config() -> ExperimentConfig:
    config = acdc.get_config()
    return replace(
        config,
        output="runs/acdc_small",
        # Twice the plans' spacing within slices: a patch then holds the heart and what is around it.
        data=replace(config.data, spacing=(6.35, 3.05, 3.05), patch_size=(14, 80, 80)),
        net=NetOptions(
            name="segmamba",
            features=(8, 16, 32, 64),
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
        predict=replace(config.predict, tile_step=0.75),
    )
