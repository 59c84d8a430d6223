"""From image files to arrays at the plans' spacing: transpose, crop, normalise, resample."""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.data.case_files import Centres, write_case
from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.cropping import crop_to_nonzero, mark_outside
from jaxmamba3d.data.nifti import read_label, read_volume
from jaxmamba3d.data.normalization import normalize
from jaxmamba3d.data.parallel import map_cases
from jaxmamba3d.data.patches import foreground_table
from jaxmamba3d.data.plans import Configuration, Plans
from jaxmamba3d.data.resampling import (
    IMAGE_ORDER,
    resample_image,
    resample_label,
    resampled_shape,
    separate_axis,
)
from jaxmamba3d.files import load_json, write_json
from jaxmamba3d.labels import Labels

CONFIGURATION = "configuration.json"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreprocessedCase:
    """A case as the net sees it.

    Args:
        image: [X, Y, Z, C] float32, C-contiguous, at the plans' spacing.
        label: [X, Y, Z] int16, -1 outside the body, or None.
        properties: JSON-able, what the inverse needs, in nnU-Net's words: `spacing` (mm) in the order of the
            file read as z, y, x; `shape_before_cropping`, `bbox_used_for_cropping` and
            `shape_after_cropping_and_before_resampling` (voxels) after the plans' transpose; and the file's
            `geometry`.
    """

    image: np.ndarray
    label: np.ndarray | None
    properties: dict[str, Any]


def preprocess_case(
    image_files: Sequence[str | Path],
    label_file: str | Path | None,
    plans: Plans,
    configuration: str = "3d_fullres",
) -> PreprocessedCase:
    """Reads and preprocesses one case as nnU-Net does.

    Args:
        image_files: one NIfTI file a channel, in the order of the plans' channels, or one 4D file with all.
        label_file: NIfTI file of the label map, or None.
        plans: of the dataset.
        configuration: one of the plans'.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or the files do not fit each other or the plans.

    Source: nnU-Net, preprocessing/preprocessors/default_preprocessor.py.
    """
    check_choice("configuration", configuration, plans.configurations)
    settings = plans.configurations[configuration]
    channels = len(settings.normalization_schemes)
    volume = read_volume(image_files)
    found = len(volume.array)
    check_that(found == channels, f"image_files ({image_files[0]})", f"of {channels} channels", found)
    label = None if label_file is None else read_label(label_file)[0]
    if label is not None:
        fits = label.shape == volume.array.shape[1:]
        check_that(fits, f"the label {label_file}", f"of the image's {volume.array.shape[1:]}", label.shape)

    forward = tuple(plans.transpose_forward)
    spacing = [volume.spacing[axis] for axis in forward]
    image = volume.array.transpose(0, *(axis + 1 for axis in forward))
    whole = image.shape[1:]
    image, label, box = crop_to_nonzero(image, None if label is None else label.transpose(forward))
    cropped = image.shape[1:]
    shape = resampled_shape(cropped, spacing, settings.spacing)
    wish = f"at least 1 voxel large at the plans' spacing of {settings.spacing} mm"
    found = f"{shape} from a spacing of {tuple(spacing)} mm"
    check_that(min(shape) > 0, f"the image {image_files[0]}", wish, found)
    axis = separate_axis(spacing, settings.spacing)
    if label is not None or any(settings.use_mask_for_norm):
        label = mark_outside(image, label)

    preprocessed = np.empty((*shape, channels), np.float32)
    for channel, values in enumerate(image):
        _normalize(values, label, channel, settings, plans)
        preprocessed[..., channel] = resample_image(values, shape, axis, order=IMAGE_ORDER)
    if label_file is not None:
        label = np.ascontiguousarray(resample_label(label, shape, axis))
    properties = {
        "spacing": [float(size) for size in volume.spacing],
        "shape_before_cropping": list(whole),
        "bbox_used_for_cropping": [list(side) for side in box],
        "shape_after_cropping_and_before_resampling": list(cropped),
        "geometry": volume.geometry,
    }
    return PreprocessedCase(preprocessed, None if label_file is None else label, properties)


