"""Pairs of predicted and reference segmentations on disk, and the checks that they belong together."""

import dataclasses
import itertools
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import find_objects

SUFFIXES = (".nii.gz", ".nii")
# Headers written by different programs round differently; a real mismatch is off by far more.
POSITION_TOLERANCE_VOXELS = 0.1

Box = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two files of a case."""

    case: str
    prediction: Path
    reference: Path


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A label volume in stored order.

    Args:
        labels: [X, Y, Z], int16.
        spacing: voxel size of each axis in mm.
        boxes: label value above 0 -> the box that holds all its voxels; only values that occur.
    """

    labels: np.ndarray
    spacing: tuple[float, ...]
    boxes: dict[int, Box]


def find_pairs(
    predictions_dir: str | Path, labels_dir: str | Path, cases: Collection[str] | None = None
) -> list[Pair]:
    """Every `CASE.nii.gz` (or `CASE.nii`) of two folders, paired by name.

    Args:
        predictions_dir: folder of predicted segmentations.
        labels_dir: folder of reference segmentations.
        cases: names of the cases to pair; None: all of both folders.

    Returns:
        The pairs, sorted by case.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: there is no case at all; what lacks one of its files is left to `check_pairs`.
    """
    predictions, references = _files_of(predictions_dir), _files_of(labels_dir)
    wanted = sorted(cases if cases is not None else predictions | references)
    if not wanted:
        raise ValueError(f"{predictions_dir} and {labels_dir}: no {SUFFIXES[0]} files to compare")
    return [
        Pair(
            case,
            predictions.get(case, Path(predictions_dir) / (case + SUFFIXES[0])),
            references.get(case, Path(labels_dir) / (case + SUFFIXES[0])),
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
    """Raises one ValueError that lists all problems, if there are any."""
    if problems:
        raise ValueError(f"{len(problems)} of {cases} cases cannot be scored:\n  " + "\n  ".join(problems))


def read_segmentation(path: str | Path) -> Segmentation:
    """A label volume and its voxel size, in the order in which NIfTI stores the axes.

    Raises:
        ValueError: the file cannot be read, is not three-dimensional, or holds values that are not labels.
    """
    image = _load(path)
    try:
        values = np.asarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: its data cannot be read ({error}); write the file again") from error
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= np.iinfo(np.int16).max):  # NaN fails too
        raise ValueError(f"{path}: holds values from {lowest} to {highest}; labels are 0 to 32767")
    labels = values.astype(np.int16)
    if not np.array_equal(labels, values):
        raise ValueError(f"{path}: holds values that are not whole numbers; a segmentation holds labels")
    boxes = {label: box for label, box in enumerate(find_objects(labels), 1) if box is not None}
    return Segmentation(labels, tuple(float(size) for size in image.header.get_zooms()), boxes)


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
            f"{folder}: no such folder; it should hold segmentations named CASE{SUFFIXES[0]}"
        )
    # macOS leaves ._CASE.nii.gz beside files, the Decathlon's archives among them.
    files = (path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.name[0] != ".")
    return {path.name.removesuffix(".gz").removesuffix(".nii"): path for path in files}


def _load(path: str | Path) -> nibabel.Nifti1Image:
    try:
        image = nibabel.load(path)
    except (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path}: cannot be read as NIfTI ({error}); write the file again") from error
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3:
        raise ValueError(f"{path}: has shape {image.shape}; a segmentation has three axes")
    return image


def _mismatch(pair: Pair) -> str | None:
    """What keeps the two files of a case from being compared voxel by voxel, from their headers alone."""
    missing = [path for path in (pair.prediction, pair.reference) if not path.is_file()]
    if missing:
        return f"missing {missing[0]}"
    try:
        prediction, reference = _load(pair.prediction), _load(pair.reference)
    except ValueError as error:
        return str(error)
    if prediction.shape != reference.shape:
        return f"the prediction has shape {prediction.shape}, its label {reference.shape}"
    corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in reference.shape))])
    shifts = np.linalg.norm(corners @ (prediction.affine - reference.affine).T, axis=1)
    if shifts.max() > POSITION_TOLERANCE_VOXELS * min(reference.header.get_zooms()):
        return f"the affines of prediction and label place voxels up to {shifts.max():.3g} mm apart"
    return None
