"""The fingerprint of a dataset: the facts that its plans follow from."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.cropping import crop_to_nonzero
from jaxmamba3d.data.inspection import inspect_case, raise_problems
from jaxmamba3d.data.parallel import map_cases
from jaxmamba3d.files import load_json, write_json
from jaxmamba3d.labels import Labels

INTENSITY_SAMPLES = int(10e7)
"""Foreground voxels that the intensity statistics of a whole dataset are taken from."""


@dataclass(frozen=True)
class Fingerprint:
    """nnU-Net's dataset_fingerprint.json.

    Args:
        spacings: of each case, [Z, Y, X] mm.
        shapes_after_crop: of each case, voxels.
        foreground_intensity_properties_per_channel: mean, median, std, min, max and the 0.5 and 99.5
            percentiles of foreground voxels, by channel number.
        median_relative_size_after_cropping: voxels left by the crop to the nonzero box, as a share.
    """

    spacings: tuple[tuple[float, ...], ...]
    shapes_after_crop: tuple[tuple[int, ...], ...]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    median_relative_size_after_cropping: float


def compute_fingerprint(dataset: Dataset, *, processes: int | None = None) -> Fingerprint:
    """Reads every case once, in parallel, and checks it as `check_dataset` does.

    Args:
        dataset: labelled cases.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: there are bad cases (all are named), or no case has foreground.

    Source: nnU-Net v2, experiment_planning/dataset_fingerprint/fingerprint_extractor.py.
    """
    samples = INTENSITY_SAMPLES // len(dataset.cases)
    inspect = functools.partial(_inspect, samples, dataset.channel_names, dataset.labels)
    found = map_cases(inspect, dataset.cases, processes=processes, description="fingerprint")
    raise_problems(dataset, [problems for problems, _ in found])
    facts = [case_facts for _, case_facts in found]
    spacings, shapes, relative_sizes, intensities = zip(*facts, strict=True)
    foreground = any(len(case[0]) for case in intensities)
    check_that(foreground, f"labels of {dataset.folder}", "above 0 in at least one case", "0 alone")
    return Fingerprint(
        spacings=spacings,
        shapes_after_crop=shapes,
        foreground_intensity_properties_per_channel={
            str(channel): _statistics(np.concatenate([case[channel] for case in intensities]))
            for channel in range(len(dataset.channel_names))
        },
        median_relative_size_after_cropping=float(np.median(relative_sizes)),
    )


def load_fingerprint(path: str | Path) -> Fingerprint:
    """Reads nnU-Net's dataset_fingerprint.json."""
    content: dict[str, Any] = load_json(path, "a fingerprint")
    fields = [field.name for field in dataclasses.fields(Fingerprint)]
    missing = [name for name in fields if name not in content]
    check_that(not missing, str(path), "a fingerprint with all its fields", f"none for {missing}")
    triples = {name: tuple(map(tuple, content[name])) for name in ("spacings", "shapes_after_crop")}
    return Fingerprint(**{name: content[name] for name in fields} | triples)


def save_fingerprint(fingerprint: Fingerprint, path: str | Path) -> None:
    """Writes nnU-Net's dataset_fingerprint.json."""
    write_json(path, dataclasses.asdict(fingerprint))


def _inspect(samples: int, channel_names: Sequence[str], labels: Labels, case: Case):
    """Problems of a case, or its facts: spacing, shape after the crop, relative size, and for each channel
    sampled foreground intensities."""
    problems, volume, label = inspect_case(channel_names, labels, case)
    if problems:
        return problems, None
    image, label, _ = crop_to_nonzero(volume.array, label)
    foreground = label > 0
    rng = np.random.RandomState(1234)
    intensities = []
    for channel in image:
        values = channel[foreground]
        # A case without foreground adds nothing, but in float64: nnU-Net then computes the statistics in it.
        intensities.append(rng.choice(values, samples, replace=True) if len(values) else np.empty(0))
    relative_size = np.prod(image.shape[1:]) / np.prod(volume.array.shape[1:])
    return [], (volume.spacing, image.shape[1:], relative_size, intensities)


def _statistics(values: np.ndarray) -> dict[str, float]:
    """Statistics of all sampled intensities, which are reordered."""
    # Sums before percentiles: their last bits follow the order.
    moments = {"mean": np.mean(values), "std": np.std(values), "min": np.min(values), "max": np.max(values)}
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5), overwrite_input=True)
    percentiles = {"median": median, "percentile_00_5": low, "percentile_99_5": high}
    return {name: float(value) for name, value in (moments | percentiles).items()}
