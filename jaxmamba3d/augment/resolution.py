"""Low resolution: voxels dropped and interpolated again."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.augment.draws import Effect, between
from jaxmamba3d.augment.separable import along_each_axis

PROBABILITY, CHANNEL_PROBABILITY, ZOOMS = 0.25, 0.5, (0.5, 1.0)


def draw_low_resolution(numbers: jax.Array) -> Effect:
    """With probability 0.25 each channel with probability 0.5 is zoomed by 0.5..1, the same for all axes.

    Args:
        numbers: [C, 5], uniform in [0, 1).

    Source: batchgeneratorsv2, transforms/spatial/low_resolution.py.
    """
    coarse = numbers[:, 1] < CHANNEL_PROBABILITY
    return Effect(numbers[0, 0] < PROBABILITY, (jnp.where(coarse, between(numbers[:, 2], ZOOMS), 1),))


def lower_resolution(volume: jax.Array, zoom: jax.Array, *, within_slices: bool = False) -> jax.Array:
    """Keeps the voxel nearest to each of round(size * zoom) places of an axis, and interpolates linearly.

    Args:
        volume: one channel [X, Y, Z].
        zoom: [], above 0 up to 1; 1 changes nothing.
        within_slices: leave the first axis as it is.

    Source: batchgeneratorsv2, transforms/spatial/low_resolution.py (`interpolate`, "nearest-exact" down,
        "trilinear" up).
    """
    coarse_axes = (1, 2) if within_slices else (0, 1, 2)

    def coarse(volume):
        sizes = enumerate(volume.shape)
        matrices = [_coarse_matrix(n, zoom) if axis in coarse_axes else None for axis, n in sizes]
        return along_each_axis(volume, matrices)

    return lax.cond(zoom < 1, coarse, lambda volume: volume, volume)


def _coarse_matrix(size: int, zoom: jax.Array) -> jax.Array:
    kept = jnp.maximum(jnp.round(size * zoom), 1).astype(jnp.int32)
    voxels = jnp.arange(size)
    place = jnp.maximum((voxels + 0.5) * (kept / size) - 0.5, 0)
    lower = jnp.floor(place).astype(jnp.int32)
    upper = jnp.minimum(lower + 1, kept - 1)
    fraction = place - lower

    def taken_from(place):
        # In whole numbers, for places are often exactly between two voxels.
        nearest = lax.div((2 * place + 1) * size, 2 * kept)
        return nearest[:, None] == voxels

    return (1 - fraction)[:, None] * taken_from(lower) + fraction[:, None] * taken_from(upper)
