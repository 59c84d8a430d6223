"""Sampling of a volume and its labels at the points of an affine map."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.config import Triple
from jaxmamba3d.labels import OUTSIDE


def resample_affine(
    image: jax.Array, label: jax.Array, matrix: jax.Array, size: Triple, *, within_slices: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Samples image and label where the affine map puts the voxels of a patch, centre on centre.

    Voxel p of the patch shows the point matrix (p - (size - 1) / 2) + (shape - 1) / 2 of the volume. The
    image is interpolated linearly, zeros outside the volume. The label is the one among the 8 voxels around
    the point, those outside the volume being -1, whose weights of linear interpolation sum to most; of equals
    that of the nearest voxel, or else the lowest.

    Args:
        image: [X, Y, Z, C] float32.
        label: [X, Y, Z], signed integers.
        matrix: [3, 3], voxels to voxels.
        size: of the patch.
        within_slices: the map leaves the first axis as it is, and the patch has the volume's size there.

    Returns:
        image [*size, C] and label [*size].

    Numerics: one plane of the patch at a time, so that the 8 neighbours stay in the cache.

    Source: batchgeneratorsv2 0.3.6, transforms/spatial/spatial.py (`grid_sample` with align_corners=False,
        the label as the largest of the interpolated one-hot channels).
    """
    shape = label.shape
    channels = image.shape[-1]
    # Numbers are gathered twice as fast on CPUs as rows of one number.
    row = () if channels == 1 else (channels,)
    voxels, labels = jnp.asarray(image).reshape(-1, *row), jnp.asarray(label).reshape(-1)
    planes, rows, columns = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in size)
    in_plane = rows[:, None, None] * matrix[:, 1] + columns[:, None] * matrix[:, 2]
    middle = jnp.array([(n - 1) / 2 for n in shape], jnp.float32)
    sides = ((0,) if within_slices else (0, 1), (0, 1), (0, 1))

    def plane(offset):
        points = in_plane + (matrix[:, 0] * offset + middle)
        lower = jnp.floor(points)
        fractions, nearest_sides = points - lower, jnp.round(points) - lower
        lower = lower.astype(jnp.int32)
        values, votes = jnp.zeros((*size[1:], *row), jnp.float32), []
        nearest = jnp.full(size[1:], OUTSIDE, label.dtype)
        for corner in itertools.product(*sides):
            weight, index, inside = 1.0, 0, True
            for axis, side in enumerate(corner):
                position, fraction = lower[..., axis] + side, fractions[..., axis]
                inside &= (position >= 0) & (position < shape[axis])
                weight = weight * (fraction if side else 1 - fraction)
                index = index * shape[axis] + jnp.clip(position, 0, shape[axis] - 1)
            shown = jnp.where(inside, weight, 0).reshape(*size[1:], *[1] * len(row))
            values += shown * voxels.at[index].get(mode="promise_in_bounds")
            found = labels.at[index].get(mode="promise_in_bounds")
            votes.append((weight, jnp.where(inside, found, jnp.array(OUTSIDE, label.dtype))))
            is_nearest = jnp.all(nearest_sides == jnp.array(corner), axis=-1)
            nearest = jnp.where(is_nearest, votes[-1][1], nearest)
        return values.reshape(*size[1:], channels), _majority(votes, nearest)

    return lax.map(plane, planes)


def _majority(votes: list[tuple[jax.Array, jax.Array]], nearest: jax.Array) -> jax.Array:
    """The label with the largest sum of weights, of equals the nearest voxel's, or else the lowest."""

    def total(candidate):
        return sum(jnp.where(label == candidate, weight, 0) for weight, label in votes)

    winner, most = nearest, total(nearest)
    for _, candidate in votes:
        votes_for = total(candidate)
        tied = (votes_for == most) & (winner != nearest) & (candidate < winner)
        winner = jnp.where((votes_for > most) | tied, candidate, winner)
        most = jnp.maximum(votes_for, most)
    return winner
