"""Pairs of predicted and reference segmentations on disk, and the checks that they belong together."""

import dataclasses
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.cases import ENDINGS, by_stem, is_nifti
from jaxmamba3d.data.dataset import is_dataset, read_dataset
from jaxmamba3d.data.nifti import misplacement, read_geometry, read_label
from jaxmamba3d.wording import first_few

logger = logging.getLogger(__name__)

Box = tuple[slice, ...]

MAX_LISTED_CASES = 20
"""Of cases that cannot be scored, which may be all."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two files of a case."""

    case: str
    prediction: Path
    reference: Path


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A label volume.

    Args:
        labels: [Z, Y, X], int16.
        spacing: voxel size of each axis in mm.
        boxes: label value above 0 -> the box that holds all its voxels; only values that occur.
    """

    labels: np.ndarray
    spacing: tuple[float, ...]
    boxes: dict[int, Box]


def find_pairs(
    predictions_dir: str | Path, labels_dir: str | Path, cases: Collection[str] | None = None
) -> list[Pair]:
    """Every `CASE.nii.gz` (or `CASE.nii`) of two folders, or of predictions and a dataset, paired by name.

    Args:
        predictions_dir: folder of predicted segmentations.
        labels_dir: folder of reference segmentations, or a dataset folder (see `read_dataset`).
        cases: names of the cases to pair; None: all of both folders, or all predictions of a dataset's cases.

    Returns:
        The pairs, sorted by case.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: there is no case at all; what lacks one of its files is left to `check_pairs`.
    """
    predictions = _files_of(predictions_dir)
    if is_dataset(labels_dir):
        references = {case.name: case.label for case in read_dataset(labels_dir).cases}
        unknown = sorted(set(predictions) - set(references))
        check_that(
            cases is not None or not unknown,
            f"predictions in {predictions_dir}",
            f"of cases of {labels_dir}",
            first_few(unknown),
        )
        found = set(predictions)
        if cases is None and found and len(found) < len(references):
            verb = "is" if len(found) == 1 else "are"
            what = "%d of the %d labelled cases of %s %s predicted; the rest is left out"
            logger.info(what, len(found), len(references), labels_dir, verb)
    else:
        references = _files_of(labels_dir)
        found = set(predictions) | set(references)
    wanted = sorted(found if cases is None else cases)
    if not wanted:
        raise ValueError(f"{predictions_dir} and {labels_dir}: no {ENDINGS[0]} files to compare")
    return [
        Pair(
            case,
            predictions.get(case, Path(predictions_dir) / (case + ENDINGS[0])),
            references.get(case, Path(labels_dir) / (case + ENDINGS[0])),
        )
        for case in wanted
    ]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Reads the headers of all pairs.

    Raises:
        ValueError: files are missing, or differ in shape or geometry; all such cases are named.
    """
    problems = [f"{pair.case}: {problem}" for pair in pairs if (problem := _mismatch(pair))]
    raise_problems(problems, len(pairs))


def raise_problems(problems: Collection[str], cases: int) -> None:
    """Raises one ValueError that lists the problems, if there are any."""
    if problems:
        lines = [*problems][:MAX_LISTED_CASES]
        if len(problems) > len(lines):
            lines.append(f"... and {len(problems) - len(lines)} others")
        advice = "fix them, or name those to score (`evaluate --cases`)"
        raise ValueError(
            "\n  ".join([f"{len(problems)} of {cases} cases cannot be scored; {advice}:", *lines])
        )


def read_segmentation(path: str | Path) -> Segmentation:
    """A label volume, its voxel size, and where each label lies.

    Raises:
        FileNotFoundError, ValueError: see `read_label`; or it holds values below 0.
    """
    labels, geometry = read_label(path)
    lowest = int(labels.min())
    check_that(lowest >= 0, str(path), "of labels from 0", f"{lowest}")
    boxes = {label: box for label, box in enumerate(find_objects(labels), 1) if box is not None}
    return Segmentation(labels, tuple(geometry["zooms"][::-1]), boxes)


def joint_box(boxes: Iterable[Box]) -> Box | None:
    """The smallest box that holds all boxes; None without any."""
    boxes = list(boxes)
    if not boxes:
        return None
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def _files_of(folder: str | Path) -> dict[str, Path]:
    """Case -> file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; it should hold segmentations named CASE{ENDINGS[0]}"
        )
    return by_stem(filter(is_nifti, folder.iterdir()), folder)


def _mismatch(pair: Pair) -> str | None:
    """What keeps the two files of a case from being compared voxel by voxel, from their headers alone."""
    try:
        geometries = []
        for path in (pair.prediction, pair.reference):
            geometry, channels = read_geometry(path)
            check_that(channels == 1, str(path), "3D because it holds labels", f"{channels} channels")
            geometries.append(geometry)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    prediction, reference = geometries
    if prediction["shape"] != reference["shape"]:
        return f"the prediction has shape {prediction['shape']}, its label {reference['shape']}"
    if distance := misplacement(prediction, reference):
        return f"the affines of prediction and label place voxels up to {distance:.3g} mm apart"
    return None
