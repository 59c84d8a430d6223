"""The hippocampus of hippocampus.py at full size: nnU-Net's plans and augmentation, for one GPU.

python train.py configs/hippocampus_full.py --data.dataset PATH/TO/Task04_Hippocampus

The patch of 40x56x40 voxels holds a whole volume. `--net.name multisegmamba` and so on train other networks,
`--data.fold all` all five folds. Not trained yet: no time and no score to show.
"""

from dataclasses import replace

import hippocampus

from jaxmamba3d.config import ExperimentConfig, NetOptions, OptimConfig, TrainConfig


def get_config() -> ExperimentConfig:
    config = hippocampus.get_config()
    return replace(
        config,
        output="runs/hippocampus_full",
        data=replace(config.data, patch_size=None, batch_size=None, foreground_fraction=0.33),
        net=NetOptions(name="segmamba", dtype="bfloat16"),
        optim=OptimConfig(learning_rate=3e-4, schedule="one_cycle"),
        train=TrainConfig(epochs=100),
    )
