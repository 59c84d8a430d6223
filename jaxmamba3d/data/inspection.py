"""The check of a whole dataset before any work is done on it."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmamba3d.data.dataset import Case, Dataset
from jaxmamba3d.data.nifti import misplacement, read_label, read_volume
from jaxmamba3d.data.parallel import map_cases


def check_dataset(dataset: Dataset, *, processes: int | None = None) -> None:
    """Opens every file of every case and raises one error that names all bad cases.

    Args:
        dataset: what to check.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: images or labels are missing, unreadable, of different shape or position, not finite, or
            hold values that dataset.json does not declare.
    """
    inspect = functools.partial(find_problems, dataset.channel_names, dataset.labels)
    results = map_cases(inspect, dataset.cases, processes=processes, description="check")
    bad = [
        f"{case.name}: {'; '.join(problems)}"
        for case, problems in zip(dataset.cases, results, strict=True)
        if problems
    ]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(dataset.cases)} cases of {dataset.folder} are bad; mend or remove them:\n"
            + "\n".join(bad)
        )


def find_problems(channel_names: Sequence[str], labels: Mapping[str, int], case: Case) -> list[str]:
    """What is wrong with a case, each in one phrase; empty if nothing is.

    Args:
        channel_names: the dataset's.
        labels: the dataset's, name -> value.
        case: its files.
    """
    problems = []
    image = label = None
    try:
        image = read_volume(case.images)
    except (ValueError, FileNotFoundError) as error:
        problems.append(str(error))
    try:
        label, label_geometry = read_label(case.label)
    except (ValueError, FileNotFoundError) as error:
        problems.append(f"label {error}")
    if image is not None and len(image.array) != len(channel_names):
        wanted = f"{len(channel_names)} channels as in dataset.json ({', '.join(channel_names)})"
        problems.append(f"the image must have {wanted}, got {len(image.array)}")
    if label is not None:
        undeclared = sorted(set(np.unique(label).tolist()) - set(labels.values()))
        if undeclared:
            known = f"declared: {sorted(labels.values())}"
            problems.append(f"label values {undeclared} of {case.label} are not in dataset.json ({known})")
    if image is not None and label is not None:
        if label.shape != image.array.shape[1:]:
            problems.append(f"label shape {label.shape} differs from the image's {image.array.shape[1:]}")
        if distance := misplacement(label_geometry, image.geometry):
            problems.append(f"the affines of label and image place voxels up to {distance:.4g} mm apart")
    return problems
