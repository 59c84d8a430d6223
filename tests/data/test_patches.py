"""Foreground sampling and the geometry of patches."""

import ctypes
import mmap
import os

import numpy as np
import pytest

from jaxmamba3d.data.patches import corner_bounds, cut_into, draw_corner, foreground_table, is_forced


def blocks() -> np.ndarray:
    """[40, 40, 40] int16: class 1 in 20 x 30 x 40 = 24000 voxels, class 3 in one voxel, the rest -1 and 0."""
    label = np.full((40, 40, 40), -1, np.int16)
    label[:39] = 0
    label[:20, :30] = 1
    label[30, 31, 32] = 3
    return label


def test_table_holds_voxels_of_the_class_without_repetition():
    label = blocks()
    first, third = foreground_table(label, [(1,), (2,), (3,)])
    assert first.shape == (10_000, 3)
    assert (label[tuple(first.T)] == 1).all()
    assert len(np.unique(first, axis=0)) == 10_000
    np.testing.assert_array_equal(third, [[30, 31, 32]])


def test_a_region_holds_voxels_of_all_its_labels():
    (region,) = foreground_table(blocks(), [(3, 0)])
    found = blocks()[tuple(region.T)]
    assert set(found) <= {0, 3}
    voxels = np.argwhere(np.isin(blocks(), (0, 3)))
    assert len(region) == 10_000 < len(voxels)
    # The candidates stand label by label, in the region's order: the first is the only voxel of label 3.
    order = np.random.RandomState(1234).choice(len(voxels), 10_000, replace=False)
    candidates = np.concatenate([np.argwhere(blocks() == value) for value in (3, 0)])
    np.testing.assert_array_equal(region, candidates[order])


def test_large_classes_keep_one_percent():
    label = np.ones((101, 100, 100), np.int16)
    label[100, 99, 99] = 0
    assert len(foreground_table(label, [(1,)])[0]) == 10_100


def test_classes_share_one_random_stream():
    label = np.random.default_rng(0).integers(0, 3, (9, 9, 9)).astype(np.int16)
    both, alone = foreground_table(label, [(1,), (2,)]), foreground_table(label, [(2,)])
    assert not np.array_equal(both[1], alone[0])
    assert not np.array_equal(both[1], foreground_table(label, [(2,), (1,)])[0])


@pytest.mark.parametrize(
    ("batch_size", "fraction", "forced"),
    [(2, 0.33, 1), (9, 0.33, 3), (1, 0.33, 0), (4, 0, 0), (4, 1, 4), (5, 0.5, 3), (3, 0.5, 1)],
)
def test_the_last_samples_are_forced(batch_size, fraction, forced):
    found = [is_forced(j, batch_size, fraction) for j in range(batch_size)]
    assert found == [False] * (batch_size - forced) + [True] * forced


@pytest.mark.parametrize(
    ("size", "patch", "final", "lowest", "highest"),
    [
        (50, 40, 40, 0, 10),
        (40, 40, 40, 0, 0),
        (35, 40, 40, -3, -2),  # padding 5: floor(-5 / 2) and 35 + 2 + 1 - 40
        (50, 52, 40, -6, 4),  # padding 12
        (50, 51, 40, -6, 5),  # padding 11
        (35, 52, 40, -9, -8),  # padding 17, more than augmentation's 12
    ],
)
def test_corner_bounds(size, patch, final, lowest, highest):
    assert corner_bounds((size,), (patch,), (final,)) == ((lowest,), (highest,))


def test_random_corners_reach_both_bounds_uniformly():
    generator = np.random.default_rng(0)
    shape, patch, final = (12, 8, 6), (8, 8, 8), (6, 8, 8)
    lowest, highest = corner_bounds(shape, patch, final)
    assert (lowest, highest) == ((-1, 0, -1), (5, 0, -1))
    corners = np.array([draw_corner(generator, shape, patch, final, ()) for _ in range(2000)])
    np.testing.assert_array_equal(corners.min(axis=0), lowest)
    np.testing.assert_array_equal(corners.max(axis=0), highest)
    counts = np.unique(corners[:, 0], return_counts=True)[1]
    assert len(counts) == 7
    assert abs(counts - 2000 / 7).max() < 5 * np.sqrt(2000 / 7)


