"""Each effect alone: all are there, each changes what it should."""

import numpy as np
import pytest

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.augment.gallery import effects_alone

INTENSITIES = ("noise", "blur", "resolution", "brightness", "contrast", "gamma", "inverted")


def test_every_effect_is_shown():
    plan = AugmentationPlan((3, 12, 10), masked_channels=(0,))
    random = np.random.default_rng(0)
    image = random.standard_normal((*plan.initial_patch_size, 1)).astype(np.float32)
    label = random.integers(-1, 3, image.shape[:3]).astype(np.int16)
    patches = {
        title: tuple(map(np.asarray, patch)) for title, patch in effects_alone(image, label, plan).items()
    }
    plain_image, plain_label = patches.pop("as it is")
    assert plain_image.shape == (*plan.patch_size, 1)
    assert {title.split()[0] for title in patches} == {"turned", "zoomed", "by", *INTENSITIES}
    for title, (changed, changed_label) in patches.items():
        assert changed.shape == plain_image.shape
        assert changed_label.min() == 0
        if title.startswith(INTENSITIES):
            np.testing.assert_array_equal(changed_label, plain_label)
        if not title.startswith("by"):
            assert np.abs(changed - plain_image).max() > 0.01, title


@pytest.mark.parametrize(("size", "degrees", "axes"), [((3, 12, 10), 60, "X"), ((12, 12, 12), 30, "XYZ")])
def test_patches_are_turned_about_their_axes_and_zoomed_as_said(size, degrees, axes):
    plan = AugmentationPlan(size, vary_intensities=False)
    image = np.stack(
        np.meshgrid(*map(np.arange, plan.initial_patch_size), indexing="ij"), -1, dtype=np.float32
    )
    patches = effects_alone(image, np.zeros(image.shape[:3], np.int16), plan)
    patches = {title: np.asarray(patch) for title, (patch, _) in patches.items()}
    plain = patches.pop("as it is")
    chance = {f"by chance, {n}" for n in range(1, 5)}
    turned = {f"turned by {degrees}° about {axis}": {"XYZ".index(axis)} for axis in axes}
    kept_by_zooms = {0} if len(axes) == 1 else set()
    zoomed = dict.fromkeys(("zoomed in, scale 0.7", "zoomed out, scale 1.4"), kept_by_zooms)
    assert patches.keys() == chance | turned.keys() | zoomed.keys()
    planes = slice(None) if plan.slice_by_slice else slice(3, -3)
    for title, kept in (turned | zoomed).items():
        moved = (patches[title] - plain)[planes, 3:-3, 3:-3]
        same = {n for n in range(3) if np.ptp(moved[..., n]) < 1e-4}
        assert same == kept, title
    spans = [np.ptp(patch[1, 3:-3, 5, 1]) for patch in (patches["zoomed in, scale 0.7"], plain)]
    assert spans[0] < spans[1]
    assert len({patches[title].tobytes() for title in chance}) > 1


def test_effects_that_are_off_are_not_shown():
    plan = AugmentationPlan((4, 5, 6), rotate_and_scale=False, vary_intensities=False)
    patches = effects_alone(np.ones((4, 5, 6, 1), np.float32), np.zeros((4, 5, 6), np.int16), plan)
    assert patches.keys() == {"as it is", *(f"by chance, {n}" for n in range(1, 5))}
