"""Each effect alone: all are there, each changes what it should."""

import numpy as np

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
