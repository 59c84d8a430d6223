"""B and C of a TPU kernel's tokens, repeated over the channels, and their gradients, summed over them.

Channels lie on the lanes of registers. The unit that permutes lanes takes 8 cycles for each register over
which it repeats a column, or sums it to one; so both are done otherwise.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxmamba3d.ops.backend import LANES, SUBLANES

PARTS = 3
"""Numbers of bfloat16 in one of float32."""


def spread(columns):
    """Columns of tokens [N, T] float32 -> [T, 128], three numbers for each, of which bfloat16 holds all bits.

    N is at most a third of the lanes. Of a number that is not finite some parts are none, which other parts
    of the lanes see, too.
    """
    high = _rounded(columns)
    middle = _rounded(columns - high)
    states, tokens = columns.shape
    rest = jnp.zeros((LANES - PARTS * states, tokens), columns.dtype)
    return jnp.concatenate([high, middle, columns - high - middle, rest], axis=0).T


def _rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def repeated(rows, height: int, fold: int, lanes: int, order: Sequence[int]) -> dict:
    """What `spread` made of some tokens -> for each token [height, lanes], its numbers repeated over lanes.

    The tokens are worked on in the order given.

    By the matrix unit, as a product of a matrix with the numbers of one state in each of its rows, and 0
    elsewhere, and of one with 1 where a number goes, and 0 elsewhere: one number's three parts are added up,
    to the bit. State `k height + i` of `fold height` goes to row i of the k-th of `fold` parts of the lanes.
    """
    state, lane = (lax.broadcasted_iota(jnp.int32, (height, LANES), axis) for axis in (0, 1))
    own = lax.rem(lane, jnp.int32(height)) == state
    alone = jnp.concatenate([jnp.where(own, rows[i : i + 1], 0.0) for i in order], axis=0)
    number, lane = (lax.broadcasted_iota(jnp.int32, (LANES, lanes), axis) for axis in (0, 1))
    part = lax.rem(lax.div(number, jnp.int32(height)), jnp.int32(fold))
    goes = (number < PARTS * fold * height) & (part == lax.div(lane, jnp.int32(lanes // fold)))
    product = jnp.dot(
        alone.astype(jnp.bfloat16),
        goes.astype(jnp.bfloat16),
        precision=lax.Precision.DEFAULT,  # whatever the user's default is
        preferred_element_type=jnp.float32,
    )
    return {i: product[k * height : (k + 1) * height] for k, i in enumerate(order)}


def line_tokens(height: int) -> int:
    """Tokens of a line: those whose sums fill the lanes of a register, or enough to use all its sublanes."""
    return min(SUBLANES, 1 << ((LANES // height).bit_length() - 1))


def line_sums(tiles: Sequence, fold: int) -> list[list]:
    """Sums over channels of the tiles [height, lanes] of tokens: lines [1, tokens height], one for each part
    of the lanes.

    By a transposition, which takes a register as long as a sum, but the sums over all parts of the lanes are
    sums of registers then.
    """
    lanes, tokens = tiles[0].shape[1], line_tokens(tiles[0].shape[0])
    lines = []
    for first in range(0, len(tiles), tokens):
        turned = jnp.concatenate(tiles[first : first + tokens], axis=0).T
        parts = [turned[k * lanes // fold : (k + 1) * lanes // fold] for k in range(fold)]
        lines.append([jnp.sum(part, axis=0, keepdims=True) for part in parts])
    return lines
