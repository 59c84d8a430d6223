"""The check of a whole dataset before any work is done on it."""

import contextlib
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.nifti import (
    Volume,
    contradiction,
    misplacement,
    orientation,
    read_geometries,
    read_geometry,
    read_label,
    read_volume,
)
from jaxmamba3d.data.parallel import map_cases
from jaxmamba3d.labels import Labels

logger = logging.getLogger(__name__)


def check_dataset(dataset: Dataset, *, processes: int | None = None) -> None:
    """Opens every file of every case and raises one error that names all bad cases.

    Args:
        dataset: what to check.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: images or labels are missing, unreadable, of different shape or position, not finite, or
            hold values that the dataset does not declare.
    """
    inspect = functools.partial(find_problems, dataset.channel_names, dataset.labels)
    raise_problems(dataset, map_cases(inspect, dataset.cases, processes=processes, description="check"))


def raise_problems(dataset: Dataset, problems: Sequence[Sequence[str]]) -> None:
    """Raises one ValueError that names all bad cases, if there are any.

    Args:
        dataset: whose cases were looked at.
        problems: of each case; see `find_problems`.
    """
    pairs = zip(dataset.cases, problems, strict=True)
    bad = [f"{case.name}: {'; '.join(found)}" for case, found in pairs if found]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(dataset.cases)} cases of {dataset.folder} are bad; fix or remove them:\n"
            + "\n".join(bad)
        )


class InspectedCase(NamedTuple):
    """A case that was read.

    Args:
        problems: what is wrong with it, each in one phrase; empty if nothing is.
        image, label: what was read; None where that failed.
    """

    problems: list[str]
    image: Volume | None
    label: np.ndarray | None


def find_problems(channel_names: Sequence[str], labels: Labels, case: Case) -> list[str]:
    """What is wrong with a case, see `inspect_case`."""
    return inspect_case(channel_names, labels, case).problems


def inspect_case(channel_names: Sequence[str], labels: Labels, case: Case) -> InspectedCase:
    """Reads a case and finds what is wrong with it.

    Args:
        channel_names: the dataset's.
        labels: the dataset's.
        case: its files.
    """
    problems: list[str] = []
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
        wanted = f"{len(channel_names)} channels as the dataset declares ({', '.join(channel_names)})"
        problems.append(f"the image {case.images[0]} must have {wanted}, got {len(image.array)}")
    if image is not None and image.array.min() == image.array.max():
        problems.append(f"the image {case.images[0]} holds only the value {image.array.flat[0]:g}")
    if label is not None:
        undeclared = sorted(set(np.unique(label).tolist()) - labels.declared)
        if undeclared:
            known = f"declared: {sorted(labels.declared)}"
            problems.append(f"label values {undeclared} of {case.label} are none of the dataset's ({known})")
    if image is not None and label is not None:
        if label.shape != image.array.shape[1:]:
            shapes = label_geometry["shape"], image.geometry["shape"]
            problems.append(f"the label {case.label} has shape {shapes[0]}, its image {shapes[1]}")
        if distance := misplacement(label_geometry, image.geometry):
            problems.append(f"the affines of label and image place voxels up to {distance:.4g} mm apart")
    return InspectedCase(problems, image, label)


def find_orientations(cases: Sequence[Case]) -> dict[str, list[str]]:
    """The names of the cases that are stored in each orientation, such as {"RAS": ["case_0"]}; files that
    cannot be read are skipped."""
    found: dict[str, list[str]] = {}
    for case in cases:
        with contextlib.suppress(ValueError, FileNotFoundError):
            found.setdefault(orientation(read_geometry(case.images[0])[0]), []).append(case.name)
    return dict(sorted(found.items()))


def warn_of_headers(cases: Sequence[Case]) -> None:
    """Warns of headers that contradict themselves, and of several orientations; files that cannot be read are
    skipped."""
    orientations = find_orientations(cases)
    if len(orientations) > 1:
        each = _by_orientation(orientations)
        logger.warning("cases are stored in several orientations, which the net sees: %s", each)
    found = {}
    for case in cases:
        with contextlib.suppress(ValueError, FileNotFoundError):
            if what := contradiction(read_geometries(case.images)[0]):
                found[case.name] = what
    if found:
        (first, what), others = next(iter(found.items())), len(found) - 1
        more = f" and {others} others" if others else ""
        logger.warning(
            "%s%s: %s; the spacing is pixdim's, and the axes count as orthogonal", first, more, what
        )


def check_images(cases: Sequence[Case], channels: int, orientations: Collection[str] = ()) -> None:
    """Reads the headers of all images, and raises one error that names all that cannot be predicted.

    Args:
        cases: image files.
        channels: of the images that the net takes.
        orientations: in which the training's images are stored; others are warned of. Empty: not known.

    Raises:
        ValueError: images are missing, no NIfTI, of another count of channels or no position in space, or
            their channels do not lie on each other.
    """
    bad, others = [], {}
    for case in cases:
        try:
            geometry, found = read_geometries(case.images)
        except (ValueError, FileNotFoundError) as error:
            bad.append(f"{case.name}: {error}")
            continue
        if found != channels:
            bad.append(f"{case.name}: {case.images[0]} must be of {channels} channels, got {found}")
        if orientation(geometry) not in orientations:
            others.setdefault(orientation(geometry), []).append(case.name)
    if bad:
        raise ValueError(f"{len(bad)} of {len(cases)} cases are bad; fix or remove them:\n" + "\n".join(bad))
    if orientations and others:
        logger.warning(
            "the training's images are stored as %s, but of these %s: reorient them, or expect wrong "
            "segmentations",
            ", ".join(orientations),
            _by_orientation(others),
        )


def _by_orientation(orientations: Mapping[str, Sequence[str]]) -> str:
    """Counts and an example of the cases of each orientation."""
    each = (f"{len(names)} as {code} (such as {names[0]})" for code, names in sorted(orientations.items()))
    return ", ".join(each)
