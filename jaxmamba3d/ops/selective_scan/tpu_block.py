"""Blocks of the TPU kernels: how a call is cut, and how a block becomes the tokens that a kernel walks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmamba3d.ops.backend import LANES, SUBLANES
from jaxmamba3d.ops.selective_scan.arguments import step_size
from jaxmamba3d.ops.selective_scan.blocks import TpuBlocks
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelCall, KernelInputs
from jaxmamba3d.ops.selective_scan.recurrence import CHANNELS_LAST, Token
from jaxmamba3d.ops.selective_scan.tpu_columns import in_three_parts, repeated
from jaxmamba3d.ops.selective_scan.tpu_sums import line_sums, line_tokens, one_register

GROUP, INTERPRETED_GROUP = 128, 8
"""Tokens that are unrolled at once: enough to keep all units at work while the first results are under way,
and a register's lanes of them; of interpreted kernels, which take XLA the longer to compile, as few as a line
of sums has."""


@dataclass(frozen=True)
class TpuCall(KernelCall):
    """A program's block is a chunk by a tile of channels; its states come in tiles, one after another."""

    blocks: TpuBlocks

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.channels, self.blocks.tile)

    @property
    def lanes(self) -> int:
        """Of a tile: its channels, once for each part of the states."""
        return self.blocks.fold * self.blocks.tile

    @property
    def tile_states(self) -> int:
        """States of a tile."""
        return self.blocks.fold * self.blocks.height

    @property
    def state_tiles(self) -> int:
        return self.blocks.state_tiles(self.states)

    @property
    def filled_states(self) -> int:
        """States of all tiles, those that fill up the last one among them."""
        return self.state_tiles * self.tile_states

    def for_each_state_tile(self, body) -> None:
        """body(state tile), one after another."""
        if self.state_tiles == 1:
            body(0)
        else:
            pl.loop(0, self.state_tiles)(body)

    @property
    def group(self) -> int:
        """Tokens that are unrolled at once."""
        return INTERPRETED_GROUP if self.options.interpret else GROUP

    def stored_chunk(self, step, backward: bool):
        """The chunk, in stored order, that a step of the grid works on."""
        return self.chunks - 1 - step if self.descends(backward) else step


def untiled(call: TpuCall, array: jax.Array) -> jax.Array:
    """[B, tiles, *rows, lanes] -> [B, *rows, fold, D]."""
    joined = jnp.moveaxis(array, 1, -2)
    joined = joined.reshape(*joined.shape[:-2], call.blocks.fold, -1)
    return joined[..., : call.channels]


def folded(call: TpuCall, array: jax.Array) -> jax.Array:
    """[..., D, N] -> [..., state tiles, height, fold D], 0 where states fill up a tile."""
    *outer, channels, states = array.shape
    filled = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, call.filled_states - states)])
    state_tiles, height = call.state_tiles, call.blocks.height
    parts = filled.reshape(*outer, channels, state_tiles, call.blocks.fold, height)
    parts = jnp.moveaxis(parts, -4, -1)  # [..., state tiles, fold, height, D]
    return jnp.swapaxes(parts, -3, -2).reshape(*outer, state_tiles, height, -1)


def unfolded(call: TpuCall, array: jax.Array) -> jax.Array:
    """[B, tiles, state tiles, height, lanes] -> [B, D, N]."""
    parts = jnp.swapaxes(untiled(call, array), 2, 3)  # [B, state tiles, fold, height, D]
    joined = parts.reshape(call.batch, call.filled_states, call.channels)
    return jnp.swapaxes(joined, 1, 2)[..., : call.states]


def read_rows(call: TpuCall, ref, backward: bool):
    """A block of channels as float32 rows [T, lanes], 0 beyond the sequence and the channels."""
    if ref is None:
        return None
    block = ref[...].astype(jnp.float32)
    rows = jnp.concatenate([block] * call.blocks.fold, axis=0).T if call.channels < LANES else block
    return _within_channels(call, pl.program_id(2), _within_sequence(call, rows, 0, backward))


def _read_columns(call: TpuCall, ref, backward: bool):
    """A block of states as float32 [N, T], 0 beyond the sequence."""
    return _within_sequence(call, ref[...].astype(jnp.float32), 1, backward)


def row_block(call: TpuCall, rows):
    """Rows as a block of channels: the sum of what the parts of the states have given."""
    if call.channels >= LANES:
        return rows
    block = rows.T
    return sum(block[k * call.channels :][: call.channels] for k in range(call.blocks.fold))


def _within_sequence(call: TpuCall, value, axis: int, backward: bool):
    """0 where the axis, time, goes beyond the sequence."""
    if call.length % call.blocks.chunk == 0:
        return value
    first = call.stored_chunk(pl.program_id(1), backward) * call.blocks.chunk
    return jnp.where(first + lax.broadcasted_iota(jnp.int32, value.shape, axis) < call.length, value, 0.0)


def _within_channels(call: TpuCall, tile, value):
    """A tile with channels last, 0 beyond the channels."""
    if call.channels % call.blocks.tile == 0:
        return value
    channel = tile * call.blocks.tile + lax.broadcasted_iota(jnp.int32, value.shape, 1)
    return jnp.where(channel < call.channels, value, 0.0)


