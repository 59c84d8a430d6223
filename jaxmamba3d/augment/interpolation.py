"""Sampling of a volume and its labels at the points of an affine map."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.augment.plan import Triple
from jaxmamba3d.labels import OUTSIDE


def resample_affine(
    image: jax.Array, label: jax.Array, matrix: jax.Array, size: Triple, *, within_slices: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Samples image and label where the affine map puts the voxels of a patch, centre on centre.

    Voxel p of the patch shows the point matrix (p - (size - 1) / 2) + (shape - 1) / 2 of the volume. The
    image is interpolated linearly, zeros outside the volume. The label is the one among the 8 voxels around
    the point whose weights of linear interpolation sum to most, of equals the lowest; -1 outside the volume.

    Args:
        image: [X, Y, Z, C] float32.
        label: [X, Y, Z], signed integers.
        matrix: [3, 3], voxels to voxels.
        size: of the patch.
        within_slices: the map leaves the first axis as it is, and the patch has the volume's size there.

    Returns:
        image [*size, C] and label [*size].

    Numerics: one plane of the patch at a time, so that the 8 neighbours stay in the cache.

    Source: batchgeneratorsv2, transforms/spatial/spatial.py (`grid_sample` with align_corners=False, the
        label as the largest of the interpolated one-hot channels). Where that compares the point with the
        volume's border it takes the sizes of the axes in reversed order; here each axis has its own.
    """
    shape = label.shape
    channels = image.shape[-1]
    # Numbers are gathered twice as fast on CPUs as rows of one number.
    row = () if channels == 1 else (channels,)
    voxels, labels = jnp.asarray(image).reshape(-1, *row), jnp.asarray(label).reshape(-1)
    rows, columns = (jnp.arange(n) - (n - 1) / 2 for n in size[1:])
    in_plane = rows[:, None, None] * matrix[:, 1] + columns[:, None] * matrix[:, 2]
    middle = jnp.array([(n - 1) / 2 for n in shape], jnp.float32)
    last = jnp.array(shape, jnp.float32) - 1
    sides = ((0,) if within_slices else (0, 1), (0, 1), (0, 1))

    def plane(offset):
        points = in_plane + (matrix[:, 0] * offset + middle)
        lower = jnp.floor(points)
        fractions = points - lower
        lower = lower.astype(jnp.int32)
        values, votes = jnp.zeros((*size[1:], *row), jnp.float32), []
        for corner in itertools.product(*sides):
            weight, index = 1.0, 0
            for axis, side in enumerate(corner):
                position, fraction = lower[..., axis] + side, fractions[..., axis]
                inside = (position >= 0) & (position < shape[axis])
                weight = weight * jnp.where(inside, fraction if side else 1 - fraction, 0)
                index = index * shape[axis] + jnp.clip(position, 0, shape[axis] - 1)
            found = voxels.at[index].get(mode="promise_in_bounds")
            values += weight.reshape(*size[1:], *[1] * len(row)) * found
            votes.append((weight, labels.at[index].get(mode="promise_in_bounds")))
        outside = jnp.any((points < 0) | (points > last), axis=-1)
        values = values.reshape(*size[1:], channels)
        return values, jnp.where(outside, jnp.array(OUTSIDE, label.dtype), _majority(votes))

    return lax.map(plane, jnp.arange(size[0]) - (size[0] - 1) / 2)


def _majority(votes: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The label with the largest sum of weights, the lowest of equals: no list of the labels is needed."""
    winner, most = votes[0][1], jnp.full_like(votes[0][0], -1)
    for _, candidate in votes:
        total = sum(jnp.where(other == candidate, weight, 0) for weight, other in votes)
        better = (total > most) | ((total == most) & (candidate < winner))
        winner, most = jnp.where(better, candidate, winner), jnp.maximum(total, most)
    return winner
