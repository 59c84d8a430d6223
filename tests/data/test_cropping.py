"""The nonzero crop: box, holes, and the label -1 outside the body."""

import numpy as np
import pytest

from jaxmamba3d.data.cropping import crop_to_nonzero


def body() -> np.ndarray:
    """[2, 8, 9, 10]: a cube in channel 0 with a hole, one voxel beside it in channel 1."""
    image = np.zeros((2, 8, 9, 10), np.float32)
    image[0, 1:6, 2:7, 3:8] = 5
    image[0, 3, 4, 5] = 0
    image[1, 3, 4, 8] = -1
    return image


def test_box_holds_every_channel():
    image, label, box = crop_to_nonzero(body(), np.zeros((8, 9, 10), np.int16))
    assert box == ((1, 6), (2, 7), (3, 9))
    assert image.shape == (2, 5, 5, 6)
    assert label.shape == (5, 5, 6)
    np.testing.assert_array_equal(image, body()[:, 1:6, 2:7, 3:9])


def test_outside_the_body_background_is_minus_one_but_labels_stay():
    whole = np.zeros((8, 9, 10), np.int16)
    whole[3, 4, 5] = 2  # in the hole
    whole[1, 2, 8] = 3  # outside the mask, inside the box
    before = whole.copy()
    _, label, _ = crop_to_nonzero(body(), whole)
    expected = np.zeros((5, 5, 6), np.int16)
    expected[:, :, 5] = -1
    expected[2, 2, 5] = 0  # the voxel of channel 1
    expected[2, 2, 2] = 2
    expected[0, 0, 5] = 3
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.int16
    np.testing.assert_array_equal(whole, before)


def test_filled_holes_are_background_not_outside():
    _, label, _ = crop_to_nonzero(body(), None)
    assert label[2, 2, 2] == 0
    assert (label == -1).sum() == 5 * 5 - 1


def test_an_empty_image_is_kept_whole():
    image, label, box = crop_to_nonzero(np.zeros((1, 3, 4, 5), np.float32), None)
    assert box == ((0, 3), (0, 4), (0, 5))
    assert image.shape == (1, 3, 4, 5)
    assert (label == -1).all()


def test_label_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="label must have shape"):
        crop_to_nonzero(body(), np.zeros((8, 9, 11), np.int16))
