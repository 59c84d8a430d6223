"""The walk of the forward kernels of `pallas_triton` over the tokens of a chunk.

Steps and gates are computed for a group of tokens at a time, as many as give every thread a number. With
fewer, several threads would compute the same steps and gates, and one softplus takes more instructions than
all that a thread does for its states of a token.
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
    """Of a group's tokens, [count, width] float32, in the order of time; None where they are not read."""

    delta: jax.Array
    u: jax.Array | None = None
    z: jax.Array | None = None
    g_out: jax.Array | None = None


@dataclass(frozen=True)
class Walk:
    """Over the chunk of a tile in scan order, or against it, one group of `row_tokens` tokens after another.

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

    def __call__(
        self,
        before: Callable[[jax.Array, Rows], list[jax.Array]],
        each: Callable[..., tuple[Any, jax.Array | None]],
        carry: Any,
        after: Callable[[jax.Array, Rows, jax.Array], None] | None = None,
    ) -> Any:
        """Calls `before` for every group, then `each` for every token of it, then `after`.

        Args:
            before: (a group's earliest token, its rows) -> rows [count, width] that its tokens are given, the
                steps first.
            each: (token, its other given rows, carry) -> carry and, where there is `after`, a row [1, width].
            carry: what goes from token to token.
            after: (a group's earliest token, its rows, the rows of `each` [count, width]).

        Returns:
            the last carry.
        """
        blocks = self.tile.call.blocks
        at_once = max(1, blocks.stride // self._count)

        def read(i):
            return [self._read_group(i * at_once + j) for j in range(at_once)]

        def several(i, groups, carry):
            for j, group in enumerate(groups):
                carry = self._one_group(i * at_once + j, *group, before, each, carry, after)
            return carry

        return reading_ahead(blocks.chunk // (at_once * self._count), read, several, carry)

    def _one_group(self, i, rows: Rows, read_first, before, each, carry, after):
        first = self._first(i)
        given = before(first, rows)

        def several(k, read, carry_and_found):
            carry, found = carry_and_found
            for j, (u, B, C) in enumerate(read):
                place = self._place(k, j)
                step, *others = (self._row(x, place) for x in given)
                drive = None if u is None else step * u
                carry, row = each(Token(drive, step, spread(B), spread(C)), *others, carry)
                found = self._with_row(found, place, row)
            return carry, found

        found = None if after is None else jnp.zeros((self._count, self.tile.width), jnp.float32)
        carry, found = reading_ahead(
            self._count // self._unrolled,
            lambda k: self._read_tokens(first, k),
            several,
            (carry, found),
            read_first,
        )
        if after is not None:
            after(first, rows, found)
        return carry

    @property
    def _count(self) -> int:
        """Tokens of a group."""
        return self.tile.call.blocks.row_tokens

    @property
    def _unrolled(self) -> int:
        """Tokens of a group that are unrolled; the others come in a loop, or registers would not suffice."""
        return min(self._count, self.tile.call.blocks.stride)

    @property
    def _in_reverse(self) -> bool:
        return self.tile.call.descends(self.backward)

    def _first(self, i):
        """The earliest token of the group that comes as number i."""
        groups = self.tile.call.blocks.chunk // self._count
        return (groups - 1 - i if self._in_reverse else i) * self._count

    def _place(self, k, j: int):
        """Which of a group's tokens, in the order of time, is number j of those unrolled the k-th time."""
        place = k * self._unrolled + j
        return self._count - 1 - place if self._in_reverse else place

    def _read_group(self, i):
        first = self._first(i)
        rows = {name: self.tile.row(getattr(self.refs, name), first, self._count) for name in self.rows}
        return Rows(**rows), self._read_tokens(first, 0)

    def _read_tokens(self, first, k):
        """u, B and C of tokens, rows and columns; columns are not spread yet.

        Columns change threads before they meet tiles, and all threads wait for that: what several tokens need
        is read before the first of them is used.
        """
        tile, refs = self.tile, self.refs
        places = [first + self._place(k, j) for j in range(self._unrolled)]
        return [(tile.row(refs.u, t), tile.column(refs.B, t), tile.column(refs.C, t)) for t in places]

    def _row(self, rows: jax.Array, place) -> jax.Array:
        """[count, width] -> [1, width]."""
        if self._count == 1:
            return rows
        return jnp.sum(jnp.where(self._is_at(place), rows, 0.0), axis=0, keepdims=True)

    def _with_row(self, rows: jax.Array | None, place, row: jax.Array | None) -> jax.Array | None:
        if rows is None or self._count == 1:
            return row
        return jnp.where(self._is_at(place), row, rows)

    def _is_at(self, place) -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (self._count, self.tile.width), 0) == place
