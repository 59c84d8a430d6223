"""Each effect on intensities, against batchgeneratorsv2's results and against numpy and scipy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import golden_arrays
from scipy import ndimage
from tolerances import assert_close, rounding

from jaxmamba3d.augment.blur import blur
from jaxmamba3d.augment.intensity import apply_gamma, apply_inverted_gamma, brighten, change_contrast
from jaxmamba3d.augment.noise import add_noise
from jaxmamba3d.augment.resolution import lower_resolution

RECORDED = golden_arrays("nnunet/augmentation.npz")
VOLUME = RECORDED["volume"]

jitted_blur = jax.jit(blur)
EFFECTS = {
    "blur": lambda volume, sigma: jitted_blur(volume, jnp.array([sigma, 0.7, 0.97])),
    "contrast": jax.jit(change_contrast),
    "gamma": jax.jit(apply_gamma),
    "inverted_gamma": jax.jit(apply_inverted_gamma),
    "low_resolution": jax.jit(lower_resolution),
    "low_resolution_in_plane": jax.jit(functools.partial(lower_resolution, within_slices=True)),
}
CASES = [tuple(key.split("/")) for key in RECORDED if key.split("/")[0] in EFFECTS]


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_effects_are_batchgenerators(name, strength):
    changed = EFFECTS[name](VOLUME, jnp.float32(strength))
    assert changed.dtype == jnp.float32
    assert_close(changed, RECORDED[f"{name}/{strength}"], rounding("float32", 32), name)


@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.8, 0.95])
def test_blur_is_scipys_with_the_same_truncation(sigma):
    expected = VOLUME.astype(np.float64)
    for axis, own in enumerate((sigma, 0.7, 0.97)):
        radius = int(3 * own + 0.25)
        expected = ndimage.gaussian_filter1d(expected, own, axis, mode="mirror", radius=radius)
    assert_close(EFFECTS["blur"](VOLUME, sigma), expected, rounding("float32", 21))


def test_axes_of_deviation_0_are_not_blurred():
    expected = ndimage.gaussian_filter1d(VOLUME.astype(np.float64), 0.8, 1, mode="mirror", radius=2)
    assert_close(jitted_blur(VOLUME, jnp.array([0, 0.8, 0])), expected, rounding("float32", 7))


def test_low_resolution_keeps_the_nearest_voxels_and_interpolates():
    line = np.arange(8.0, dtype=np.float32).reshape(1, 1, 8) ** 2
    # Of 8 voxels in 4 places the exact middles 1, 3, 5, 7 are taken (ties go up), at 0.5, 2.5, 4.5, 6.5.
    kept = np.array([1.0, 9.0, 25.0, 49.0])
    expected = np.interp(np.arange(8), [0.5, 2.5, 4.5, 6.5], kept)
    assert_close(EFFECTS["low_resolution"](line, 0.5)[0, 0], expected, rounding("float32", 2))


def test_gamma_keeps_mean_and_deviation():
    for name in ("gamma", "inverted_gamma"):
        changed = np.asarray(EFFECTS[name](VOLUME, 0.7), np.float64)
        assert abs(changed.mean() - VOLUME.mean()) < 1e-5
        assert changed.std() == pytest.approx(VOLUME.std(), rel=1e-5)
        assert np.abs(changed - VOLUME).max() > 0.1


def test_brightness_is_a_factor():
    np.testing.assert_array_equal(brighten(VOLUME, np.float32(0.8)), VOLUME * np.float32(0.8))


@pytest.mark.parametrize("effect", [change_contrast, apply_gamma, apply_inverted_gamma])
def test_a_constant_volume_stays(effect):
    flat = np.full((4, 4, 4), 2.5, np.float32)  # of 64 voxels, whose mean is exact and whose deviation is 0
    np.testing.assert_allclose(effect(flat, 1.3), flat, rtol=1e-6)


def test_strengths_of_untouched_channels_change_nothing():
    np.testing.assert_array_equal(jitted_blur(VOLUME, jnp.zeros(3)), VOLUME)
    np.testing.assert_array_equal(EFFECTS["low_resolution"](VOLUME, 1.0), VOLUME)


def test_noise_is_normal_and_independent():
    flat = jnp.full((20, 30, 40), 3.0)
    noise = add_noise(flat, jax.random.key(0), 0.05) - flat
    voxels = noise.size
    assert abs(float(noise.mean())) < 4 * 0.05 / np.sqrt(voxels)
    assert float(noise.std()) == pytest.approx(0.05, rel=4 / np.sqrt(2 * voxels))
    for axis in range(3):
        neighbours = np.corrcoef(np.ravel(noise), np.ravel(np.roll(noise, 1, axis)))[0, 1]
        assert abs(neighbours) < 4 / np.sqrt(voxels)
    assert np.abs(add_noise(flat, jax.random.key(1), 0.05) - flat - noise).max() > 0.05
