"""The whole augmentation: one sample at a time, image and label together, the same wherever it runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tolerances import assert_close, rounding

from jaxmamba3d.augment import AugmentationPlan, augment
from jaxmamba3d.augment.pipeline import EFFECTS, draw, intensity_changes
from jaxmamba3d.augment.spatial import central_crop, place

BATCH = 16
PLAN = AugmentationPlan((8, 10, 9), masked_channels=(1,))
GEOMETRY = dataclasses.replace(PLAN, vary_intensities=False)
jitted = jax.jit(augment, static_argnames=("plan", "batch_axes"))


def body(plan=PLAN, batch=BATCH):
    """Images [B, ..., 2] of noise, labels with a ball of 1 in a body of 0; -1 around it."""
    size = plan.initial_patch_size
    random = np.random.default_rng(0)
    image = random.standard_normal((batch, *size, 2)).astype(np.float32)
    centre = random.uniform(0.35, 0.65, (batch, 3)) * size
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    distance = np.linalg.norm(grid - centre[:, None, None, None], axis=-1)
    label = np.where(distance < 3, 1, np.where(distance < 6, 0, -1)).astype(np.int16)
    border = np.ones(size, bool)
    border[1:-1, 1:-1, 1:-1] = False
    label[:, border] = -1
    return image, label


@functools.cache
def drawn(plan=PLAN, batch=BATCH, seed=0):
    """What is drawn for each sample of `augment` with this key."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))
    return jax.jit(jax.vmap(functools.partial(draw, channels=2, plan=plan)))(keys)


@functools.cache
def augmented():
    return jax.device_get(jitted(jax.random.key(0), *body(), plan=PLAN))


def test_result_is_a_patch_for_the_net():
    image, label = augmented()
    assert image.shape == (BATCH, *PLAN.patch_size, 2)
    assert image.dtype == np.float32
    assert label.dtype == np.int16
    assert set(np.unique(label)) == {0, 1}
    assert np.isfinite(image).all()


