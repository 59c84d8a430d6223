"""Checks of dtypes."""

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_that


def check_floating(argument: str, array: jax.Array) -> None:
    """Raises ValueError unless an array holds floating-point numbers."""
    check_that(jnp.issubdtype(array.dtype, jnp.floating), argument, "floating", array.dtype)
