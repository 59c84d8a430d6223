"""Rotation, scaling and crop, against batchgeneratorsv2's results and against scipy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import golden_arrays
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tolerances import assert_close, rounding

from jaxmamba3d.augment.interpolation import (
    _majority,
    _resample,
    read_in_pairs,
    read_one_by_one,
    resample_affine,
)
from jaxmamba3d.augment.spatial import affine_matrix, central_crop
from jaxmamba3d.labels import OUTSIDE

RECORDED = golden_arrays("nnunet/augmentation.npz")
resample = jax.jit(resample_affine, static_argnums=3, static_argnames="within_slices")


def points_of(matrix, size, shape):
    """[3, *size] in float64: where the affine map puts the voxels of the patch."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    return np.tensordot(np.asarray(matrix, np.float64), grid, 1) + centre


def weights_of(label, points):
    """[labels, *size] in float64: sums of the weights of linear interpolation, from OUTSIDE up."""
    padded = np.pad(label, 1, constant_values=OUTSIDE)
    return [
        ndimage.map_coordinates((padded == n).astype(np.float64), points + 1, order=1, cval=n == OUTSIDE)
        for n in range(OUTSIDE, label.max() + 1)
    ]


def moved(name):
    """Our image and label, the recorded ones, and the weights of the labels."""
    image, label, moved_image, moved_label, angles, scale = (
        RECORDED[f"{name}/{field}"]
        for field in ("image", "label", "moved_image", "moved_label", "angles", "scale")
    )
    within_slices = name == "in_plane"
    matrix = affine_matrix(jnp.asarray(angles), jnp.array([1 if within_slices else scale, scale, scale]))
    own = resample(image, label, matrix, moved_label.shape, within_slices=within_slices)
    points = points_of(matrix, moved_label.shape, label.shape)
    return *own, moved_image, moved_label, weights_of(label, points)


@pytest.mark.parametrize("name", ["turned", "shrunk", "enlarged", "in_plane"])
def test_turning_and_scaling_are_batchgenerators(name):
    image, label, recorded_image, recorded_label, weights = moved(name)
    assert image.dtype == jnp.float32
    assert label.dtype == recorded_label.dtype
    # Coordinates of up to 20 voxels carry the rounding of that number.
    assert_close(image, recorded_image, 20 * rounding("float32", 8), name)
    # It compares sums of weights as float16, in which more are equal.
    first, second = np.sort(weights, axis=0)[:-3:-1]
    clear = first > second + 1e-3
    assert np.mean(clear) > 0.9
    np.testing.assert_array_equal(np.asarray(label)[clear], recorded_label[clear])
    assert (recorded_label == OUTSIDE).any()


def test_crop_is_batchgenerators():
    for field in ("image", "label"):
        recorded = RECORDED[f"cropped/moved_{field}"]
        np.testing.assert_array_equal(
            central_crop(RECORDED[f"cropped/{field}"], recorded.shape[:3]), recorded
        )


@pytest.mark.parametrize(("length", "size", "start"), [(10, 4, 3), (10, 5, 3), (11, 4, 3), (11, 5, 3)])
def test_the_middle_of_odd_and_even_lengths_is_by_whole_halves(length, size, start):
    line = np.arange(length).reshape(1, length, 1)
    np.testing.assert_array_equal(np.ravel(central_crop(line, (1, size, 1))), np.arange(start, start + size))


def test_a_patch_is_scaled_before_it_turns_about_x_y_and_z():
    angles, scales = [0.4, -0.3, 0.2], [1.0, 1.3, 0.8]
    expected = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(scales)
    found = affine_matrix(jnp.array(angles), jnp.array(scales))
    assert_close(found, expected, rounding("float32", 9))


