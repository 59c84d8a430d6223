"""One segmentation from what several models predict."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.cases import ENDINGS, by_stem, nifti_files
from jaxmamba3d.data.dataset import DESCRIPTION, read_labels
from jaxmamba3d.data.export import best_labels
from jaxmamba3d.data.nifti import read_geometries, write_segmentation
from jaxmamba3d.data.parallel import map_cases
from jaxmamba3d.data.probabilities import PROBABILITIES, read_probabilities, write_probabilities
from jaxmamba3d.files import check_writable, write_json
from jaxmamba3d.labels import Labels
from jaxmamba3d.wording import first_few


class _Predictions(NamedTuple):
    """Of one case, by each model."""

    case: str
    segmentations: list[Path]
    probabilities: list[Path]


def ensemble_folders(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    probabilities: bool = False,
    processes: int = 1,
) -> None:
    """Segments cases by the mean of the probabilities that several models predict.

    Args:
        folders: of two or more models, each with CASE.nii.gz and CASE.npz of the same cases, as
            `predict --probabilities` and nnU-Net write them; dataset.json there says what labels mean.
        output: folder of the segmentations CASE.nii.gz; empty, or made.
        probabilities: also write CASE.npz with the means.
        processes: worker processes, each of which holds the probabilities of a case by two models.

    Raises:
        FileNotFoundError: a folder is missing, or has no segmentations.
        ValueError: the folders do not hold predictions of the same cases and labels, or the output is not
            empty; or, when all others are written, cases could not be put together, which are named.

    Source: nnU-Net, ensembling/ensemble.py.
    """
    folders, output = [Path(folder) for folder in folders], Path(output)
    several = len({folder.resolve() for folder in folders}) == len(folders) > 1
    check_that(several, "predictions", "two or more different folders", ", ".join(map(str, folders)))
    cases, labels = _common_cases(folders), _common_labels(folders)
    check_writable(output, "output")
    output.mkdir(parents=True, exist_ok=True)
    there = sorted(path.name for path in output.iterdir() if path.name[0] != ".")
    check_that(not there, "output", "an empty folder, or a new one", f"{output} with {first_few(there)}")
    if labels is not None:
        write_json(output / DESCRIPTION, labels.to_json())
    work = functools.partial(_segment, output, labels, probabilities)
    problems = [
        found for found in map_cases(work, cases, processes=processes, description="ensemble") if found
    ]
    if problems:
        what = f"{len(problems)} of {len(cases)} cases are bad and were left out; predict them again"
        raise ValueError(f"{what}:\n" + "\n".join(problems))


def _common_cases(folders: Sequence[Path]) -> list[_Predictions]:
    segmentations = [by_stem(nifti_files(folder), folder) for folder in folders]
    names = [_names_of_probabilities(folder) for folder in folders]
    everywhere = sorted(set.union(*names))
    for folder, here, found in zip(folders, segmentations, names, strict=True):
        check_that(bool(found), f"{folder}", "made by `predict --probabilities`", f"no CASE{PROBABILITIES}")
        lacking = [name for name in everywhere if name not in found or name not in here]
        wanted = f"segmentations and CASE{PROBABILITIES} of the {len(everywhere)} cases of all folders"
        check_that(not lacking, f"predictions in {folder}", wanted, f"not both of {first_few(lacking)}")
    return [
        _Predictions(
            name,
            [here[name] for here in segmentations],
            [folder / f"{name}{PROBABILITIES}" for folder in folders],
        )
        for name in everywhere
    ]


def _names_of_probabilities(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob(f"*{PROBABILITIES}") if path.name[0] != "."}


def _common_labels(folders: Sequence[Path]) -> Labels | None:
    """Of the folders that say what labels mean; None if none does."""
    described = [path for folder in folders if (path := folder / DESCRIPTION).is_file()]
    found = [read_labels(path) for path in described]
    for path, labels in zip(described, found, strict=True):
        wanted = f"of the labels of {described[0]}, {found[0].to_json()}"
        check_that(labels == found[0], str(path), wanted, labels.to_json())
    return found[0] if found else None


def _segment(output: Path, labels: Labels | None, keep_mean: bool, predictions: _Predictions) -> str | None:
    """What is wrong with the case, or None."""
    try:
        geometry, _ = read_geometries(predictions.segmentations)
        mean = _mean(predictions.probabilities)
        channels = len(mean) if labels is None else labels.outputs
        wanted = f"of shape [{channels}, z, y, x], as labels and image are"
        fits = mean.shape == (channels, *geometry["shape"][::-1])
        check_that(fits, f"{predictions.probabilities[0]}", wanted, [*mean.shape])
    except (ValueError, OSError) as error:
        return f"{predictions.case}: {error}"
    if keep_mean:
        write_probabilities(output / f"{predictions.case}{PROBABILITIES}", mean)
    segmentation = best_labels(np.moveaxis(mean, 0, -1), labels)
    write_segmentation(output / f"{predictions.case}{ENDINGS[0]}", segmentation, geometry)
    return None


def _mean(paths: Sequence[Path]) -> np.ndarray:
    """Float32."""
    total = read_probabilities(paths[0]).astype(np.float32)
    for path in paths[1:]:
        other = read_probabilities(path)
        check_that(
            other.shape == total.shape, str(path), f"of {paths[0]}'s shape {[*total.shape]}", [*other.shape]
        )
        total += other
    return total / np.float32(len(paths))
