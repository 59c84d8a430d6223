"""Medical Segmentation Decathlon, Task04: real MRI, on a laptop's CPU.

python train.py configs/hippocampus.py --data.dataset PATH/TO/Task04_Hippocampus

Fold 0 of 200 cases, 2 CPU cores, from the command to the scores of the 40 validation cases:

| net | minutes | Dice anterior | Dice posterior | mean Dice | mean HD95 (mm) |
|---|---:|---:|---:|---:|---:|
| segmamba | 10 | 0.871 | 0.861 | 0.866 | 1.49 |
| resunet (--net.name resunet) | 6 | 0.873 | 0.864 | 0.868 | 1.63 |
"""

from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, OptimConfig, TrainConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        output="runs/hippocampus",
        data=DataConfig(
            dataset="Task04_Hippocampus",
            source="http://medicaldecathlon.com/ (Task04_Hippocampus)",
            patch_size=(32, 40, 32),
            batch_size=2,
            foreground_fraction=0.5,
        ),
        net=NetOptions(
            name="segmamba",
            features=(8, 16, 32, 64),
            blocks_per_stage=(1, 1, 1, 1),
            decoder_blocks_per_stage=(1, 1, 1),
        ),
        optim=OptimConfig(learning_rate=3e-3, schedule="one_cycle", schedule_unit="step"),
        # Augmentation pays in long trainings; in this one it only slows learning down.
        train=TrainConfig(
            epochs=20,
            steps_per_epoch=75,
            validation_steps=10,
            mirror_axes=(),
            rotate_and_scale=False,
            vary_intensities=False,
        ),
    )
