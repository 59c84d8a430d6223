"""Which cases a comparison figure shows, and their files."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.data import read_label, read_volume
from jaxmamba3d.data.cases import ENDINGS
from jaxmamba3d.data.nifti import Volume, misplacement, upright
from jaxmamba3d.evaluation.error_maps import ComparisonCase
from jaxmamba3d.evaluation.scored_models import ScoredModel
from jaxmamba3d.wording import first_few

ADVICE = "; name the folder of each model's segmentations with --predictions"


def telling_cases(models: Sequence[ScoredModel], count: int) -> list[str]:
    """Cases from the worst to the best by the models' mean Dice, evenly over the ranking.

    Args:
        models: scored on the same cases.
        count: how many, fewer if there are not as many.
    """
    dice = {case: np.mean([model.mean_dice(case) for model in models]) for case in sorted(models[0].cases)}
    ranking = sorted((case for case in dice if not np.isnan(dice[case])), key=lambda case: dice[case])
    places = np.linspace(0, len(ranking) - 1, min(count, len(ranking))).round().astype(int)
    return [ranking[place] for place in places]


def read_comparison_cases(
    models: Sequence[ScoredModel],
    cases: Collection[str],
    images: str | Path,
    labels: str | Path,
    *,
    predictions: Sequence[str | Path] = (),
    channel: int = 0,
) -> list[ComparisonCase]:
    """Reads what a comparison figure shows of each case.

    Args:
        models: scored on the same cases.
        cases: which of these.
        images: folder of CASE_0000.nii.gz, CASE_0001.nii.gz ... or of CASE.nii.gz.
        labels: folder of CASE.nii.gz.
        predictions: a folder of CASE.nii.gz for each model; none: where the scores were found.
        channel: of the images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, has another shape or place than its image, or a case is unknown.
    """
    wanted = f"one folder for each of the {len(models)} models"
    check_that(len(predictions) in (0, len(models)), "predictions", wanted, [str(p) for p in predictions])
    check_that(channel >= 0, "channel", "0 or greater", channel)
    unknown = sorted(set(cases) - models[0].cases)
    check_that(not unknown, "cases", "among the scored ones", first_few(unknown))
    places = {
        model.name: [Path(predictions[number])] if predictions else list(model.predictions)
        for number, model in enumerate(models)
    }
    found = []
    for case in cases:
        volume = _read_channel(Path(images), case, channel)
        image = volume.array[channel if len(volume.array) > 1 else 0]
        truth = _read_segmentation(_file_of(case, [Path(labels)]), volume)
        segmentations = {
            name: _read_segmentation(_file_of(case, folders, ADVICE), volume)
            for name, folders in places.items()
        }
        try:
            shown = ComparisonCase(
                case,
                upright(image, volume.geometry),
                truth,
                segmentations,
                {model.name: model.mean_dice(case) for model in models},
                spacing=volume.spacing,
                ignore_label=models[0].protocol.ignore_label,
            )
        except ValueError as error:
            raise ValueError(f"{case}: {error}") from error
        found.append(shown)
    return found


def _read_channel(images: Path, case: str, channel: int) -> Volume:
    """The file of that channel, or the one file of all channels."""
    name = f"{case}_{channel:04d}"
    try:
        return read_volume(_file_of(name, [images]))
    except FileNotFoundError:
        volume = read_volume(_file_of(case, [images], f", nor {name}{ENDINGS[0]}"))
        check_that(channel < len(volume.array), f"channel of {case}", f"below {len(volume.array)}", channel)
        return volume


def _read_segmentation(path: Path, image: Volume) -> np.ndarray:
    labels, geometry = read_label(path)
    if geometry["shape"] == image.geometry["shape"] and (distance := misplacement(geometry, image.geometry)):
        raise ValueError(f"{path} must lie where the image does, got voxels up to {distance:.3g} mm apart")
    return upright(labels, image.geometry)


def _file_of(case: str, folders: Sequence[Path], advice: str = "") -> Path:
    files = [folder / f"{case}{ending}" for folder in folders for ending in ENDINGS]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{case}{ENDINGS[0]}: no such file in {', '.join(map(str, folders))}{advice}")
    return found
