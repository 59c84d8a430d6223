"""Gaussian noise."""

import jax
import jax.numpy as jnp

from jaxmamba3d.augment.draws import Effect, between

PROBABILITY, DEVIATIONS = 0.1, (0.0, 0.1)


def draw_noise(numbers: jax.Array, key: jax.Array) -> Effect:
    """With probability 0.1 noise of a deviation in 0..0.1, the same deviation for all channels.

    nnU-Net calls that range a variance, and uses it as the standard deviation.

    Args:
        numbers: [C, 5], uniform in [0, 1).
        key: of the noise.

    Source: batchgeneratorsv2 0.3.6, transforms/intensity/gaussian_noise.py; versions before 0.3.2 added the
        same noise to all channels.
    """
    channels = numbers.shape[0]
    deviations = jnp.broadcast_to(between(numbers[0, 1], DEVIATIONS), (channels,))
    return Effect(numbers[0, 0] < PROBABILITY, (jax.random.split(key, channels), deviations))


def add_noise(volume: jax.Array, key: jax.Array, deviation: jax.Array) -> jax.Array:
    """Adds independent normal noise to each voxel.

    Args:
        volume: one channel [X, Y, Z].
        key: of the noise.
        deviation: [], in units of the image.
    """
    # As a row: XLA compiles random bits of several axes for CPUs ten times slower.
    noise = jax.random.normal(key, (volume.size,), volume.dtype).reshape(volume.shape)
    return volume + deviation * noise
