"""The paper's brain tumours: Task01 of the Decathlon, with the authors' plans, splits and settings.

python train.py configs/brain_tumour.py --data.dataset PATH/TO/Task01_BrainTumour
jaxmamba3d predict runs/brain_tumour --input PATH/TO/Task01_BrainTumour --output test
jaxmamba3d evaluate test PATH/TO/Task01_BrainTumour --protocol brats

Of the 484 cases with labels 460 are in the authors' 5 folds; the other 24 are their test cases, and `predict`
takes those alone. `--data.fold all` trains and scores all folds in turn, `--data.fold 1` another one.

The authors' other networks, each with its own schedule, are named after a colon:

python train.py configs/brain_tumour.py:segmamba --data.dataset PATH/TO/Task01_BrainTumour

| net | epochs | schedule | run folder |
|---|---:|---|---|
| multisegmamba, also without a name | 300 | one_cycle | runs/brain_tumour |
| bisegmamba | 300 | cosine | runs/brain_tumour_bisegmamba |
| segmamba | 1000 | cosine | runs/brain_tumour_segmamba |
| segmambaskip | 1000 | cosine | runs/brain_tumour_segmambaskip |

(`--net.name` alone keeps MultiSegMamba's schedule.) They computed in float16 where this computes in bfloat16,
and augment as nnU-Net does.

Not trained at full size yet: no time and no score to show. A step on one 128x128x128 patch, compiled for a
TPU v5e, takes 13.7 of its 16 GiB: the batch of 2 should fit 2 of them, or one GPU of 40 GB.

Source: LucaLumetti/TamingMambas, nnUNetTrainer{MultiSegMamba,PanSegMamba,SegMamba,SegMambaSkip}.py and their
bases in variants/optimizer/nnUNetTrainerAdam.py; PanSegMamba is BiSegMamba.
"""

from dataclasses import replace
from pathlib import Path

from jaxmamba3d.checks import check_choice
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, OptimConfig, TrainConfig

AUTHORS = Path(__file__).resolve().parent / "authors"
EPOCHS_AND_SCHEDULES = {
    "multisegmamba": (300, "one_cycle"),
    "bisegmamba": (300, "cosine"),
    "segmamba": (1000, "cosine"),
    "segmambaskip": (1000, "cosine"),
}
MULTISEGMAMBA = "multisegmamba"


def authors_files(dataset: str) -> dict[str, str]:
    """The authors' plans and splits of a dataset, for DataConfig."""
    folder = AUTHORS / dataset
    return {"plans": str(folder / "nnUNetPlans.json"), "splits": str(folder / "splits_final.json")}


def published(config: ExperimentConfig, net: str) -> ExperimentConfig:
    """A config that trains one of the authors' networks as they did, in a run folder of its own."""
    check_choice("the net after the colon", net, EPOCHS_AND_SCHEDULES)
    epochs, schedule = EPOCHS_AND_SCHEDULES[net]
    return replace(
        config,
        output=config.output if net == MULTISEGMAMBA else f"{config.output}_{net}",
        net=NetOptions(name=net, dtype="bfloat16", remat=True),
        optim=OptimConfig(learning_rate=3e-4, schedule=schedule),
        train=TrainConfig(epochs=epochs),
    )


def get_config(net: str = MULTISEGMAMBA) -> ExperimentConfig:
    config = ExperimentConfig(
        output="runs/brain_tumour",
        data=DataConfig(
            dataset="Task01_BrainTumour",
            source="http://medicaldecathlon.com/ (Task01_BrainTumour)",
            **authors_files("Dataset001_BrainTumour"),
        ),
    )
    return published(config, net)
