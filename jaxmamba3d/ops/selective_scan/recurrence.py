"""One token of the recurrence and one of its adjoint, on a tile of states and channels.

The tile is all of a state or any part of it, in float32. What belongs to channels is a row, what belongs to
states a column; a `TileForm` says how the two become tiles. A tile may also come as a tuple of tiles, one for
each part of the states, and so do its columns then.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Tile = jax.Array | tuple[jax.Array, ...]


def _multiply_add(a, b, c):
    return a * b + c


class TileForm(NamedTuple):
    """How rows and columns spread over a tile, how a tile sums to them, and a chip's own arithmetic.

    Args:
        from_row, from_column: a row or a column -> what multiplies a tile.
        over_states, over_channels: a tile -> its sums, a row or a column.
        exp2: 2 to the power of a tile.
        multiply_add: a b + c, of tiles and of what multiplies them.
    """

    from_row: Callable[[jax.Array], jax.Array]
    from_column: Callable[[jax.Array], jax.Array]
    over_states: Callable[[jax.Array], jax.Array]
    over_channels: Callable[[jax.Array], jax.Array]
    exp2: Callable[[jax.Array], jax.Array] = jnp.exp2
    multiply_add: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = _multiply_add


def _itself(x):
    return x


CHANNELS_LAST = TileForm(
    from_row=_itself,
    from_column=_itself,
    over_states=lambda tile: jnp.sum(tile, axis=0, keepdims=True),
    over_channels=lambda tile: jnp.sum(tile, axis=1, keepdims=True),
)
"""Tiles [N, D], rows [1, D], columns [N, 1]: they spread by themselves."""


class Token(NamedTuple):
    """Rows drive and delta, columns B and C; the drive is delta u. The gradient of a token has the same form,
    delta's being that of the decay alone: what the drive adds to it is left to who made the drive."""

    drive: jax.Array
    delta: jax.Array
    B: Tile
    C: Tile


def decay_of(A: Tile, form: TileForm = CHANNELS_LAST) -> Callable[[jax.Array], Tile]:
    """delta -> exp(delta A), as one instruction of GPUs, which know powers of 2, and a product."""
    A_2 = jax.tree.map(lambda A: A * math.log2(math.e), A)
    return lambda delta: jax.tree.map(lambda A_2: form.exp2(form.from_row(delta) * A_2), A_2)


def advance(h: Tile, token: Token, decay: Tile, form: TileForm = CHANNELS_LAST) -> Tile:
    """The state after a token: decay h + drive B, with decay = exp(delta A)."""
    drive = form.from_row(token.drive)

    def part(h, decay, B):
        return form.multiply_add(decay, h, drive * form.from_column(B))

    return jax.tree.map(part, h, decay, token.B)


def readout(h: Tile, token: Token, form: TileForm = CHANNELS_LAST) -> jax.Array:
    """C . h, a row."""
    return _sum_over_states(h, jax.tree.map(form.from_column, token.C), form)


def readout_gradient(h: Tile, g_y: jax.Array, form: TileForm = CHANNELS_LAST) -> Tile:
    """The gradient of a token's C, from that of `readout`; its sums over channels are of this tile alone."""
    return _sum_over_channels(h, form.from_row(g_y), form)


def retreat(
    g: Tile,
    token: Token,
    A: Tile,
    decay: Tile,
    h_before: Tile,
    h_after: Tile | None,
    g_y: jax.Array,
    g_A: Tile,
    form: TileForm = CHANNELS_LAST,
) -> tuple[Tile, Tile, Token]:
    """The adjoint of `advance` and `readout` together.

    Args:
        g: gradient of the state after the token, without what the token's own output adds.
        token: the token.
        A: decay rates.
        decay: exp(delta A).
        h_before, h_after: the states around the token; None leaves C's gradient to `readout_gradient`.
        g_y: gradient of the readout, a row.
        g_A: gradient of A, what the tokens after this one have given.
        form: of the tile.

    Returns:
        The gradients of the state before the token, of A with this token's part, and of the token; the sums
        over channels in the token's B and C are of this tile alone.
    """
    g_y_tile, delta_tile, drive = map(form.from_row, (g_y, token.delta, token.drive))
    B, C = (jax.tree.map(form.from_column, x) for x in (token.B, token.C))
    g = jax.tree.map(lambda g, C: form.multiply_add(g_y_tile, C, g), g, C)
    g_before = jax.tree.map(jnp.multiply, g, decay)
    g_exponent = jax.tree.map(jnp.multiply, g_before, h_before)
    g_token = Token(
        drive=_sum_over_states(g, B, form),
        delta=_sum_over_states(g_exponent, A, form),
        B=_sum_over_channels(g, drive, form),
        C=None if h_after is None else _sum_over_channels(h_after, g_y_tile, form),
    )
    g_A = jax.tree.map(lambda g_A, g: form.multiply_add(g, delta_tile, g_A), g_A, g_exponent)
    return g_before, g_A, g_token


def _sum_over_states(tile: Tile, factor: Tile, form: TileForm) -> jax.Array:
    """The parts are added before they are summed over, for that may need many threads."""
    (first, *others) = zip(jax.tree.leaves(tile), jax.tree.leaves(factor), strict=True)
    total = first[0] * first[1]
    for x, y in others:
        total = form.multiply_add(x, y, total)
    return form.over_states(total)


def _sum_over_channels(tile: Tile, factor: jax.Array, form: TileForm) -> Tile:
    return jax.tree.map(lambda part: form.over_channels(part * factor), tile)


def compose(earlier: tuple[jax.Array, jax.Array], later: tuple[jax.Array, jax.Array]):
    """Two steps h -> decay h + drive, after one another; associative."""
    decay_1, drive_1 = earlier
    decay_2, drive_2 = later
    return decay_1 * decay_2, decay_2 * drive_1 + drive_2
