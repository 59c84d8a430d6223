"""From image files to arrays at the plans' spacing: transpose, crop, normalise, resample."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.data.cropping import crop_to_nonzero, mark_outside
from jaxmamba3d.data.nifti import Volume, read_label, read_volume
from jaxmamba3d.data.normalization import normalize
from jaxmamba3d.data.plans import Configuration, Plans
from jaxmamba3d.data.resampling import (
    resample_image,
    resample_label,
    resampled_shape,
    separate_axis,
)
from jaxmamba3d.data.room import check_memory


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
        image_files: one NIfTI file per channel, in the order of the plans' channels, or one 4D file with all.
        label_file: NIfTI file of the label map, or None.
        plans: of the dataset.
        configuration: one of the plans'.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or the files do not fit each other or the plans.

    Source: nnU-Net, preprocessing/preprocessors/default_preprocessor.py.
    """
    volume = read_volume(image_files)
    label = None if label_file is None else read_label(label_file)[0]
    if label is not None:
        fits = label.shape == volume.array.shape[1:]
        check_that(fits, f"the label {label_file}", f"of the image's {volume.array.shape[1:]}", label.shape)
    return preprocess_volume(volume, label, plans, configuration, name=f"image_files ({image_files[0]})")


def preprocess_volume(
    volume: Volume, label: np.ndarray | None, plans: Plans, configuration: str, *, name: str
) -> PreprocessedCase:
    """Preprocesses what was read of a case; overwrites the volume, for it may be large.

    Args:
        volume: the image.
        label: [Z, Y, X] int16, or None.
        plans: of the dataset.
        configuration: one of the plans'.
        name: of the image, for errors.

    Raises:
        ValueError: image, label and plans do not fit each other.
    """
    check_choice("configuration", configuration, plans.configurations)
    settings = plans.configurations[configuration]
    channels = len(settings.normalization_schemes)
    found = len(volume.array)
    check_that(found == channels, name, f"of {channels} channels", found)
    labelled = label is not None

    forward = tuple(plans.transpose_forward)
    spacing = [volume.spacing[axis] for axis in forward]
    image = volume.array.transpose(0, *(axis + 1 for axis in forward))
    whole = image.shape[1:]
    image, label, box = crop_to_nonzero(image, label.transpose(forward) if labelled else None)
    cropped = image.shape[1:]
    shape = resampled_shape(cropped, spacing, settings.spacing)
    wanted = f"at least 1 voxel large at the plans' spacing of {settings.spacing} mm"
    check_that(min(shape) > 0, name, wanted, f"{shape} from a spacing of {tuple(spacing)} mm")
    check_memory(name, channels, shape, volume.spacing)
    axis = separate_axis(spacing, settings.spacing)
    if labelled or any(settings.use_mask_for_norm):
        label = mark_outside(image, label)

    preprocessed = np.empty((*shape, channels), np.float32)
    for channel, values in enumerate(image):
        _normalize(values, label, channel, settings, plans)
        preprocessed[..., channel] = resample_image(values, shape, axis)
    properties = {
        "spacing": [float(size) for size in volume.spacing],
        "shape_before_cropping": list(whole),
        "bbox_used_for_cropping": [list(side) for side in box],
        "shape_after_cropping_and_before_resampling": list(cropped),
        "geometry": volume.geometry,
    }
    label = np.ascontiguousarray(resample_label(label, shape, axis)) if labelled else None
    return PreprocessedCase(preprocessed, label, properties)


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
