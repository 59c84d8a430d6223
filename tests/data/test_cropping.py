"""The nonzero crop: box, holes, and the label -1 outside the body."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxmamba3d.data.cropping import crop_to_nonzero, mark_outside


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


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_voxels_below_zero_are_of_the_body(order):
    """As most of a CT is."""
    image = -body()[order]
    _, _, box = crop_to_nonzero(image, None)
    assert box == ((1, 6), (2, 7), (3, 9))
    np.testing.assert_array_equal(mark_outside(image, None), mark_outside(body(), None))


def test_outside_the_body_background_is_minus_one_but_labels_stay():
    whole = np.zeros((8, 9, 10), np.int16)
    whole[3, 4, 5] = 2  # in the hole
    whole[1, 2, 8] = 3  # outside the mask, inside the box
    before = whole.copy()
    image, label, _ = crop_to_nonzero(body(), whole)
    label = mark_outside(image, label)
    expected = np.zeros((5, 5, 6), np.int16)
    expected[:, :, 5] = -1
    expected[2, 2, 5] = 0  # the voxel of channel 1
    expected[2, 2, 2] = 2
    expected[0, 0, 5] = 3
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.int16
    np.testing.assert_array_equal(whole, before)


def test_filled_holes_are_background_not_outside():
    image, label, _ = crop_to_nonzero(body(), None)
    assert label is None
    label = mark_outside(image, None)
    assert label[2, 2, 2] == 0
    assert (label == -1).sum() == 5 * 5 - 1


def test_an_empty_image_is_kept_whole():
    image, _, box = crop_to_nonzero(np.zeros((1, 3, 4, 5), np.float32), None)
    assert box == ((0, 3), (0, 4), (0, 5))
    assert image.shape == (1, 3, 4, 5)
    assert (mark_outside(image, None) == -1).all()


def test_label_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="label must have shape"):
        crop_to_nonzero(body(), np.zeros((8, 9, 11), np.int16))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(1, 2),
    st.floats(0.02, 0.98),
    st.booleans(),
)
def test_box_and_holes_are_those_of_the_whole_volume_s_mask(seed, shape, channels, density, labelled):
    """The definition fills holes first and crops then; cropping first must not change anything."""
    rng = np.random.default_rng(seed)
    image = (rng.random((channels, *shape)) < density).astype(np.float32)
    label = rng.integers(0, 2, shape).astype(np.uint8) if labelled else None
    mask = ndimage.binary_fill_holes(image.any(axis=0))
    found = ndimage.find_objects(mask.astype(int))
    inside = found[0] if found else tuple(slice(0, size) for size in shape)
    expected = np.zeros(shape, np.int16) if label is None else label.astype(np.int16)
    expected[(expected == 0) & ~mask] = -1

    cropped, label, box = crop_to_nonzero(image, label)
    assert box == tuple((side.start, side.stop) for side in inside)
    np.testing.assert_array_equal(cropped, image[:, *inside])
    np.testing.assert_array_equal(mark_outside(cropped, label), expected[inside])
