"""A loss's gradient where JAX knows how its arrays lie on two devices, which is to be that of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

needs_two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="there is one device only")
FORMS = ("explicit axes", "shard_map")


def assert_the_gradient_of_one_device(loss, params, x, form, tolerance):
    """Differentiates loss(params, x), a sum over samples, by params: with two devices that share x, and one.

    The tolerance is relative to each number, and a tenth of it to the largest of all.
    """
    expected = jax.jit(jax.grad(loss))(params, x)
    whole, split = PartitionSpec(), PartitionSpec("data")
    kind = AxisType.Auto if form == "shard_map" else AxisType.Explicit
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])
    if form == "shard_map":
        in_all = jax.grad(lambda params, x: jax.lax.psum(loss(params, x), "data"))
        gradient = jax.shard_map(in_all, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    else:
        x, gradient = jax.device_put(x, NamedSharding(mesh, split)), jax.grad(loss)
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(params, x)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance / 10 * largest)
