"""Crop to the region that holds data: nnU-Net's nonzero crop."""

import numpy as np
from scipy import ndimage

from jaxmamba3d.checks import check_shape

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

OUTSIDE = -1
"""Label of voxels inside the box but outside the mask; it becomes background when a patch is read."""


def crop_to_nonzero(image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Box]:
    """Cuts image and label to the bounding box of the nonzero voxels.

    The mask holds every voxel that is nonzero in any channel, with holes filled. Inside the box, label 0
    outside the mask becomes -1, so that a normalisation can tell body from air afterwards.

    Args:
        image: [C, Z, Y, X] float32.
        label: [Z, Y, X] int16, or None when there is none.

    Returns:
        image: [C, z, y, x], a view of the input.
        label: [z, y, x] int16, a new array; without an input label, 0 inside the mask and -1 outside.
        box: ((lo, hi), (lo, hi), (lo, hi)), half open, in voxels; the whole volume if all of it is zero.

    Raises:
        ValueError: image and label differ in shape.

    Source: nnU-Net, preprocessing/cropping/cropping.py.
    """
    check_shape("image", image, "[C, Z, Y, X]", (None,) * 4)
    if label is not None:
        check_shape("label", label, "[Z, Y, X]", image.shape[1:])
    mask = ndimage.binary_fill_holes(np.any(image != 0, axis=0))
    box = _bounding_box(mask)
    inside = tuple(slice(low, high) for low, high in box)
    mask = mask[inside]
    cropped = np.zeros(mask.shape, np.int16) if label is None else label[inside].astype(np.int16)
    cropped[(cropped == 0) & ~mask] = OUTSIDE
    return image[:, *inside], cropped, box


def _bounding_box(mask: np.ndarray) -> Box:
    found = ndimage.find_objects(mask.astype(np.int8))
    if not found:
        return tuple((0, size) for size in mask.shape)
    return tuple((side.start, side.stop) for side in found[0])
