"""Components against a flood fill from voxel to voxel."""

import itertools

import numpy as np
import pytest

from jaxmamba3d.evaluation.components import keep_largest, smaller_components


def flooded(mask):
    """The components as sets of voxels, connected by faces, edges and corners."""
    left, found = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}, []
    steps = list(itertools.product((-1, 0, 1), repeat=3))
    while left:
        border, component = [left.pop()], set()
        while border:
            voxel = border.pop()
            component.add(voxel)
            neighbours = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in steps} & left
            left -= neighbours
            border.extend(neighbours)
        found.append(component)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_smaller_components_are_those_of_a_flood_fill(seed):
    mask = np.random.default_rng(seed).random((9, 8, 10)) < 0.08
    components = flooded(mask)
    largest = max(map(len, components))
    expected = np.zeros_like(mask)
    for component in components:
        for voxel in component if len(component) < largest else ():
            expected[voxel] = True
    assert expected.any()
    np.testing.assert_array_equal(smaller_components(mask), expected)


def test_corners_connect_and_equals_stay():
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    mask[5, 5, 5:7] = True
    assert not smaller_components(mask).any()
    mask[8, 0, 0] = True
    np.testing.assert_array_equal(np.argwhere(smaller_components(mask)), [[8, 0, 0]])
    assert not smaller_components(np.zeros((3, 3, 3), bool)).any()
    assert not smaller_components(np.ones((3, 3, 3), bool)).any()


def test_where_little_lies_outside_a_mask_that_is_left_alone():
    mask = np.ones((5, 5, 5), bool)
    mask[:, 3], mask[4, 4, 4] = False, True
    smaller = smaller_components(mask)
    assert smaller[:, 4].all()
    assert not smaller[:, :4].any()
    segmentation = np.where(mask, 1, 2)
    np.testing.assert_array_equal(keep_largest(segmentation, [(1,)]), np.where(smaller, 0, segmentation))


def test_steps_follow_each_other():
    segmentation = np.zeros((1, 1, 12), np.uint8)
    segmentation[0, 0] = [1, 1, 1, 2, 0, 2, 2, 0, 0, 0, 1, 1]
    before = segmentation.copy()
    kept = keep_largest(segmentation, [(1, 2), (2,)])
    np.testing.assert_array_equal(kept[0, 0], [1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0])
    kept = keep_largest(segmentation, [(2,), (1, 2)])
    np.testing.assert_array_equal(kept[0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(segmentation, before)
    np.testing.assert_array_equal(keep_largest(segmentation, []), before)
    np.testing.assert_array_equal(keep_largest(segmentation, [(3,), (9, 4)]), before)
