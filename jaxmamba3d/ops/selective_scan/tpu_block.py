"""Blocks of the TPU kernels: how a call is cut, and how a block becomes the tokens that a kernel walks."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmamba3d.ops.selective_scan.arguments import step_size
from jaxmamba3d.ops.selective_scan.blocks import LANES, TpuBlocks
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelInputs, KernelOptions
from jaxmamba3d.ops.selective_scan.recurrence import Token

ROWS = 8
"""Tokens that are read, and unrolled, at once: the sublanes of a register."""


@dataclass(frozen=True)
class Call:
    """The static part of a call, and how it is cut."""

    options: KernelOptions
    batch: int
    length: int
    channels: int
    states: int
    blocks: TpuBlocks

    @property
    def chunks(self) -> int:
        return pl.cdiv(self.length, self.blocks.chunk)

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.channels, self.blocks.tile)

    def stored_chunk(self, step, backward: bool):
        """The chunk, in stored order, that a step of the grid works on."""
        return self.chunks - 1 - step if self.options.reverse != backward else step


def read_rows(call: Call, ref, backward: bool, channels: bool):
    """A block as float32 rows [T, D] or [T, N], 0 beyond the sequence and the channels."""
    if ref is None:
        return None
    rows = turned_block(ref[...].astype(jnp.float32), call.channels if channels else call.states)
    if call.length % call.blocks.chunk:
        rows = jnp.where(in_sequence(call, rows.shape, backward), rows, 0.0)
    return within_channels(call, rows) if channels else rows


def turned_block(block, width: int):
    """From blocks to rows, or back: narrow arrays have time last."""
    return block.T if width < LANES else block


def in_sequence(call: Call, shape, backward: bool):
    """Which rows of a block are tokens of the sequence."""
    first = call.stored_chunk(pl.program_id(1), backward) * call.blocks.chunk
    return first + lax.broadcasted_iota(jnp.int32, shape, 0) < call.length


def within_channels(call: Call, value):
    """A tile with channels last, 0 beyond the channels."""
    if call.channels % call.blocks.tile == 0:
        return value
    first = pl.program_id(2) * call.blocks.tile
    return jnp.where(first + lax.broadcasted_iota(jnp.int32, value.shape, 1) < call.channels, value, 0.0)


def steps_of(call: Call, backward: bool, delta, delta_bias):
    """Steps [T, D] from the rows of delta, 0 beyond the sequence."""
    steps = step_size(delta, delta_bias, call.options.delta_softplus)
    if call.length % call.blocks.chunk == 0:
        return steps
    return jnp.where(in_sequence(call, steps.shape, backward), steps, 0.0)


def read_tile(call: Call, ref):
    """A parameter or state of the tile's channels; None stays None."""
    return None if ref is None else within_channels(call, ref[...])


def walk(call: Call, body, carry, *, backward: bool = False):
    """carry = body(first row, rows, carry) for groups of rows of a chunk, in scan order or against it."""
    whole, rest = divmod(call.blocks.chunk, ROWS)
    descending = call.options.reverse != backward

    def group(i, carry):
        k = whole - 1 - i if descending else i
        return body(pl.multiple_of(k * ROWS, ROWS), ROWS, carry)

    if rest and descending:
        carry = body(whole * ROWS, rest, carry)
    if whole:
        carry = lax.fori_loop(0, whole, group, carry)
    if rest and not descending:
        carry = body(whole * ROWS, rest, carry)
    return carry


def order_of(call: Call, count: int, *, backward: bool = False):
    return range(count - 1, -1, -1) if call.options.reverse != backward else range(count)


class TokenScratch(NamedTuple):
    """Rows of a chunk in VMEM: u, delta [T, D]; B, C [T, N]."""

    u: Any
    delta: Any
    B: Any
    C: Any

    def tokens(self, first, count: int) -> list[Token]:
        rows = pl.ds(first, count)
        u, delta = self.u[rows, :], self.delta[rows, :]
        B, C = self.B[rows, :].T, self.C[rows, :].T
        return [Token(u[i : i + 1], delta[i : i + 1], B[:, i : i + 1], C[:, i : i + 1]) for i in range(count)]

    def fill(self, call: Call, refs: KernelInputs, backward: bool):
        """Reads a block; returns the rows of u and of the delta given."""
        u, delta = (read_rows(call, ref, backward, True) for ref in (refs.u, refs.delta))
        self.u[...] = u
        self.delta[...] = steps_of(call, backward, delta, read_tile(call, refs.delta_bias))
        self.B[...], self.C[...] = (read_rows(call, ref, backward, False) for ref in (refs.B, refs.C))
        return u, delta