def test_forced_corners_centre_a_voxel():
    patch = (8, 9, 20)
    voxel = np.array([[30, 31, 4]], np.int32)
    corner = draw_corner(np.random.default_rng(0), (40, 40, 40), patch, patch, [voxel])
    # The third axis is held at the lowest corner; nothing holds the others at the highest, as in nnU-Net.
    assert corner == (26, 27, 0)
    with_room = draw_corner(np.random.default_rng(0), (40, 40, 40), (8, 9, 20), (8, 9, 16), [voxel])
    assert with_room == (26, 27, -2)
    near_the_end = draw_corner(np.random.default_rng(0), (32, 33, 40), patch, patch, [voxel])
    assert near_the_end == (26, 27, 0)
    assert all(isinstance(n, int) for n in corner)


def test_classes_are_drawn_uniformly_whatever_their_size():
    many = np.argwhere(np.ones((10, 10, 10)))
    one = np.array([[30, 30, 30]])
    generator = np.random.default_rng(0)
    corners = [draw_corner(generator, (40,) * 3, (4,) * 3, (4,) * 3, [many, one]) for _ in range(1000)]
    assert 430 < sum(corner == (28, 28, 28) for corner in corners) < 570
    assert len(set(corners)) > 250


@pytest.mark.parametrize("corner", [(0, 0, 0), (-2, 3, 1), (4, -1, -1), (7, 8, 9), (-5, 2, 3), (1, -6, -1)])
def test_cut_equals_cropping_a_padded_volume(corner):
    volume = np.random.default_rng(0).integers(1, 99, (6, 7, 8, 2))
    patch = np.zeros((4, 5, 9, 2), volume.dtype)
    padded = np.pad(volume, [(10, 10)] * 3 + [(0, 0)], constant_values=-1)
    start = [10 + low for low in corner]
    expected = padded[tuple(slice(s, s + n) for s, n in zip(start, patch.shape, strict=False))]
    cut_into(patch, volume, corner, -1)
    np.testing.assert_array_equal(patch, expected)


@pytest.mark.parametrize("corner", [(0, 0, 0), (-2, 30, 1), (60, -1, -1), (90, 80, 70), (61, 2, -900)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_cut_reads_memory_maps(tmp_path, corner, channels):
    volume = np.random.default_rng(0).integers(1, 99, (64, 90, 80, *channels), np.int16)
    np.save(tmp_path / "volume.npy", volume)
    expected, patch = np.zeros((2, 8, 40, 50, *channels), np.int16)
    cut_into(expected, volume, corner, -1)
    cut_into(patch, np.load(tmp_path / "volume.npy", mmap_mode="r"), corner, -1)
    np.testing.assert_array_equal(patch, expected)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to forget what was read of a file")
def test_cut_reads_no_more_of_a_file_than_the_pages_of_the_patch(tmp_path):
    rows = 64
    np.save(tmp_path / "volume.npy", np.zeros((8, rows, mmap.PAGESIZE), np.uint8))
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="r")
    with open(tmp_path / "volume.npy", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages_in_memory(mapped):
        pytest.skip("this file system keeps its files in memory")
    cut_into(np.empty((3, 5, 1), np.uint8), mapped, (2, 30, 0), 0)
    # A header comes first, but is shorter than a page.
    assert pages_in_memory(mapped) == [plane * rows + row for plane in (2, 3, 4) for row in range(30, 35)]


def pages_in_memory(mapped: np.memmap) -> list[int]:
    size = mapped.offset + mapped.nbytes
    flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    start = ctypes.c_void_p(mapped.ctypes.data - mapped.offset)
    assert not ctypes.CDLL(None).mincore(start, ctypes.c_size_t(size), flags.ctypes.data_as(ctypes.c_void_p))
    return np.flatnonzero(flags).tolist()
