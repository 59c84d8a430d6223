"""Sampling of a volume and its labels at the points of an affine map."""

import functools
import itertools
from collections.abc import Callable

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
    resample = functools.partial(_resample, size=size, within_slices=within_slices)
    return lax.platform_dependent(
        jnp.asarray(image),
        jnp.asarray(label),
        matrix,
        tpu=functools.partial(resample, read=read_in_pairs),
        default=functools.partial(resample, read=read_one_by_one),
    )


Reader = Callable[[jax.Array, jax.Array], Callable[[jax.Array, Triple], tuple[jax.Array, jax.Array]]]
"""Image and label -> a function of points' lower corners [..., 3] and the offset to a neighbour, which gives
the neighbours' channels [..., C] and labels. Beyond the volume they may be anything."""


def _resample(image, label, matrix, *, size, within_slices, read: Reader):
    shape, channels = label.shape, image.shape[-1]
    neighbour = read(image, label)
    planes, rows, columns = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in size)
    in_plane = rows[:, None, None] * matrix[:, 1] + columns[:, None] * matrix[:, 2]
    middle = jnp.array([(n - 1) / 2 for n in shape], jnp.float32)
    sides = ((0,) if within_slices else (0, 1), (0, 1), (0, 1))

    def plane(offset):
        points = in_plane + (matrix[:, 0] * offset + middle)
        lower = jnp.floor(points)
        fractions, nearest_sides = points - lower, jnp.round(points) - lower
        lower = lower.astype(jnp.int32)
        values, votes = jnp.zeros((*size[1:], channels), jnp.float32), []
        nearest = jnp.full(size[1:], OUTSIDE, label.dtype)
        for corner in itertools.product(*sides):
            weight, inside = 1.0, True
            for axis, side in enumerate(corner):
                position, fraction = lower[..., axis] + side, fractions[..., axis]
                inside &= (position >= 0) & (position < shape[axis])
                weight = weight * (fraction if side else 1 - fraction)
            shown, found = neighbour(lower, corner)
            values += jnp.where(inside, weight, 0)[..., None] * shown
            votes.append((weight, jnp.where(inside, found, jnp.array(OUTSIDE, label.dtype))))
            is_nearest = jnp.all(nearest_sides == jnp.array(corner), axis=-1)
            nearest = jnp.where(is_nearest, votes[-1][1], nearest)
        return values, _majority(votes, nearest)

    return lax.map(plane, planes)


def read_one_by_one(image, label):
    """A gather for each neighbour, and for its label."""
    channels = image.shape[-1]
    # Numbers are gathered twice as fast on CPUs as rows of one number.
    voxels = image.reshape(-1) if channels == 1 else image.reshape(-1, channels)
    labels = label.reshape(-1)

    def neighbour(lower, corner):
        index = _index(lower, corner, label.shape)
        shown, found = (table.at[index].get(mode="promise_in_bounds") for table in (voxels, labels))
        return shown.reshape(*found.shape, channels), found

    return neighbour


def read_in_pairs(image, label):
    """A gather for two neighbours along Z with their labels: on TPUs a row takes as long as a number."""
    voxels = jnp.concatenate([image, label[..., None].astype(image.dtype)], axis=-1)
    padded = jnp.pad(voxels, ((0, 0), (0, 0), (1, 1), (0, 0)))
    pairs = jnp.concatenate([padded[:, :, :-1], padded[:, :, 1:]], axis=-1)
    rows = pairs.reshape(-1, pairs.shape[-1])

    def neighbour(lower, corner):
        x, y, z = corner
        pair = rows.at[_index(lower, (x, y, 1), pairs.shape)].get(mode="promise_in_bounds")
        voxel = jnp.split(pair, 2, axis=-1)[z]
        return voxel[..., :-1], voxel[..., -1].astype(label.dtype)

    return neighbour


def _index(lower, corner, shape):
    """Of the neighbours in a table of all voxels, or of the border's where they lie beyond."""
    index = 0
    for axis, side in enumerate(corner):
        index = index * shape[axis] + jnp.clip(lower[..., axis] + side, 0, shape[axis] - 1)
    return index


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
