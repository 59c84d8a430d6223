"""The walk of the forward kernels of `pallas_triton` over the tokens of a chunk.

Steps and gates are computed for as many tokens at a time as give every thread a number. Of fewer, Triton has
each thread compute all those that its states need, many of them in several threads, and a softplus takes more
instructions than a token's states of a thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.ops.selective_scan.kernel_scan import KernelInputs
from jaxmamba3d.ops.selective_scan.recurrence import Token
from jaxmamba3d.ops.selective_scan.triton_tile import Tile, reading_ahead, spread


class Rows(NamedTuple):
    """Of several tokens, [count, width] float32, in the order of time; None where they are not read."""

    delta: jax.Array
    u: jax.Array | None = None
    z: jax.Array | None = None
    g_out: jax.Array | None = None


class Group(NamedTuple):
    """Tokens that are worked on together.

    Columns change threads before they meet tiles, and all threads wait for that: what several tokens need is
    read before the first of them is used.

    Args:
        first: the earliest of them, counted from the start of the block.
        rows: of all.
        u, B, C: of each, rows and columns, in the order of the walk; columns are not spread yet.
    """

    first: jax.Array
    rows: Rows
    u: list[Any]
    B: list[Any]
    C: list[Any]


@dataclass(frozen=True)
class Walk:
    """Over the chunk of a tile in scan order, or against it.

    Args:
        tile: what the program holds.
        refs: inputs; those that are None are not read.
        rows: which `Rows` of a group are read.
        backward: against scan order.
    """

    tile: Tile
    refs: KernelInputs
    rows: tuple[str, ...]
    backward: bool = False

    @property
    def count(self) -> int:
        """Tokens of a group."""
        return self.tile.call.blocks.row_tokens

    def __call__(self, body: Callable[[Group, Any], Any], carry):
        """carry = body(group, carry) for one group after the other."""
        blocks = self.tile.call.blocks
        at_once = max(1, blocks.stride // self.count)

        def read(s):
            return [self._read(s * at_once + i) for i in range(at_once)]

        def several(s, groups, carry):
            for group in groups:
                carry = body(group, carry)
            return carry

        return reading_ahead(blocks.chunk // (at_once * self.count), read, several, carry)

    def _read(self, i) -> Group:
        """The group that comes as number i."""
        tile, refs, count = self.tile, self.refs, self.count
        if self._in_reverse:
            i = tile.call.blocks.chunk // count - 1 - i
        first = i * count
        none = KernelInputs(*[None] * len(KernelInputs._fields))
        rows = none._replace(**{name: tile.row(getattr(refs, name), first, count) for name in self.rows})
        places = [first + j for j in self._order]
        u, B, C = (
            [tile.row(refs.u, t) for t in places],
            *([tile.column(x, t) for t in places] for x in (refs.B, refs.C)),
        )
        return Group(first, rows, u, B, C)

    @property
    def _in_reverse(self) -> bool:
        return self.tile.call.options.reverse != self.backward

    @property
    def _order(self) -> list[int]:
        """Of the walk within a group, counted from its earliest token."""
        order = list(range(self.count))
        return order[::-1] if self._in_reverse else order

    def tokens(self, group: Group, steps: jax.Array) -> list[Token]:
        """Of a group and its steps [count, width], in the order of the walk."""
        each = zip(group.u, self.each(steps), group.B, group.C, strict=True)
        return [Token(u, step, spread(B), spread(C)) for u, step, B, C in each]

    def each(self, rows: jax.Array) -> list[jax.Array]:
        """Rows [count, width] -> [1, width] of each token, in the order of the walk."""
        if self.count == 1:
            return [rows]
        return [jnp.sum(jnp.where(self._place == j, rows, 0.0), axis=0, keepdims=True) for j in self._order]

    def together(self, each: list[jax.Array]) -> jax.Array:
        """The inverse of `each`."""
        rows = jnp.broadcast_to(each[0], self._place.shape)
        for j, row in zip(self._order[1:], each[1:], strict=True):
            rows = jnp.where(self._place == j, row, rows)
        return rows

    @property
    def _place(self) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (self.count, self.tile.width), 0)
