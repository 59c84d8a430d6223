"""The paper's brain tumours: Task01 of the Decathlon, with the authors' plans, splits and settings.

python train.py configs/brain_tumour.py --data.dataset PATH/TO/Task01_BrainTumour
jaxmamba3d predict runs/brain_tumour --input PATH/TO/Task01_BrainTumour --output test
jaxmamba3d evaluate test PATH/TO/Task01_BrainTumour --protocol brats

Of the 484 cases with labels 460 are in the authors' 5 folds; the other 24 are their test cases, and `predict`
takes those alone. `--data.fold 1` and so on train the other folds.

The settings are those of the authors' MultiSegMamba and, but for the schedule, of their BiSegMamba:
`--net.name bisegmamba --optim.schedule cosine`. Their SegMamba and SegMambaSkip take the cosine too, and keep
nnU-Net's 1000 epochs: `--train.epochs 1000`. They computed in float16 where this computes in bfloat16, and
augment as nnU-Net does.

Not trained at full size yet: no time and no score to show. A step on one 128x128x128 patch, compiled for a
TPU v5e, takes 13.3 of its 16 GiB: the batch of 2 should fit 2 of them, or one GPU of 40 GB.

Source: LucaLumetti/TamingMambas, nnUNetTrainerMultiSegMamba.py, nnUNetTrainerPanSegMamba.py (BiSegMamba).
"""

from pathlib import Path

from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, OptimConfig, TrainConfig

AUTHORS = Path(__file__).resolve().parent / "authors"


def authors_files(dataset: str) -> dict[str, str]:
    """The authors' plans and splits of a dataset, for DataConfig."""
    folder = AUTHORS / dataset
    return {"plans": str(folder / "nnUNetPlans.json"), "splits": str(folder / "splits_final.json")}


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        output="runs/brain_tumour",
        data=DataConfig(
            dataset="Task01_BrainTumour",
            source="http://medicaldecathlon.com/ (Task01_BrainTumour)",
            **authors_files("Dataset001_BrainTumour"),
        ),
        net=NetOptions(name="multisegmamba", dtype="bfloat16", remat=True),
        optim=OptimConfig(learning_rate=3e-4, schedule="one_cycle"),
        train=TrainConfig(epochs=300),
    )