def _normalize(
    values: np.ndarray, label: np.ndarray | None, channel: int, settings: Configuration, plans: Plans
) -> None:
    """In place, for a channel may be larger than what else fits into memory."""
    normalize(
        values,
        settings.normalization_schemes[channel],
        mask=label >= 0 if settings.use_mask_for_norm[channel] else None,
        intensities=plans.intensity_properties.get(str(channel)),
        out=values,
    )


def preprocess_dataset(
    dataset: Dataset,
    plans: Plans,
    configuration: str,
    output_folder: str | Path,
    *,
    processes: int | None = None,
) -> None:
    """Preprocesses all cases that the output folder does not hold yet.

    Writes OUTPUT/CASE/ (see `case_files`) for each case, and OUTPUT/configuration.json, which says what the
    cases were made with. May be killed and started again at any time.

    Args:
        dataset: cases with labels.
        plans: of the dataset.
        configuration: one of the plans'.
        output_folder: made if missing.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: the folder holds cases made with other settings (the first difference is named), or
            cases are bad (all are named; the good ones are kept).
        ChildProcessError: a worker process was killed.
    """
    check_choice("configuration", configuration, plans.configurations)
    output = Path(output_folder)
    output.mkdir(parents=True, exist_ok=True)
    _check_or_write_settings(output / CONFIGURATION, _settings(dataset, plans, configuration))
    todo = [case for case in dataset.cases if not (output / case.name).is_dir()]
    logger.info("%d of %d cases are preprocessed already", len(dataset.cases) - len(todo), len(dataset.cases))
    if not todo:
        return
    work = functools.partial(_preprocess_and_write, plans, configuration, dataset.labels, output)
    problems = map_cases(work, todo, processes=processes, description=f"preprocess {configuration}")
    failures = [problem for problem in problems if problem]
    if failures:
        raise ValueError(f"{len(failures)} of {len(dataset.cases)} cases are bad: " + "; ".join(failures))


def _preprocess_and_write(
    plans: Plans, configuration: str, labels: Labels, output: Path, case: Case
) -> str | None:
    """What is wrong with the case, or None."""
    try:
        check_that(case.label is not None, "its label", "there for training", None)
        done = preprocess_case(case.images, case.label, plans, configuration)
    except (ValueError, OSError) as error:
        return f"{case.name}: {error}"
    write_case(
        output / case.name,
        image=done.image,
        label=done.label,
        centres=_centres(done.label, labels),
        properties=done.properties,
    )
    return None


def _centres(label: np.ndarray, labels: Labels) -> Centres:
    classes = list(labels.structures.values())
    if labels.ignore is None:
        return Centres(tuple(foreground_table(label, classes)))
    # One stream of random numbers goes over all of them, what is annotated last.
    *structures, annotated = foreground_table(label, [*classes, labels.annotated]) or [None]
    return Centres(tuple(structures), annotated)


def _settings(dataset: Dataset, plans: Plans, configuration: str) -> dict[str, Any]:
    """All that the written arrays depend on beside the image files, as JSON reads it back."""
    chosen = plans.configurations[configuration]
    settings = {
        "dataset_name": plans.dataset_name,
        "configuration": configuration,
        "transpose_forward": plans.transpose_forward,
        "spacing": chosen.spacing,
        "normalization_schemes": chosen.normalization_schemes,
        "use_mask_for_norm": chosen.use_mask_for_norm,
        "intensity_properties": plans.intensity_properties,
        **dataset.labels.to_json(),
    }
    return json.loads(json.dumps(settings))


def _check_or_write_settings(path: Path, settings: dict[str, Any]) -> None:
    if path.is_file():
        found = load_json(path, "the settings of preprocessed cases")
        for key, wanted in settings.items():
            same = found.get(key) == wanted
            check_that(same, f"{key} of {path}", f"{wanted} (or remove the folder)", found.get(key))
        return
    write_json(path, settings)
