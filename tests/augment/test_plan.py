"""The plan: nnU-Net's sizes and angles, and what it refuses."""

import math

import pytest

from jaxmamba3d.augment import AugmentationPlan


@pytest.mark.parametrize(
    ("patch_size", "initial", "slice_by_slice"),
    [
        ((128, 128, 128), (205, 205, 205), False),
        ((40, 56, 40), (73, 80, 64), False),
        ((48, 144, 144), (133, 231, 174), False),
        ((14, 256, 224), (14, 301, 301), True),
        ((48, 192, 192), (48, 225, 225), True),
        ((96, 160, 160), (191, 257, 219), False),
        ((160, 20, 20), (188, 73, 114), False),
    ],
)
def test_initial_patch_is_nnunets(patch_size, initial, slice_by_slice):
    plan = AugmentationPlan.for_patches(patch_size)
    assert plan.initial_patch_size == initial
    assert plan.slice_by_slice == slice_by_slice
    assert math.degrees(plan.largest_angle) == pytest.approx(180 if slice_by_slice else 30)


def test_slices_lie_along_the_first_axis():
    """Where another one is short, patches turn about all axes, as in nnU-Net."""
    assert not AugmentationPlan((160, 160, 40)).slice_by_slice


def test_channels_normalised_inside_the_body_are_masked():
    plan = AugmentationPlan.for_patches([8, 8, 8], [True, False, True], mirror_axes=[1])
    assert plan.masked_channels == (0, 2)
    assert plan.mirror_axes == (1,)
    for others in (((8, 8, 8), (1,), (0, 2)), ([8, 8, 8], [1], [0, 2])):
        assert hash(plan) == hash(AugmentationPlan(*others))


def test_patches_that_do_not_turn_come_as_they_are():
    assert AugmentationPlan((8, 9, 10), rotate_and_scale=False).initial_patch_size == (8, 9, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": (8, 8)}, r"patch_size must be three sizes, .*, got \(8, 8\)"),
        ({"patch_size": (8, 0, 8)}, "patch_size must be"),
        ({"mirror_axes": (0, 3)}, "mirror_axes must be different axes out of 0, 1, 2"),
        ({"mirror_axes": (1, 1)}, "mirror_axes must be"),
        ({"masked_channels": (-1,)}, "masked_channels must be whole numbers >= 0"),
        ({"masked_channels": (0.5,)}, "masked_channels must be whole numbers >= 0"),
    ],
)
def test_wrong_plans_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentationPlan(**{"patch_size": (8, 8, 8)} | fields)
