"""Resampling between voxel spacings: nnU-Net's rules, for images, label maps and logits.

Two modes. Nearly isotropic volumes are resampled in 3D at once. Volumes whose slices lie more than three
times as far apart as their pixels are resampled slice by slice, and slices are then repeated or dropped:
interpolating across distant slices would make up anatomy ("separate z" in nnU-Net's words).

Source: nnU-Net, preprocessing/resampling/default_resampling.py; skimage.transform.resize, which it calls.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from jaxmamba3d.data.taps import taps_of
from jaxmamba3d.data.voting import vote

ANISOTROPY_THRESHOLD = 3
IMAGE_ORDER = 3


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Voxels by axis after a change of spacing: round(old / new * n), halves to even; spacings in mm."""
    return tuple(
        round(float(old) / float(new) * n) for old, new, n in zip(spacing, new_spacing, shape, strict=True)
    )


def separate_axis(spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis across slices if a change of spacing goes slice by slice, else None.

    The current spacing (mm) is asked first, the new one only if the current is nearly isotropic. Two equally
    coarse axes count as none.
    """
    for candidate in (spacing, new_spacing):
        coarsest = max(candidate)
        if coarsest / min(candidate) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, size in enumerate(candidate) if size == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(volume: np.ndarray, shape: Sequence[int], axis: int | None) -> np.ndarray:
    """An image at another shape, by cubic splines.

    Args:
        volume: [X, Y, Z], float32 or float64.
        shape: the new shape.
        axis: what `separate_axis` says.

    Returns:
        an array of the new shape in the volume's dtype; the volume itself if it has that shape already.

    Numerics: float64 inside, clipped to the minimum and maximum of what is interpolated (one slice under
    separate z), then rounded to the volume's dtype.
    """
    return _resample(volume, tuple(shape), axis, _zoom)


def resample_label(volume: np.ndarray, shape: Sequence[int], axis: int | None) -> np.ndarray:
    """A label map at another shape: each label's indicator is interpolated linearly, the largest wins.

    An exact tie goes to the nearest-neighbour label if that is among the tied, else to the smallest.

    Args:
        volume: [X, Y, Z], any integer dtype.
        shape: the new shape.
        axis: what `separate_axis` says.

    Returns:
        an array of the new shape in the volume's dtype; the volume itself if it has that shape already.
    """
    return _resample(volume, tuple(shape), axis, vote)


Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _resample(volume: np.ndarray, shape: tuple[int, ...], axis: int | None, resize: Resize) -> np.ndarray:
    if volume.shape == shape:
        return volume
    if axis is None:
        return resize(volume, shape)
    resampled = np.empty(shape, volume.dtype)
    slices, new_slices = np.moveaxis(volume, axis, 0), np.moveaxis(resampled, axis, 0)
    source = taps_of(len(slices), len(new_slices)).nearest
    for index in np.unique(source):
        new_slices[source == index] = resize(slices[index], new_slices.shape[1:])
    return resampled


def _zoom(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `ndimage.zoom` gives, an axis at a time, those that shrink first: a fraction of its time."""
    if array.shape == shape:
        return array
    zoomed = array
    for axis in sorted(range(array.ndim), key=lambda axis: shape[axis] / array.shape[axis]):
        if shape[axis] != array.shape[axis]:
            zoomed = _along(axis, _spline_matrix(array.shape[axis], shape[axis]), zoomed)
    zoomed = zoomed.astype(array.dtype, copy=False)
    return np.clip(zoomed, array.min(), array.max(), out=zoomed)


def _along(axis: int, matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """The product with every line of an axis; no axis moves, which would copy the array."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    lines = array.reshape(math.prod(before), array.shape[axis], math.prod(after))
    product = matrix @ lines if after else lines[..., 0] @ matrix.T
    return product.reshape(*before, len(matrix), *after)


@functools.lru_cache(maxsize=64)
def _spline_matrix(count: int, new_count: int) -> np.ndarray:
    """[new_count, count] float64: what each voxel of an axis gives to those of the new one."""
    # The reciprocal of a quotient, not the quotient: skimage's rounding.
    factor = 1 / (count / new_count)
    each = [
        ndimage.zoom(voxel, factor, order=IMAGE_ORDER, mode="nearest", grid_mode=True)
        for voxel in np.eye(count)
    ]
    return np.stack(each, axis=1)
