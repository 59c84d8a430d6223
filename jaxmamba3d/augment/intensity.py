"""Brightness, contrast and gamma."""

import jax
import jax.numpy as jnp

from jaxmamba3d.augment.draws import Bounds, Effect, about_one

BRIGHTNESS_PROBABILITY, BRIGHTNESS_FACTORS = 0.15, (0.75, 1.25)
CONTRAST_PROBABILITY, CONTRAST_FACTORS = 0.15, (0.75, 1.25)
GAMMA_PROBABILITY, INVERTED_GAMMA_PROBABILITY, GAMMA_EXPONENTS = 0.3, 0.1, (0.7, 1.5)
SMALLEST_SPREAD = 1e-7


def draw_brightness(numbers: jax.Array) -> Effect:
    """With probability 0.15 a factor in 0.75..1.25 for each channel, as `about_one`; numbers [C, 5]."""
    return _draw(numbers, BRIGHTNESS_PROBABILITY, BRIGHTNESS_FACTORS)


def draw_contrast(numbers: jax.Array) -> Effect:
    """With probability 0.15 a factor in 0.75..1.25 for each channel, as `about_one`; numbers [C, 5]."""
    return _draw(numbers, CONTRAST_PROBABILITY, CONTRAST_FACTORS)


def draw_gamma(numbers: jax.Array) -> Effect:
    """With probability 0.3 an exponent in 0.7..1.5 for each channel, as `about_one`; numbers [C, 5]."""
    return _draw(numbers, GAMMA_PROBABILITY, GAMMA_EXPONENTS)


def draw_inverted_gamma(numbers: jax.Array) -> Effect:
    """With probability 0.1 an exponent in 0.7..1.5 for each channel, as `about_one`; numbers [C, 5]."""
    return _draw(numbers, INVERTED_GAMMA_PROBABILITY, GAMMA_EXPONENTS)


def _draw(numbers: jax.Array, probability: float, bounds: Bounds) -> Effect:
    return Effect(numbers[0, 0] < probability, (about_one(numbers[:, 1], numbers[:, 2], bounds),))


def brighten(volume: jax.Array, factor: jax.Array) -> jax.Array:
    """volume * factor, one channel [X, Y, Z].

    Source: batchgeneratorsv2, transforms/intensity/brightness.py.
    """
    return volume * factor


def change_contrast(volume: jax.Array, factor: jax.Array) -> jax.Array:
    """(volume - mean) * factor + mean, clipped to the range that the volume had; one channel [X, Y, Z].

    Source: batchgeneratorsv2, transforms/intensity/contrast.py.
    """
    mean = jnp.mean(volume)
    return jnp.clip((volume - mean) * factor + mean, jnp.min(volume), jnp.max(volume))


def apply_gamma(volume: jax.Array, exponent: jax.Array) -> jax.Array:
    """Raises the volume, scaled to 0..1, to a power; mean and standard deviation stay what they were.

    Args:
        volume: one channel [X, Y, Z].
        exponent: [], below 1 brightens the darker parts.

    Source: batchgeneratorsv2, transforms/intensity/gamma.py.
    """
    low = jnp.min(volume)
    spread = jnp.max(volume) - low
    curved = ((volume - low) / jnp.maximum(spread, SMALLEST_SPREAD)) ** exponent * spread + low
    retained = jnp.std(volume) / jnp.maximum(jnp.std(curved), SMALLEST_SPREAD)
    return (curved - jnp.mean(curved)) * retained + jnp.mean(volume)


def apply_inverted_gamma(volume: jax.Array, exponent: jax.Array) -> jax.Array:
    """`apply_gamma` on the negative of the volume."""
    return -apply_gamma(-volume, exponent)
