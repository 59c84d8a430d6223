"""Floating-point dtypes."""

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_that


def at_least_float32(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """float32 for narrower dtypes, whatever JAX promotes by itself."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def check_floating(argument: str, array: jax.Array) -> None:
    """Raises ValueError unless an array holds floating-point numbers."""
    check_that(jnp.issubdtype(array.dtype, jnp.floating), argument, "floating", array.dtype)
