"""From uniform random numbers to what happens to one sample, and how strongly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Bounds = tuple[float, float]

NUMBERS_A_CHANNEL = 5
"""Random numbers that an effect gets for each channel; all come from one call, for calls compile slowly."""


class Effect(NamedTuple):
    """What was drawn for one effect on one sample.

    Args:
        applied: bool [], whether the sample is changed at all.
        strength: arguments of the effect other than the volume; arrays [C, ...], an entry for each channel.
    """

    applied: jax.Array
    strength: tuple[Any, ...]


def between(numbers: jax.Array, bounds: Bounds) -> jax.Array:
    """Numbers uniform in [0, 1) made uniform between the bounds."""
    low, high = bounds
    return low + numbers * (high - low)


def about_one(sides: jax.Array, distances: jax.Array, bounds: Bounds) -> jax.Array:
    """Half of the numbers uniform from the lower bound to 1, half from 1 to the upper bound.

    Args:
        sides, distances: uniform in [0, 1), of the same shape.
        bounds: one below 1 and one above.

    Source: batchgeneratorsv2, transforms/intensity/contrast.py, `BGContrast`.
    """
    low, high = bounds
    return 1 + distances * jnp.where(sides < 0.5, low - 1, high - 1)
