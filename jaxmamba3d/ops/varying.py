"""Over which devices arrays differ inside of `jax.shard_map`, where JAX checks that (`check_vma`).

What is the same everywhere and what is not are of different types there. A state that starts out the same and
then differs would change its type in a loop, and a gradient written by hand would lack the sum over devices.
"""

import jax
from jax.sharding import ManualAxisType


def varying_together(arrays):
    """The arrays, all varying over the axes over which any of them does.

    JAX then sums the gradients of those that were the same everywhere by itself. Elsewhere nothing happens.
    """
    axes = varying_axes(arrays)
    return jax.tree.map(lambda x: _varying_over(axes, x), arrays)


def results_like(shapes, operands):
    """The shapes of a kernel's results, which vary over the axes over which its operands do."""
    kind = ManualAxisType(varying=varying_axes(operands))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind), shapes)


def varying_axes(arrays) -> frozenset[str]:
    """The mesh axes over which any of the arrays differs."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)))


def _varying_over(axes: frozenset[str], array):
    new = axes - jax.typeof(array).manual_axis_type.varying
    return jax.lax.pcast(array, tuple(new), to="varying") if new else array
