"""Random mirroring."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax


def draw_mirroring(numbers: jax.Array) -> jax.Array:
    """Whether one sample is mirrored along each axis, with probability 1/2: bool, from uniform numbers."""
    return numbers < 0.5


def flip(flags: jax.Array, arrays: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Arrays [X, Y, Z, ...] mirrored along those of the axes whose flag is set, in one pass over them.

    Args:
        flags: bool [len(axes)].
        arrays: of one sample.
        axes: out of 0 X, 1 Y, 2 Z.
    """
    choices = list(itertools.product((False, True), repeat=len(axes)))
    branches = [functools.partial(_flip_all, tuple(itertools.compress(axes, choice))) for choice in choices]
    places = 2 ** jnp.arange(len(axes))[::-1]
    return lax.switch(jnp.sum(flags * places), branches, arrays)


def _flip_all(axes: tuple[int, ...], arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.flip(array, axes) for array in arrays)