def steps_of(call: TpuCall, backward: bool, delta, delta_bias):
    """Steps [T, lanes] from the rows of delta, 0 beyond the sequence."""
    steps = step_size(delta, delta_bias, call.options.delta_softplus)
    return _within_sequence(call, steps, 0, backward)


def read_tile(call: TpuCall, ref, tile, state_tile=...):
    """A parameter or state of the tile's channels; None stays None."""
    return None if ref is None else _within_channels(call, tile, ref[state_tile])


def walk(call: TpuCall, body, carry, *, backward: bool = False):
    """carry = body(first row, rows, carry) for groups of rows of a chunk, in scan order or against it."""
    whole, rest = divmod(call.blocks.chunk, call.group)
    descending = call.descends(backward)

    def group(i, carry):
        k = whole - 1 - i if descending else i
        return body(pl.multiple_of(k * call.group, call.group), call.group, carry)

    if rest and descending:
        carry = body(whole * call.group, rest, carry)
    if whole:
        carry = lax.fori_loop(0, whole, group, carry)
    if rest and not descending:
        carry = body(whole * call.group, rest, carry)
    return carry


def registers_of(call: TpuCall, count: int, *, backward: bool = False) -> list[range]:
    """The rows of each register of `count` rows, in scan order or against it."""
    registers = [range(i, min(i + SUBLANES, count)) for i in range(0, count, SUBLANES)]
    return [rows[::-1] for rows in registers[::-1]] if call.descends(backward) else registers


def rows_of(first, register: range):
    """A slice of the register's rows, counted from `first`."""
    return pl.ds(first + min(register), len(register))


def in_order(values: dict[int, Any]) -> list:
    """By row, whatever order they were found in."""
    return [values[i] for i in sorted(values)]


class TokenScratch(NamedTuple):
    """A chunk in VMEM: rows of drive and delta [T, lanes]; of B and C, for each tile of states, what
    `in_three_parts` makes of them [state tiles, T, 128], and B itself [state tiles, fold height, T]."""

    drive: Any
    delta: Any
    B: Any
    C: Any
    B_columns: Any

    def tokens(self, call: TpuCall, state_tile, first, count: int) -> Iterator[tuple[range, Iterator]]:
        """For each register of rows, in scan order, the rows and (i, token `first` + i); columns are repeated
        over all lanes of a tile."""
        registers = registers_of(call, count)
        order = [i for register in registers for i in register]
        rows, form = pl.ds(first, count), (call.blocks.height, call.blocks.fold, call.lanes)
        B = repeated(self.B[state_tile, rows, :], self.B_columns[state_tile, :, rows], *form, order)
        C = repeated(self.C[state_tile, rows, :], None, *form, order)

        def token(i):
            row = pl.ds(first + i, 1)
            return i, Token(self.drive[row, :], self.delta[row, :], B[i], C[i])

        for register in registers:
            yield register, map(token, register)

    def fill(self, call: TpuCall, refs: KernelInputs, backward: bool):
        """Reads a block; returns the rows of u and of the delta given."""
        u, delta = (read_rows(call, ref, backward) for ref in (refs.u, refs.delta))
        steps = steps_of(call, backward, delta, read_tile(call, refs.delta_bias, pl.program_id(2)))
        self.delta[...], self.drive[...] = steps, steps * u
        B, C = (_read_columns(call, ref, backward) for ref in (refs.B, refs.C))
        for i in range(call.state_tiles):
            own = slice(i * call.tile_states, (i + 1) * call.tile_states)
            self.B[i], self.C[i], self.B_columns[i] = in_three_parts(B[own]), in_three_parts(C[own]), B[own]
        return u, delta


PRODUCTS = CHANNELS_LAST._replace(over_states=one_register, over_channels=lambda tile: tile)
"""Tiles whose sums over states are left to `row_sums`, and those over channels to `LineScratch`."""


class LineScratch(NamedTuple):
    """Sums over channels in VMEM: for each tile of states lines of tokens
    [state tiles, fold, T / tokens, tokens height], and rows [state tiles, T, fold height]."""

    lines: Any
    rows: Any

    def put(self, state_tile, first, tiles):
        """Sums up the tiles of tokens."""
        tokens = line_tokens(tiles[0].shape[0])
        line = lax.div(jnp.int32(first), jnp.int32(tokens))
        for j, parts in enumerate(line_sums(tiles, self.lines.shape[1])):
            for k, sums in enumerate(parts):
                self.lines[state_tile, k, pl.ds(line + j, 1), : sums.shape[1]] = sums

    def columns(self, call: TpuCall):
        """[N, T]."""
        state_tiles, fold, count, _ = self.lines.shape
        height, tokens = call.blocks.height, line_tokens(call.blocks.height)
        columns = []
        for k in range(state_tiles):
            lines = [self.lines[k, part] for part in range(fold)]
            for i in range(tokens):
                parts = [line[:, i * height : (i + 1) * height] for line in lines]
                self.rows.at[k][pl.ds(i, count, stride=tokens), :] = jnp.concatenate(parts, axis=1)
            columns.append(self.rows[k].T[:, : call.blocks.chunk])
        return jnp.concatenate(columns, axis=0)
