"""Runs made of networks that the authors' code trained."""

from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, TrainConfig
from jaxmamba3d.data import description_from_json, load_plans, load_splits, plans_from_json, read_description
from jaxmamba3d.nets import read_trainer, read_weights
from jaxmamba3d.run import Run, import_weights


def import_checkpoint(
    file: str | Path,
    output: str | Path,
    *,
    net: str = "segmamba",
    plans: str | Path | None = None,
    dataset_json: str | Path | None = None,
    configuration: str | None = None,
    fold: int | None = None,
    splits: str | Path | None = None,
) -> Run:
    """Makes a run folder, ready to predict, of a checkpoint of the authors' code.

    What is None is what the checkpoint says, as far as it is one of nnU-Net's trainer; so are the axes along
    which it may be mirrored.

    Args:
        file: see `read_weights`.
        output: the run folder.
        net: the network's name.
        plans: its nnUNetPlans.json.
        dataset_json: the dataset.json of its data.
        configuration: of the plans; 3d_fullres where the checkpoint does not say.
        fold: its number in the run; 0 where the checkpoint does not say, or was trained on all cases.
        splits: the splits_final.json that it was trained on; None: not known.

    Raises:
        FileNotFoundError, ValueError, FileExistsError: see `read_weights`, `load_plans`, `read_description`,
            `load_splits` and `import_weights`; or the checkpoint does not hold what was not given.
    """
    file = Path(file)
    trainer = read_trainer(file) if file.suffix == ".pth" else {}
    told = trainer.get("init_args", {})
    for argument, key, given in (("plans", "plans", plans), ("dataset_json", "dataset_json", dataset_json)):
        wanted = f"given for {file}, which does not tell it"
        check_that(given is not None or key in told, argument, wanted, "none")
    fold = told.get("fold") if fold is None else fold
    axes = trainer.get("inference_allowed_mirroring_axes", TrainConfig.mirror_axes)
    config = ExperimentConfig(
        output=str(output),
        data=DataConfig(
            configuration=configuration or told.get("configuration", DataConfig.configuration),
            fold=fold if isinstance(fold, int) else 0,
        ),
        net=NetOptions(name=net),
        train=TrainConfig(mirror_axes=tuple(axes or ())),
    )
    return import_weights(
        read_weights(file),
        config,
        plans_from_json(told["plans"], f"{file}: plans") if plans is None else load_plans(plans),
        description_from_json(told["dataset_json"], f"{file}: dataset_json")
        if dataset_json is None
        else read_description(dataset_json),
        None if splits is None else load_splits(splits),
    )
