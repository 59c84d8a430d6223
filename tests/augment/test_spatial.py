"""Rotation, scaling and crop, against batchgeneratorsv2's results and against scipy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import golden_arrays
from scipy import ndimage
from tolerances import assert_close, rounding

from jaxmamba3d.augment.interpolation import resample_affine
from jaxmamba3d.augment.spatial import affine_matrix, central_crop

RECORDED = golden_arrays("nnunet/augmentation.npz")
resample = jax.jit(resample_affine, static_argnums=3, static_argnames="within_slices")


def points_of(matrix, size, shape):
    """[3, *size] in float64: where the affine map puts the voxels of the patch."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    return np.tensordot(np.asarray(matrix, np.float64), grid, 1) + centre


def moved(name):
    """Our image and label, the recorded ones, and the points [3, X, Y, Z] that were sampled."""
    image, label, moved_image, moved_label, angles, scale = (
        RECORDED[f"{name}/{field}"]
        for field in ("image", "label", "moved_image", "moved_label", "angles", "scale")
    )
    within_slices = name == "in_plane"
    matrix = affine_matrix(jnp.asarray(angles), jnp.array([1 if within_slices else scale, scale, scale]))
    own = resample(image, label, matrix, moved_label.shape, within_slices=within_slices)
    return *own, moved_image, moved_label, points_of(matrix, moved_label.shape, label.shape)


@pytest.mark.parametrize("name", ["turned", "shrunk", "enlarged", "in_plane"])
def test_turning_and_scaling_are_batchgenerators(name):
    image, label, recorded_image, recorded_label, points = moved(name)
    assert image.dtype == jnp.float32
    assert label.dtype == recorded_label.dtype
    # Coordinates of up to 20 voxels carry the rounding of that number.
    assert_close(image, recorded_image, 20 * rounding("float32", 8), name)
    differs = np.asarray(label) != recorded_label
    # Their border is off by less than a voxel (see `resample_affine`); ours is where the last voxels are.
    last = np.array(RECORDED[f"{name}/label"].shape).reshape(3, 1, 1, 1) - 1
    beyond = np.maximum(-points, points - last).max(0)
    assert np.all((beyond[differs] > 0) & (beyond[differs] < 1))
    np.testing.assert_array_equal(np.asarray(label)[beyond > 1e-4], -1)
    assert np.mean(differs) < 0.01


def test_crop_is_batchgenerators():
    for field in ("image", "label"):
        recorded = RECORDED[f"cropped/moved_{field}"]
        np.testing.assert_array_equal(
            central_crop(RECORDED[f"cropped/{field}"], recorded.shape[:3]), recorded
        )


def test_interpolation_is_scipys():
    random = np.random.default_rng(0)
    volume, size = random.standard_normal((9, 14, 11)), (6, 7, 8)
    matrix = affine_matrix(jnp.array([0.4, -0.3, 0.2]), jnp.full(3, 1.3))
    label = random.integers(0, 4, volume.shape).astype(np.int16)
    image, voted = resample(volume[..., None].astype(np.float32), label, matrix, size)
    points = points_of(matrix, size, volume.shape)
    inside = np.all((points >= 0) & (points <= np.array(volume.shape).reshape(3, 1, 1, 1) - 1), axis=0)
    expected = ndimage.map_coordinates(volume, points, order=1, mode="grid-constant")
    assert_close(image[..., 0], expected, 20 * rounding("float32", 8))
    weights = [ndimage.map_coordinates((label == n).astype(np.float64), points, order=1) for n in range(4)]
    first, second = np.sort(weights, axis=0)[:-3:-1]
    np.testing.assert_array_equal(
        np.asarray(voted)[inside & (first > second + 1e-5)],
        np.argmax(weights, axis=0)[inside & (first > second + 1e-5)],
    )
    np.testing.assert_array_equal(np.asarray(voted)[~inside], -1)


def test_of_equal_labels_the_lowest_wins():
    label = np.array([3, 1, 3, 2], np.int16).reshape(1, 1, 4)
    matrix = jnp.diag(jnp.array([1.0, 1.0, 0.5]))
    # The points 0.75, 1.25, 1.75, 2.25 and, shifted to between voxels, 0.5, 1.5 and 2.5.
    _, voted = resample(label[..., None].astype(np.float32), label, matrix, (1, 1, 4))
    np.testing.assert_array_equal(np.ravel(voted), [1, 1, 3, 3])
    _, tied = resample(label[..., None].astype(np.float32), label, jnp.eye(3), (1, 1, 3))
    np.testing.assert_array_equal(np.ravel(tied), [1, 1, 2])


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


def test_memory_is_a_plane_at_a_time():
    shape = (40, 40, 40)
    image, label = jnp.zeros((*shape, 1)), jnp.zeros(shape, jnp.int16)
    compiled = resample.lower(image, label, jnp.eye(3), (32, 32, 32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * image.nbytes
