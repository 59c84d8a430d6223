"""Sums over the channels and over the states of a TPU kernel's tokens.

Channels lie on lanes, states on sublanes. The units that permute lanes take 8 cycles to sum up the lanes of a
register, so sums over channels are done otherwise.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from jaxmamba3d.ops.backend import LANES, SUBLANES


def one_register(tile):
    """[height, lanes] -> [8, lanes] of the same sum over rows."""
    return sum(tile[i : i + SUBLANES] for i in range(0, tile.shape[0], SUBLANES))


def row_sums(tiles: Sequence):
    """The sums over rows of at most eight tiles [8, lanes], as rows [tiles, lanes].

    Eight tiles are halved three times: of each two, what one sums up lies between what the other does.
    """
    row = lax.broadcasted_iota(jnp.int32, tiles[0].shape, 0)
    left, shift = [*tiles, *[tiles[-1]] * (SUBLANES - len(tiles))], 1
    while len(left) > 1:
        own = lax.bitwise_and(row, jnp.int32(shift)) == 0
        left = [
            jnp.where(own, x, y) + pltpu.roll(jnp.where(own, y, x), shift, 0)
            for x, y in zip(left[::2], left[1::2], strict=True)
        ]
        shift *= 2
    return left[0][: len(tiles)]


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
