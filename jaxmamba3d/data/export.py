"""From logits at the plans' spacing back to a segmentation of the image file: preprocessing inverted."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_choice, check_shape
from jaxmamba3d.data.plans import Plans
from jaxmamba3d.data.resampling import LOGITS_ORDER, resample_image, resampled_shape, separate_axis


def export_segmentation(
    logits: np.ndarray,
    properties: Mapping[str, Any],
    plans: Plans,
    configuration: str = "3d_fullres",
    *,
    return_probabilities: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Resamples logits to the image's own voxels, takes the best class and undoes crop and transpose.

    Args:
        logits: [X, Y, Z, K], at the shape of the preprocessed image, K at most 256.
        properties: of the preprocessed case.
        plans: that the case was preprocessed with.
        configuration: likewise.
        return_probabilities: also return the softmax, from which the best class is then taken.

    Returns:
        uint8 in the array order of the image file read as z, y, x; class 0 outside the crop. With
        `return_probabilities` also the probabilities [z, y, x, K] float32, 1 for class 0 outside the crop.

    Raises:
        ValueError: the logits do not have the shape that preprocessing gave the image.

    Numerics: logits are resampled one class at a time and rounded to their own dtype; of equal logits the
    lower class wins.

    Source: nnU-Net, inference/export_prediction.py.
    """
    check_choice("configuration", configuration, plans.configurations)
    new_spacing = plans.configurations[configuration].spacing
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = tuple(properties["shape_after_cropping_and_before_resampling"])
    wanted = resampled_shape(shape, spacing, new_spacing)
    check_shape("logits", logits, "[X, Y, Z, K]", (*wanted, None))
    axis = separate_axis(new_spacing, spacing)
    resampled = (
        resample_image(logits[..., k], shape, axis, order=LOGITS_ORDER) for k in range(logits.shape[-1])
    )
    whole = tuple(properties["shape_before_cropping"])
    inside = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
    segmentation = np.zeros(whole, np.uint8)
    if not return_probabilities:
        segmentation[inside] = _best_class(resampled)
        return segmentation.transpose(plans.transpose_backward)
    probabilities = np.zeros((*whole, logits.shape[-1]), np.float32)
    probabilities[..., 0] = 1
    probabilities[inside] = _softmax(np.stack(list(resampled), axis=-1))
    segmentation[inside] = probabilities[inside].argmax(axis=-1)
    return (
        segmentation.transpose(plans.transpose_backward),
        probabilities.transpose(*plans.transpose_backward, 3),
    )


def _best_class(channels: Iterator[np.ndarray]) -> np.ndarray:
    """Argmax over the channels with two of them in memory at a time."""
    highest = next(channels).copy()
    best = np.zeros(highest.shape, np.uint8)
    for k, channel in enumerate(channels, start=1):
        higher = channel > highest
        best[higher] = k
        highest[higher] = channel[higher]
    return best


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
