"""Crop to the region that holds data: nnU-Net's nonzero crop."""

import numpy as np
from scipy import ndimage

from jaxmamba3d.checks import check_shape
from jaxmamba3d.labels import OUTSIDE

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def crop_to_nonzero(image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, Box]:
    """Cuts image and label to the bounding box of the voxels that are nonzero in any channel.

    Args:
        image: [C, Z, Y, X] float32.
        label: [Z, Y, X] int16, or None when there is none.

    Returns:
        image: [C, z, y, x], a view of the input.
        label: [z, y, x], a view of the input, or None.
        box: ((lo, hi), (lo, hi), (lo, hi)), half open, in voxels; the whole volume if all of it is zero.

    Raises:
        ValueError: image and label differ in shape.

    Source: nnU-Net, preprocessing/cropping/cropping.py.
    """
    check_shape("image", image, "[C, Z, Y, X]", (None,) * 4)
    if label is not None:
        check_shape("label", label, "[Z, Y, X]", image.shape[1:])
    box = _bounding_box(_nonzero(image))
    inside = tuple(slice(low, high) for low, high in box)
    return image[:, *inside], None if label is None else label[inside], box


def mark_outside(image: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """The label with -1 for background outside the body, so that a normalisation can tell body from air.

    The body is every voxel that is nonzero in any channel, with holes filled.

    Args:
        image: [C, z, y, x] float32, after the crop: beyond its borders all is air.
        label: [z, y, x], or None, which counts as background everywhere.

    Returns:
        [z, y, x] int16, a new array.

    Source: nnU-Net, preprocessing/cropping/cropping.py.
    """
    marked = np.zeros(image.shape[1:], np.int16) if label is None else label.astype(np.int16)
    zero = ~_nonzero(image)
    if zero.any():
        marked[_connected_to_border(zero) & (marked == 0)] = OUTSIDE
    return marked


def _nonzero(image: np.ndarray) -> np.ndarray:
    nonzero = image[0] != 0
    for channel in image[1:]:
        nonzero |= channel != 0
    return nonzero


def _bounding_box(mask: np.ndarray) -> Box:
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not occupied.size:
            return tuple((0, size) for size in mask.shape)
        box.append((int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _connected_to_border(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask from which a way over faces of its voxels leads out of the volume."""
    # Faster than to fill holes by growing the outside voxel by voxel.
    components, count = ndimage.label(mask)
    reaches_border = np.zeros(count + 1, bool)
    for axis in range(3):
        for face in (0, -1):
            reaches_border[components.take(face, axis)] = True
    reaches_border[0] = False
    return reaches_border[components]