def test_a_sample_depends_on_key_and_position_alone():
    image, label = body()
    few = jitted(jax.random.key(0), image[:8], label[:8], plan=PLAN)
    for part, whole in zip(few, augmented(), strict=True):
        np.testing.assert_array_equal(part, whole[:8])
    other = jitted(jax.random.key(1), image[:8], label[:8], plan=PLAN)
    assert not any(np.array_equal(a, b) for a, b in zip(few[0], other[0], strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_numbers_are_64_bits_wide_all_is_float32(dtype):
    image, label = body(batch=2)
    with jax.enable_x64(True):
        augmenting = functools.partial(augment, plan=PLAN)
        moved = jax.eval_shape(augmenting, jax.random.key(0), image.astype(dtype), label)
    assert [x.dtype for x in moved] == [np.float32, np.int16]


def test_eight_devices_give_the_same_bits():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    parts = jax.device_put(body(), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        lowered = jitted.lower(jax.random.key(0), *parts, plan=PLAN, batch_axes=("data",)).compile()
        results = lowered(jax.random.key(0), *parts)
    assert "all-gather" not in lowered.as_text()
    for result, expected in zip(results, augmented(), strict=True):
        assert result.sharding.shard_shape(result.shape)[0] == BATCH // 8
        np.testing.assert_array_equal(result, expected)


def test_labels_and_images_move_together():
    _, label = body()
    image = (label == 1)[..., None].repeat(2, axis=-1).astype(np.float32)
    moved_image, moved_label = jitted(jax.random.key(3), image, label, plan=GEOMETRY)
    clear = np.abs(moved_image[..., 0] - 0.5) > 1e-4
    np.testing.assert_array_equal(moved_label[clear] == 1, moved_image[..., 0][clear] > 0.5)
    unmoved = central_crop(np.moveaxis(label, 0, -1), PLAN.patch_size)
    changed = (np.moveaxis(unmoved, -1, 0) == 1) != (moved_label == 1)
    assert changed.any(axis=(1, 2, 3)).sum() > BATCH // 2


def test_masked_channels_are_zero_outside_the_body():
    _, label = body()
    image = np.stack([label >= 0, np.full(label.shape, 5)], -1).astype(np.float32)
    inside, masked = np.moveaxis(jitted(jax.random.key(3), image, label, plan=GEOMETRY)[0], -1, 0)
    clear = np.abs(inside - 0.5) > 1e-4
    np.testing.assert_array_equal((masked != 0)[clear], (inside > 0.5)[clear])
    assert 0.1 < (masked == 0).mean() < 0.9


def test_each_step_does_what_was_drawn_in_nnunets_order():
    image, label = body()
    draws, changes = drawn(), intensity_changes(PLAN)
    assert EFFECTS == (
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "inverted_gamma",
        "gamma",
    )
    moving = jax.jit(place, static_argnums=3)
    jitted_changes = {name: jax.jit(jax.vmap(change)) for name, change in changes.items()}
    for n in range(BATCH):
        own = jax.tree.map(lambda x, n=n: x[n], draws)
        expected, expected_label = moving(own.placement, image[n], label[n], PLAN)
        volumes = jnp.moveaxis(expected, -1, 0)
        happens = [name for name in EFFECTS if own.effects[name].applied]
        for name in happens:
            volumes = jitted_changes[name](volumes, *own.effects[name].strength)
        axes = tuple(np.flatnonzero(own.mirrored))
        volumes, expected_label = np.flip(volumes, [a + 1 for a in axes]), np.flip(expected_label, axes)
        # Without any effect the voxels come through as they are.
        tolerance = rounding("float32", 64) if happens or own.placement.moved else 0
        assert_close(augmented()[0][n, ..., 0], volumes[0], tolerance, f"sample {n}")
        masked = np.where(expected_label < 0, 0, volumes[1])
        assert_close(augmented()[0][n, ..., 1], masked, tolerance, f"sample {n}, masked")
        np.testing.assert_array_equal(augmented()[1][n], np.maximum(expected_label, 0))
    assert not all(draws.placement.moved)
    assert any(draws.placement.moved)


def test_flat_patches_keep_their_slices():
    plan = AugmentationPlan((3, 12, 10), mirror_axes=(), vary_intensities=False)
    image = np.zeros((BATCH, *plan.initial_patch_size, 1), np.float32)
    image += np.arange(1, 4, dtype=np.float32).reshape(1, 3, 1, 1, 1)
    label = np.broadcast_to(np.arange(3, dtype=np.int16).reshape(1, 3, 1, 1), image.shape[:4])
    moved, moved_label = jitted(jax.random.key(0), image, label, plan=plan)
    np.testing.assert_allclose(moved[:, :, 4:8, 3:7, 0], image[:, :, 4:8, 3:7, 0], rtol=1e-6)
    np.testing.assert_array_equal(moved_label[:, :, 4:8, 3:7], label[:, :, 4:8, 3:7])


def test_flat_patches_keep_their_resolution_across_slices():
    volume = np.broadcast_to(np.arange(4, dtype=np.float32).reshape(4, 1, 1), (4, 16, 16))
    flat, cube = (
        intensity_changes(AugmentationPlan((length, 16, 16)))["low_resolution"](volume, 0.5)
        for length in (4, 16)
    )
    np.testing.assert_allclose(flat, volume, rtol=1e-6)
    assert np.abs(cube - volume).max() > 0.1


def test_without_rotation_patches_come_in_their_final_size():
    plan = AugmentationPlan((4, 5, 6), mirror_axes=(1,), rotate_and_scale=False, vary_intensities=False)
    image, label = body(plan)
    mirrored, cleaned = jitted(jax.random.key(0), image, label, plan=plan)
    flipped = [not np.array_equal(a, b) for a, b in zip(mirrored, image, strict=True)]
    assert 0 < sum(flipped) < BATCH
    for n, flip in enumerate(flipped):
        np.testing.assert_array_equal(mirrored[n], np.flip(image[n], 1) if flip else image[n])
        np.testing.assert_array_equal(cleaned[n], np.maximum(np.flip(label[n], 1) if flip else label[n], 0))


def test_wrong_arrays_are_refused():
    image, label = body()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"image must have shape \[B, \*initial_patch_size, C\]"):
        augment(key, image[:, 1:], label, PLAN)
    with pytest.raises(ValueError, match=r"label must have shape"):
        augment(key, image, label[:4], PLAN)
    with pytest.raises(ValueError, match=r"plan\.masked_channels must be below the image's 1 channels"):
        augment(key, image[..., :1], label, PLAN)
    with pytest.raises(ValueError, match="label must be signed integers, got uint8"):
        augment(key, image, label.astype(np.uint8), PLAN)
