"""One token of the recurrence and one of its adjoint, on a tile: states in rows, channels in columns.

The tile is [N, D] or any part of it; all is float32. What belongs to channels is a row [1, D], what belongs
to states a column [N, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Token(NamedTuple):
    """u, delta [1, D]; B, C [N, 1]. The gradient of a token has the same form."""

    u: jax.Array
    delta: jax.Array
    B: jax.Array
    C: jax.Array


def advance(h: jax.Array, token: Token, decay: jax.Array) -> jax.Array:
    """The state after a token: decay h + delta u B, with decay = exp(delta A)."""
    return decay * h + (token.delta * token.u) * token.B


def readout(h: jax.Array, token: Token) -> jax.Array:
    """C . h, [1, D]."""
    return jnp.sum(h * token.C, axis=0, keepdims=True)


def retreat(
    g: jax.Array,
    token: Token,
    A: jax.Array,
    decay: jax.Array,
    h_before: jax.Array,
    h_after: jax.Array,
    g_y: jax.Array,
) -> tuple[jax.Array, jax.Array, Token]:
    """The adjoint of `advance` and `readout` together.

    Args:
        g: gradient of the state after the token, without what the token's own output adds.
        token: the token.
        A: decay rates.
        decay: exp(delta A).
        h_before, h_after: the states around the token.
        g_y: gradient of the readout, [1, D].

    Returns:
        The gradients of the state before the token, of A, and of the token; the sums over channels in the
        token's B and C are of this tile alone.
    """
    g = g + g_y * token.C
    g_drive = jnp.sum(g * token.B, axis=0, keepdims=True)
    g_before = g * decay
    g_exponent = g_before * h_before
    g_token = Token(
        u=g_drive * token.delta,
        delta=g_drive * token.u + jnp.sum(g_exponent * A, axis=0, keepdims=True),
        B=jnp.sum(g * (token.delta * token.u), axis=1, keepdims=True),
        C=jnp.sum(g_y * h_after, axis=1, keepdims=True),
    )
    return g_before, g_exponent * token.delta, g_token


def compose(earlier: tuple[jax.Array, jax.Array], later: tuple[jax.Array, jax.Array]):
    """Two steps h -> decay h + drive, after one another; associative."""
    decay_1, drive_1 = earlier
    decay_2, drive_2 = later
    return decay_1 * decay_2, decay_2 * drive_1 + drive_2
