"""Planes that arrive one by one give the volume that resampling at once gives."""

import numpy as np
import pytest
from scipy import ndimage
from tolerances import assert_close, rounding

from jaxmamba3d.data.planewise import PlaneResampler


def resampled(volume, shape, axis):
    resampler = PlaneResampler(volume.shape[:3], shape, axis)
    return np.stack([new for plane in volume for new in resampler.add(plane)])


def at_once(volume, shape, axis):
    """One class [X, Y, Z] by scipy, in float64; along the separate axis the nearest slices, halves up."""
    if axis is not None:
        count, new = volume.shape[axis], shape[axis]
        centres = np.floor(count / new * (np.arange(new) + 0.5)).astype(int).clip(0, count - 1)
        volume = volume.take(centres, axis)
    factors = [new / old for old, new in zip(volume.shape, shape, strict=True)]
    return ndimage.zoom(volume.astype(np.float64), factors, order=1, mode="nearest", grid_mode=True)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "new"),
    [
        ((5, 6, 7), (9, 4, 7)),
        ((9, 4, 3), (5, 8, 6)),
        ((7, 5, 6), (7, 11, 2)),
        ((1, 3, 2), (4, 1, 5)),
        ((12, 2, 2), (1, 3, 3)),
    ],
)
def test_planes_are_those_of_the_whole_volume(shape, new, axis, dtype):
    volume = np.random.default_rng(0).normal(0, 3, (*shape, 2)).astype(dtype)
    expected = [at_once(volume[..., k], new, axis) for k in range(2)]
    found = resampled(volume, new, axis)
    assert found.dtype == dtype
    # Rounded from float64 in both, which may fall on either side of a half.
    assert_close(found, np.stack(expected, -1), rounding(np.dtype(dtype).name, 1))


def test_equal_shapes_are_untouched():
    plane = np.ones((3, 4, 2), np.float16)
    (same,) = PlaneResampler((2, 3, 4), (2, 3, 4), None).add(plane)
    assert same is plane


def test_a_plane_is_given_as_soon_as_its_neighbours_are_there():
    resampler = PlaneResampler((3, 1, 1), (6, 1, 1), None)
    plane = np.ones((1, 1, 1), np.float32)
    assert [len(list(resampler.add(n * plane))) for n in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("axis", [None, 1])
def test_a_ramp_stays_a_ramp_between_voxel_centres(dtype, axis):
    """Linear interpolation on the grid of voxel centres: s (i + 0.5) - 0.5, the border repeated."""
    ramp = np.broadcast_to(np.arange(6, dtype=dtype)[:, None, None, None], (6, 4, 3, 1))
    found = resampled(ramp, (12, 8, 3), axis)[..., 0]
    assert found.dtype == dtype
    expected = np.clip(0.5 * (np.arange(12) + 0.5) - 0.5, 0, 5)
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], (12, 8, 3)), atol=1e-12)
