"""Runs made of networks that the authors' code trained."""

from pathlib import Path
from typing import Any

from jaxmamba3d.checks import check_axes, check_that
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, TrainConfig
from jaxmamba3d.data import description_from_json, load_plans, load_splits, plans_from_json, read_description
from jaxmamba3d.nets import read_training_record, read_weights
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

    Arguments left None are read from the checkpoint, if nnU-Net's trainer wrote it; so are the axes along
    which images may be mirrored.

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
    record = read_training_record(file) if file.suffix == ".pth" and file.is_file() else {}
    init_args = record.get("init_args")
    init_args = init_args if isinstance(init_args, dict) else {}
    weights = read_weights(file)
    for argument, given in (("plans", plans), ("dataset_json", dataset_json)):
        wanted = f"given for {file}, which does not contain it"
        check_that(given is not None or argument in init_args, argument, wanted, "none")
    if fold is None:
        found = str(init_args.get("fold"))
        fold = int(found) if found.isdigit() else 0
    config = ExperimentConfig(
        output=str(output),
        data=DataConfig(
            configuration=configuration or init_args.get("configuration", DataConfig.configuration),
            fold=fold,
        ),
        net=NetOptions(name=net),
        train=TrainConfig(mirror_axes=_mirror_axes(file, record)),
    )
    return import_weights(
        weights,
        config,
        plans_from_json(init_args["plans"], f"{file}: plans") if plans is None else load_plans(plans),
        description_from_json(init_args["dataset_json"], f"{file}: dataset_json")
        if dataset_json is None
        else read_description(dataset_json),
        None if splits is None else load_splits(splits),
    )


def _mirror_axes(file: Path, record: dict[str, Any]) -> tuple[int, ...]:
    """Those that a trainer allowed; all, as nnU-Net trains, where no trainer says anything."""
    axes = record.get("inference_allowed_mirroring_axes", () if record else TrainConfig.mirror_axes)
    axes = () if axes is None else axes
    what = f"{file}: inference_allowed_mirroring_axes"
    check_that(isinstance(axes, tuple | list), what, "axes, or None", axes)
    check_axes(what, axes)
    return tuple(axes)
