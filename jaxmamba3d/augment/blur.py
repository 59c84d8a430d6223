"""Gaussian blur."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmamba3d.augment.draws import Effect, between
from jaxmamba3d.augment.separable import along_each_axis

PROBABILITY, CHANNEL_PROBABILITY, SIGMAS = 0.2, 0.5, (0.5, 1.0)
LARGEST_RADIUS = 3


def draw_blur(numbers: jax.Array) -> Effect:
    """With probability 0.2 each channel is blurred with probability 0.5, by 0.5..1 voxels along each axis.

    Args:
        numbers: [C, 5], uniform in [0, 1).

    Source: batchgeneratorsv2, transforms/noise/gaussian_blur.py.
    """
    blurred = numbers[:, 1:2] < CHANNEL_PROBABILITY
    return Effect(numbers[0, 0] < PROBABILITY, (jnp.where(blurred, between(numbers[:, 2:5], SIGMAS), 0),))


def blur(volume: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Convolves with a Gaussian along each axis, the volume reflected at its borders.

    Args:
        volume: one channel [X, Y, Z].
        sigmas: [3], standard deviations in voxels, at most 1; 0 changes nothing.

    Source: batchgeneratorsv2, transforms/noise/gaussian_blur.py, `blur_dimension`: the kernel has the odd
        size nearest to 6 sigma + 0.5, that is the radius floor(3 sigma + 0.25).
    """

    def blurred(volume):
        return along_each_axis(volume, [_blur_matrix(n, sigmas[axis]) for axis, n in enumerate(volume.shape)])

    return lax.cond(jnp.any(sigmas > 0), blurred, lambda volume: volume, volume)


def _blur_matrix(size: int, sigma: jax.Array) -> jax.Array:
    offsets = np.arange(-LARGEST_RADIUS, LARGEST_RADIUS + 1)
    within = np.abs(offsets) <= jnp.floor(3 * sigma + 0.25)
    # The floor keeps 0 / 0 out of the middle of a kernel of sigma 0.
    weights = jnp.where(within, jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-6)) ** 2), 0)
    weights /= jnp.sum(weights)
    reflected = np.pad(np.arange(size), LARGEST_RADIUS, mode="reflect")
    sources = reflected[np.arange(size) + LARGEST_RADIUS + offsets[:, None]]
    # One by one: a sum over an axis would be merged into the matrix product on CPUs, three times slower.
    return sum(
        weight * (source[:, None] == jnp.arange(size))
        for weight, source in zip(weights, sources, strict=True)
    )
