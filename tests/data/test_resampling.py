"""The rules of resampling one by one; test_preprocessing.py and test_export.py compare whole cases."""

import platform

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxmamba3d.data.resampling import (
    IMAGE_ORDER,
    resample_image,
    resample_label,
    resampled_shape,
    separate_axis,
)
from jaxmamba3d.data.voting import vote


@pytest.mark.parametrize(
    ("shape", "spacing", "new", "expected"),
    [
        ((10, 20, 30), (1, 1, 1), (1, 1, 1), (10, 20, 30)),
        ((10, 20, 30), (3, 1, 0.5), (1, 2, 1), (30, 10, 15)),
        ((5, 7, 9), (1, 1, 1), (2, 2, 2), (2, 4, 4)),  # 2.5, 3.5 and 4.5: halves go to even
    ],
)
def test_new_shape(shape, spacing, new, expected):
    assert resampled_shape(shape, spacing, new) == expected


@pytest.mark.parametrize(
    ("spacing", "new", "axis"),
    [
        ((1, 1, 1), (1, 1, 2.9), None),
        ((3, 1, 1), (1, 1, 1), None),  # exactly 3 is not more than 3
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 1, 4), 2),
        ((1, 5, 1), (1, 1, 9), 1),  # the current spacing is asked first
        ((0.2, 1, 1), (1, 1, 4), None),  # two coarsest axes: the new spacing is not asked any more
    ],
)
def test_separate_axis(spacing, new, axis):
    assert separate_axis(spacing, new) == axis


def test_equal_shapes_are_untouched():
    volume = np.random.default_rng(0).random((4, 5, 6), np.float32)
    assert resample_image(volume, volume.shape, 0) is volume
    label = (volume > 0.5).astype(np.int16)
    assert resample_label(label, label.shape, None) is label


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_volumes_are_only_read(axis):
    volume = np.random.default_rng(0).random((4, 5, 6), np.float32)
    volume.flags.writeable = False
    shape = tuple(n + 2 if a == axis else n for a, n in enumerate(volume.shape))
    resampled = resample_image(volume, (7, 5, 6) if axis is None else shape, axis)
    assert not np.shares_memory(resampled, volume)


def test_cubic_overshoot_is_clipped_to_the_volume():
    step = np.zeros((8, 8, 8), np.float32)
    step[4:] = 1
    resampled = resample_image(step, (13, 13, 13), None)
    assert resampled.min() == 0
    assert resampled.max() == 1
    assert ((resampled > 0) & (resampled < 1)).any()


def test_separate_z_clips_each_slice_by_itself():
    volume = np.zeros((2, 8, 8), np.float32)
    volume[0, 4:], volume[1, 4:] = 1, 10
    resampled = resample_image(volume, (4, 13, 13), 0)
    np.testing.assert_array_equal(resampled.max(axis=(1, 2)), [1, 1, 10, 10])


@pytest.mark.parametrize(
    ("count", "new_count", "expected"),
    [
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (6, 3, [1, 3, 5]),  # centres 0.5, 2.5, 4.5: halves go up
        (4, 5, [0, 1, 2, 2, 3]),  # centres -0.1, 0.7, 1.5, 2.3, 3.1
        (5, 4, [0, 1, 3, 4]),  # centres 0.125, 1.375, 2.625, 3.875
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_repeated_or_dropped(count, new_count, expected, axis):
    slices = np.arange(count, dtype=np.float32)[:, None, None] * np.ones((1, 3, 4), np.float32)
    volume = np.moveaxis(slices, 0, axis)
    shape = tuple(new_count if a == axis else n for a, n in enumerate(volume.shape))
    resampled = np.moveaxis(resample_image(volume, shape, axis), axis, 0)
    np.testing.assert_allclose(resampled, np.broadcast_to(np.array(expected)[:, None, None], resampled.shape))
    labels = np.moveaxis(resample_label(volume.astype(np.int16), shape, axis), axis, 0)
    np.testing.assert_array_equal(labels[:, 0, 0], expected)
    assert labels.dtype == np.int16


def test_labels_are_voted_on_not_averaged():
    label = np.zeros((6, 6, 6), np.int16)
    label[3:] = 4
    resampled = resample_label(label, (9, 6, 6), None)
    assert set(np.unique(resampled)) == {0, 4}
    # Centres 2/3 (i + 0.5) - 0.5; i = 4 lies exactly between voxels 2 and 3.
    np.testing.assert_array_equal(resampled[:, 0, 0], [0, 0, 0, 0, resampled[4, 0, 0], 4, 4, 4, 4])


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 0), (-1, 2), (2, -1)])
def test_a_tie_goes_to_the_nearest_neighbour(low, high):
    """Halving an even axis puts centres between two voxels; nearest rounds up, so the upper label wins."""
    label = np.full((4, 4, 4), low, np.int16)
    label[1::2] = high
    np.testing.assert_array_equal(resample_label(label, (2, 4, 4), None), np.full((2, 4, 4), high))


def test_a_tie_without_the_nearest_neighbour_goes_to_the_smallest():
    """The mean of eight voxels: 5 and 6 three times each, the nearest neighbour's label 9 only twice."""
    label = np.array([[[5, 5], [5, 6]], [[6, 6], [9, 9]]], np.int16)
    assert resample_label(label, (1, 1, 1), None).item() == 5


def zoomed(array, shape, order):
    factors = [1 / (old / new) for old, new in zip(array.shape, shape, strict=True)]
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


SIZES = st.integers(1, 12)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="elsewhere compilers may fuse scipy's multiplications and additions, which decides ties",
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=3),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_votes_are_those_of_every_label_on_the_whole_volume(seed, sizes, labels, blocks):
    """The definition: zoom each indicator, go over the labels upwards, a tie goes to the nearest one's."""
    shape, new_shape = zip(*sizes, strict=True)
    label = np.random.default_rng(seed).integers(-1, labels, shape).astype(np.int16)
    label = np.repeat(label, blocks, axis=0)[: shape[0]]
    nearest = zoomed(label, new_shape, 0) if shape != new_shape else label
    winner, most = np.full(new_shape, label.min()), zoomed(label == label.min(), new_shape, 1)
    for value in np.unique(label)[1:]:
        votes = zoomed(label == value, new_shape, 1)
        wins = (votes > most) | ((votes == most) & (nearest == value))
        winner[wins], most[wins] = value, votes[wins]
    np.testing.assert_array_equal(vote(label, new_shape), winner)


@pytest.mark.parametrize(("dtype", "last_bits"), [(np.float32, 1), (np.float64, 32)])
@pytest.mark.parametrize("shape", [(7, 13, 10), (9, 16, 7), (1, 1, 1)])
def test_images_are_those_of_scipy_rounded_once(dtype, last_bits, shape):
    volume = np.random.default_rng(0).normal(0, 100, (9, 8, 7)).astype(dtype)
    expected = zoomed(volume, shape, IMAGE_ORDER)
    expected = np.clip(expected, volume.min(), volume.max()).astype(dtype)
    found = resample_image(volume, shape, None)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=last_bits * np.spacing(np.abs(volume).max()))