def test_interpolation_is_scipys():
    random = np.random.default_rng(0)
    volume, size = random.standard_normal((9, 14, 11)), (6, 7, 8)
    matrix = affine_matrix(jnp.array([0.4, -0.3, 0.2]), jnp.full(3, 1.3))
    label = random.integers(0, 4, volume.shape).astype(np.int16)
    image, voted = resample(volume[..., None].astype(np.float32), label, matrix, size)
    points = points_of(matrix, size, volume.shape)
    expected = ndimage.map_coordinates(volume, points, order=1, mode="grid-constant")
    assert_close(image[..., 0], expected, 20 * rounding("float32", 8))
    weights = weights_of(label, points)
    first, second = np.sort(weights, axis=0)[:-3:-1]
    clear = first > second + 1e-5
    np.testing.assert_array_equal(np.asarray(voted)[clear], OUTSIDE + np.argmax(weights, axis=0)[clear])
    assert (np.asarray(voted) == OUTSIDE).any()


def test_of_equal_labels_the_nearest_wins_or_else_the_lowest():
    label = np.array([3, 1, 3, 2], np.int16).reshape(1, 1, 4)
    matrix = jnp.diag(jnp.array([1.0, 1.0, 0.5]))
    # The points 0.75, 1.25, 1.75, 2.25 and, shifted to between voxels, 0.5, 1.5 and 2.5.
    _, voted = resample(label[..., None].astype(np.float32), label, matrix, (1, 1, 4))
    np.testing.assert_array_equal(np.ravel(voted), [1, 1, 3, 3])
    votes = [(jnp.float32(0.25), jnp.int16(n)) for n in (3, 2, 3, 2)]
    for nearest, winner in ((3, 3), (2, 2), (7, 2)):
        assert int(_majority(votes, jnp.int16(nearest))) == winner


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_are_exact(axis):
    volume = np.random.default_rng(1).standard_normal((5, 5, 5, 1)).astype(np.float32)
    angles = np.zeros(3, np.float32)
    angles[axis] = np.pi / 2
    label = np.rint(volume[..., 0]).astype(np.int16)
    matrix = jnp.round(affine_matrix(jnp.asarray(angles), jnp.ones(3)))
    image, turned = resample(volume, label, matrix, (5, 5, 5))
    plane = [a for a in range(3) if a != axis]
    # About Y the planes' orientation is Z, X.
    expected = np.rot90(volume, -1 if axis != 1 else 1, plane)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(turned, np.rint(expected[..., 0]))


def test_scales_above_one_make_objects_smaller():
    volume = np.zeros((12, 12, 12, 1), np.float32)
    volume[3:9, 3:9, 3:9] = 1
    label = volume[..., 0].astype(np.int16)
    voxels = [
        int(jnp.sum(resample(volume, label, jnp.eye(3) * scale, (12, 12, 12))[1] == 1))
        for scale in (0.75, 1.0, 1.5)
    ]
    assert voxels == [8**3, 6**3, 4**3]


@pytest.mark.parametrize("within_slices", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_neighbours_in_pairs_are_those_one_by_one(channels, within_slices):
    """The form for TPUs, also where points lie beyond the volume."""
    random = np.random.default_rng(0)
    shape = (10, 12, 14)
    size = (shape[0] if within_slices else 9, 11, 12)
    image = random.standard_normal((*shape, channels)).astype(np.float32)
    label = random.integers(OUTSIDE, 4, shape).astype(np.int16)
    angles = np.array([0.5, 0, 0] if within_slices else [0.5, 0.2, -0.4], np.float32)
    matrix = affine_matrix(jnp.asarray(angles), jnp.array([1, 1.4, 1.4]))

    def moved_by(read):
        options = {"size": size, "within_slices": within_slices, "read": read}
        return jax.jit(functools.partial(_resample, **options))(image, label, matrix)

    for found, expected in zip(moved_by(read_in_pairs), moved_by(read_one_by_one), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert 0.1 < np.mean(expected == OUTSIDE) < 0.9


def test_memory_is_a_plane_at_a_time():
    shape = (40, 40, 40)
    image, label = jnp.zeros((*shape, 1)), jnp.zeros(shape, jnp.int16)
    compiled = resample.lower(image, label, jnp.eye(3), (32, 32, 32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * image.nbytes
