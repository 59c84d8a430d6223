"""Mirroring: which axes, how often, image and label together, the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.augment import mirror

VOLUME = np.random.default_rng(0).standard_normal((64, 3, 4, 5, 2)).astype(np.float32)
IMAGE, LABEL = jnp.asarray(VOLUME), jnp.asarray(np.arange(64 * 60).reshape(64, 3, 4, 5))


def mirrored_axes(before, after, axes):
    """For each sample the axes that explain what became of it."""
    found = []
    for x, y in zip(np.asarray(before), np.asarray(after), strict=True):
        choices = [
            set(np.array(axes)[list(np.ndindex(*(2,) * len(axes)))[i] == np.array(1)])
            for i in range(2 ** len(axes))
        ]
        (match,) = [c for c in choices if np.array_equal(np.flip(x, tuple(int(a) for a in c)), y)]
        found.append(match)
    return found


@pytest.mark.parametrize("axes", [(0, 1, 2), (2,), (0, 1)])
def test_each_axis_is_mirrored_in_half_of_the_samples(axes):
    image, label = mirror(jax.random.key(1), IMAGE, LABEL, axes)
    chosen = mirrored_axes(IMAGE, image, axes)
    assert chosen == mirrored_axes(LABEL, label, axes)
    for axis in axes:
        assert 16 <= sum(axis in c for c in chosen) <= 48  # four standard deviations of 64 coins


def test_no_axes_change_nothing():
    image, label = mirror(jax.random.key(1), IMAGE, LABEL, ())
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, LABEL)


def test_sharding_changes_nothing():
    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    parts = jax.device_put((IMAGE, LABEL), sharding)
    sharded = jax.jit(mirror)(jax.random.key(3), *parts)
    for a, b in zip(sharded, mirror(jax.random.key(3), IMAGE, LABEL), strict=True):
        np.testing.assert_array_equal(a, b)
