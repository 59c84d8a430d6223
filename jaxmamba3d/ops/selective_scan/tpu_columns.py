"""B and C of a TPU kernel's tokens, repeated over the channels.

Channels lie on lanes. The units that permute lanes take 8 cycles to repeat a column over a register,
so the matrix units repeat most of them.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxmamba3d.ops.backend import LANES, SUBLANES

PARTS = 3
"""Numbers of bfloat16 in one of float32."""

PRODUCT_CYCLES, PERMUTATION_CYCLES = 2, 8 / 3
"""What it takes all matrix units (of v5e: four), or all that permute (three), to fill a register."""


def in_three_parts(columns):
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


def repeated(rows, columns, height: int, fold: int, lanes: int, order: Sequence[int]) -> dict:
    """For each token [height, lanes], its numbers repeated over the lanes: state `k height + i` of
    `fold height` in row i of the k-th of `fold` parts of the lanes.

    Args:
        rows: what `in_three_parts` made of some tokens [T, 128].
        columns: the same tokens as they were [N, T], if units that permute are to take their share.
        order: of the tokens to work on.
    """
    count = 0 if columns is None else permuted_rows(height, fold)
    parts = []
    if count:
        parts.append(_permuted(columns, count, height, fold, lanes, order))
    if count < height:
        parts.append(_multiplied(rows, count, height, fold, lanes, order))
    return {i: jnp.concatenate([part[i] for part in parts], axis=0) for i in order}


def permuted_rows(height: int, fold: int) -> int:
    """First rows to permute, if another tile is all multiplied, so that all units end as soon as they can."""
    registers = height // SUBLANES

    def cycles(some):
        return max((2 * registers - some) * PRODUCT_CYCLES, some * fold * PERMUTATION_CYCLES)

    return SUBLANES * min(range(registers + 1), key=cycles)


def _permuted(columns, count: int, height: int, fold: int, lanes: int, order: Sequence[int]) -> dict:
    """The first rows, each part of the lanes by itself."""
    lane = lax.broadcasted_iota(jnp.int32, (count, lanes), 1)
    tiles = {}
    for i in order:
        for part in reversed(range(fold)):
            column = columns[part * height :][:count, i : i + 1]
            here = lane < (part + 1) * (lanes // fold)
            tiles[i] = (
                jnp.where(here, column, tiles[i]) if i in tiles else jnp.broadcast_to(column, lane.shape)
            )
    return tiles


def _multiplied(rows, first: int, height: int, fold: int, lanes: int, order: Sequence[int]) -> dict:
    """All but the first rows.

    By the matrix unit, as a product of a matrix with the numbers of one state in each of its rows, and 0
    elsewhere, and of one with 1 where a number goes, and 0 elsewhere: one number's three parts are added up,
    to the bit.
    """
    state, lane = (lax.broadcasted_iota(jnp.int32, (height, LANES), axis) for axis in (0, 1))
    own = (lax.rem(lane, jnp.int32(height)) == state)[first:]
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
    return dict(zip(order, jnp.split(product, len(order)), strict=True))
