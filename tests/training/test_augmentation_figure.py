"""The picture of the augmentation: a panel a patch, wrong patches refused."""

import numpy as np
import pytest
from matplotlib.image import imread

from jaxmamba3d.training.augmentation_figure import augmentation_figure

IMAGE = np.random.default_rng(0).standard_normal((4, 12, 18, 2)).astype(np.float32)
LABEL = np.zeros((4, 12, 18), np.int16)
LABEL[2, 3:8, 4:9] = 2


def test_every_patch_gets_a_panel(tmp_path):
    sizes = []
    for count in (1, 2, 3, 5):
        path = tmp_path / f"{count}.png"
        patches = {f"patch {n}": (IMAGE, LABEL) for n in range(count)}
        augmentation_figure(patches, path, spacing=(5, 1, 1.5), channel=1, columns=3)
        sizes.append(imread(path).shape[:2])
    heights, widths = zip(*sizes, strict=True)
    assert heights[0] == heights[1] == heights[2] < heights[3]
    assert widths[0] < widths[1] < widths[2] == widths[3]
    pixels = imread(path)[..., :3].reshape(-1, 3)
    assert (np.ptp(pixels, axis=1) > 0.3).any(), "the outline of label 2 is coloured"


def test_wrong_patches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="patches must be at least one patch, got none"):
        augmentation_figure({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="the label of 'b' must have shape"):
        augmentation_figure({"a": (IMAGE, LABEL), "b": (IMAGE, LABEL[1:])}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="channel must be below 2, got 2"):
        augmentation_figure({"a": (IMAGE, LABEL)}, tmp_path / "a.png", channel=2)
