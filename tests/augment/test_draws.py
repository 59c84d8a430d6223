"""What is drawn: nnU-Net's probabilities, ranges and laws, on many samples, without any image."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from scipy.stats import kstest

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.augment.pipeline import EFFECTS, draw

SAMPLES, CHANNELS = 20_000, 2
ISOTROPIC, FLAT = AugmentationPlan((16, 16, 16)), AugmentationPlan((4, 16, 16), mirror_axes=(2,))


@functools.cache
def many(plan):
    keys = jax.random.split(jax.random.key(5), SAMPLES)
    drawn = jax.jit(jax.vmap(functools.partial(draw, channels=CHANNELS, plan=plan)))(keys)
    noise_keys, deviations = drawn.effects["noise"].strength
    assert len(np.unique(jax.random.key_data(noise_keys).reshape(-1, 2), axis=0)) == SAMPLES * CHANNELS
    assert (deviations == deviations[:, :1]).all()
    drawn.effects["noise"] = drawn.effects["noise"]._replace(strength=(deviations,))
    return jax.device_get(drawn)


def strength(name):
    """[SAMPLES, C, ...], whether the effect was applied or not."""
    return many(ISOTROPIC).effects[name].strength[0]


def assert_share(flags, probability):
    """Within four standard deviations."""
    flags = np.asarray(flags)
    deviation = math.sqrt(probability * (1 - probability) / flags.size)
    assert abs(flags.mean() - probability) < 4 * deviation


def assert_uniform(values, low, high):
    values = np.ravel(values)
    assert low <= values.min()
    assert values.max() <= high
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def assert_independent(a, b):
    """Correlated less than four standard deviations of the correlation of independent values."""
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))


@pytest.mark.parametrize(
    ("name", "probability"),
    [
        ("noise", 0.1),
        ("blur", 0.2),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("low_resolution", 0.25),
        ("inverted_gamma", 0.1),
        ("gamma", 0.3),
    ],
)
def test_effects_come_as_often_as_in_nnunet(name, probability):
    assert_share(many(ISOTROPIC).effects[name].applied, probability)


def test_effects_are_drawn_independently():
    drawn = many(ISOTROPIC)
    flags = [drawn.placement.moved, *(drawn.effects[name].applied for name in EFFECTS), *drawn.mirrored.T]
    for a, b in itertools.combinations(flags, 2):
        assert_independent(a, b)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", 0.75, 1.25),
        ("contrast", 0.75, 1.25),
        ("inverted_gamma", 0.7, 1.5),
        ("gamma", 0.7, 1.5),
    ],
)
def test_factors_are_as_often_below_one_as_above(name, low, high):
    values = strength(name)
    assert_share(values < 1, 0.5)
    assert_uniform(values[values < 1], low, 1)
    assert_uniform(values[values >= 1], 1, high)
    assert_independent(*values.T)


def test_noise_has_one_deviation_for_all_channels():
    deviations = strength("noise")
    assert_uniform(deviations[:, 0], 0, 0.1)
    np.testing.assert_array_equal(deviations[:, 0], deviations[:, 1])


def test_blur_differs_by_channel_and_axis():
    sigmas = strength("blur")
    blurred = sigmas.min(-1) > 0
    np.testing.assert_array_equal(blurred, sigmas.max(-1) > 0)
    assert_share(blurred, 0.5)
    assert_independent(*blurred.T)
    for axis in range(3):
        assert_uniform(sigmas[blurred][:, axis], 0.5, 1)
    assert_independent(*sigmas[blurred][:, :2].T)


def test_resolution_differs_by_channel():
    zooms = strength("low_resolution")
    assert_share(zooms < 1, 0.5)
    assert_uniform(zooms[zooms < 1], 0.5, 1)
    assert_independent(*(zooms < 1).T)


def test_rotation_is_about_all_axes_and_scaling_the_same_along_all():
    placement = many(ISOTROPIC).placement
    turned, scaled = placement.angles.any(-1), placement.scales[:, 0] != 1
    np.testing.assert_array_equal(placement.moved, turned | scaled)
    assert_share(turned, 0.2)
    assert_share(scaled, 0.2)
    assert_independent(turned, scaled)
    for axis in range(3):
        assert_uniform(placement.angles[turned][:, axis], -math.pi / 6, math.pi / 6)
        np.testing.assert_array_equal(placement.scales[:, axis], placement.scales[:, 0])
    assert_independent(*placement.angles[turned][:, :2].T)
    assert_uniform(placement.scales[scaled][:, 0], 0.7, 1.4)


def test_flat_patches_turn_and_scale_in_their_planes():
    placement = many(FLAT).placement
    turned = placement.angles[:, 0] != 0
    assert_share(turned, 0.2)
    assert_uniform(placement.angles[turned][:, 0], -math.pi, math.pi)
    assert not placement.angles[:, 1:].any()
    assert (placement.scales[:, 0] == 1).all()
    np.testing.assert_array_equal(placement.scales[:, 1], placement.scales[:, 2])
    assert_share(placement.scales[:, 1] != 1, 0.2)


def test_each_mirror_axis_is_used_in_half_of_the_samples():
    for mirrored in many(ISOTROPIC).mirrored.T:
        assert_share(mirrored, 0.5)
    assert many(FLAT).mirrored.shape == (SAMPLES, 1)
