"""The gradient kernel of the scan through Triton: what `pallas_triton` runs last in the backward pass.

Triton has no scratch memory that a program could index, so it writes one state of a chunk in `stride` to
global memory, and recomputes those between in registers. There it also keeps what belongs to tokens and
channels alone, and sums the gradients of B and C over its tiles of channels. A program reuses its part of
that memory for one chunk after another: the memory does not grow with the sequence.

What a token's states give is summed where they are first at hand, y and C's gradient in the walk forward.
Few programs fit on a processor, and each is at another place of the code: shorter loops suit its caches of
instructions, and all that a stride reads is read a whole stride ahead. Nothing is computed of rows alone
beside the states, where several threads would compute the same.
"""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, gate_gradient, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import WARP
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelInputs
from jaxmamba3d.ops.selective_scan.recurrence import (
    Token,
    advance,
    decay_of,
    readout,
    readout_gradient,
    retreat,
)
from jaxmamba3d.ops.selective_scan.triton_tile import Tile, TritonCall, begun, reading_ahead, spread

ROW_NUMBERS, COLUMN_NUMBERS = 4, 16
"""Of a thread where rows of channels, or columns, are all there is. More of rows would change how Triton
spreads tiles over threads, and so the sums over states."""


class ChunkRows(NamedTuple):
    """What a chunk's tokens have for the channels of a tile, [chunk, tile] float32.

    Args:
        drive, step: of the recurrence, a token's drive and delta.
        g_y: gradient of the readout.
        g_drive, g_step: gradients of drive and step.
        y: the readout; None where nothing needs it.
    """

    drive: Any
    step: Any
    g_y: Any
    g_drive: Any
    g_step: Any
    y: Any


class GradientMemory(NamedTuple):
    """A program's own memory in the gradient kernel.

    Args:
        states: one in `stride` of a chunk, [chunk / stride, gradient_states, tile].
        rows: of a chunk and a tile.
        B, C: their gradients of a chunk, summed over the tiles up to now, [chunk, N]; None for a single tile.
    """

    states: Any
    rows: ChunkRows
    B: Any
    C: Any


class _Block(NamedTuple):
    """What a program works on: inputs, states before and gradients after its chunks, results, own memory."""

    inputs: KernelInputs
    h_in: Any
    g_in: Any
    out: ScanArguments
    memory: GradientMemory


def gradient_kernel(
    call: TritonCall, refs: KernelInputs, h_in_ref, g_in_ref, out: ScanArguments, memory: GradientMemory
):
    """All gradients of a block, from the states before and the gradients after its chunks.

    Those of the parameters are sums over the block, those of B and C over its channels.
    """
    blocks, block = call.blocks, _Block(refs, h_in_ref, g_in_ref, out, memory)
    channel_offset = pl.program_id(2) * blocks.groups * blocks.gradient_tile
    token_offset = pl.program_id(1) * blocks.run * blocks.chunk

    # The last programs of an axis may have less to do.
    chunks = jnp.minimum(blocks.run, call.chunks - pl.program_id(1) * blocks.run)
    tiles = pl.cdiv(call.channels, blocks.gradient_tile)
    groups = jnp.minimum(blocks.groups, tiles - pl.program_id(2) * blocks.groups)

    def tile(group):
        return Tile(
            call,
            width=blocks.gradient_tile,
            first_channel=group * blocks.gradient_tile,
            channel_offset=channel_offset,
            token_offset=token_offset,
            first_state=0,
            states=blocks.gradient_states,
            part=blocks.gradient_part,
        )

    def one_chunk(k, _):
        _begin_column_sums(tile(0), memory)
        lax.fori_loop(0, groups, lambda group, _: _one_tile(tile(group), block, k), None)
        _store_column_sums(tile(0), block, k)

    lax.fori_loop(0, chunks, one_chunk, None)


def _begin_column_sums(tile: Tile, memory: GradientMemory):
    """With zeros, which takes fewer instructions than to ask of every summand whether it is the first."""
    count = _tokens_at_once(tile, tile.call.state_tile, COLUMN_NUMBERS)
    zeros = jnp.zeros((count, tile.call.state_tile), jnp.float32)

    def some(i, _):
        for ref in (memory.B, memory.C):
            _write(ref, i * count, zeros)

    if memory.B is not None:
        lax.fori_loop(0, tile.call.blocks.chunk // count, some, None)
        _barrier(tile.call)


def _store_column_sums(tile: Tile, block: _Block, k):
    """As the gradients of B and C of chunk k."""
    chunk, count = tile.call.blocks.chunk, _tokens_at_once(tile, tile.call.state_tile, COLUMN_NUMBERS)

    def some(i, _):
        for ref, kept in ((block.out.B, block.memory.B), (block.out.C, block.memory.C)):
            tile.store_columns(ref, k * chunk + i * count, _read(kept, i * count, count))

    if block.memory.B is not None:
        lax.fori_loop(0, chunk // count, some, None)
        _barrier(tile.call)


def _one_tile(tile: Tile, block: _Block, k):
    """The gradients of chunk k of the block for one tile of channels, so many states at a time."""
    call, out = tile.call, block.out
    first = k * call.blocks.chunk
    D, delta_bias = tile.parameter(block.inputs.D), tile.parameter(block.inputs.delta_bias)
    _before_the_states(tile, block, first, delta_bias)
    _barrier(call)

    def some_states(i, _):
        _states(replace(tile, first_state=i * tile.states), block, k, i > 0)
        _barrier(call)

    times = pl.cdiv(call.states, tile.states)
    if times == 1:
        some_states(0, None)
    else:
        lax.fori_loop(0, times, some_states, None)
    g_D, g_bias = _after_the_states(tile, block, first, D, delta_bias)
    tile.store_parameter(out.D, g_D, k > 0)
    tile.store_parameter(out.delta_bias, g_bias, k > 0)
    _barrier(call)


def _states(tile: Tile, block: _Block, k, add_states):
    """The gradients that some of the states give; `add_states`: others have begun the sums."""
    call, form = tile.call, tile.call.form
    refs, out, memory = block.inputs, block.out, block.memory
    A = tile.state(refs.A)
    decay = decay_of(A, form)
    chunk, stride, once = call.blocks.chunk, call.blocks.stride, call.once()
    first, strides, rows = k * chunk, chunk // stride, memory.rows

    def read(s, column_sums, row_sums):
        """Of a stride's tokens: they, the gradients of their readouts, and sums up to now, of columns over
        tiles and of rows over states.

        Columns are not spread yet, for that makes all threads wait.
        """

        def row_sum(ref, i):
            if ref is None or add_states is False:
                return None
            return begun(ref.at[pl.ds(i, 1), :], None, add_states)

        def of_token(i):
            drive, step, g_y = (_read(x, i) for x in (rows.drive, rows.step, rows.g_y))
            columns = (tile.column(x, first + i) for x in (refs.B, refs.C))
            kept = tile.kept_column(column_sums, i), [row_sum(x, i) for x in row_sums]
            return Token(drive, step, *columns), g_y, *kept

        return [of_token(i) for i in call.positions(s)]

    def spread_columns(read):
        return [(token._replace(B=spread(token.B), C=spread(token.C)), *rest) for token, *rest in read]

    def add_column(ref, sums, i, column, kept):
        column = tuple(x[:, 0] for x in column)
        if sums is None:
            tile.store_column(ref, first + i, column)
        else:
            tile.keep_column(sums, i, jax.tree.map(jnp.add, kept, column))

    def add_rows(sums, i, found, kept):
        for ref, row, before in zip(sums, found, kept, strict=True):
            if ref is not None:
                _write(ref, i, row if before is None else before + row)

    def forward(s, read, h):
        for place, part in zip(tile.parts, h, strict=True):
            plt.store(memory.states.at[s, pl.ds(place, tile.part), :], part)
        found = []
        for token, g_y, *kept in spread_columns(read):
            h = advance(h, token, decay(token.delta), form)
            y = None if rows.y is None else readout(h, token, form)
            found.append((y, readout_gradient(h, g_y, form), *kept))
        # Rows change threads before they are stored, which parts the instructions before from those after.
        for i, (y, g_C, g_C_before, before) in zip(call.positions(s), found, strict=True):
            add_rows((rows.y,), i, (y,), before)
            add_column(out.C, memory.C, i, g_C, g_C_before)
        return h

    def read_forward(s):
        return read(s, memory.C, (rows.y,))

    reading_ahead(strides, read_forward, forward, tile.state(block.h_in, k), once=once)
    _barrier(call)

    row_gradients = rows.g_drive, rows.g_step

    def read_backward(i):
        s = strides - 1 - i
        state = tuple(plt.load(memory.states.at[s, pl.ds(p, tile.part), :]) for p in tile.parts)
        return state, read(s, memory.B, row_gradients)

    def backward(i, read, carry):
        g, g_A = carry
        state, tokens = read
        states, tokens = [state], spread_columns(tokens)
        for token, *_ in tokens[:-1]:
            states.append(advance(states[-1], token, decay(token.delta), form))
        found = []
        for h, (token, g_y, *kept) in zip(reversed(states), reversed(tokens), strict=True):
            g, g_A, g_token = retreat(g, token, A, decay(token.delta), h, None, g_y, g_A, form)
            found.append((g_token, *kept))
        places = reversed(call.positions(strides - 1 - i))
        for place, (g_token, g_B_before, before) in zip(places, found, strict=True):
            add_rows(row_gradients, place, (g_token.drive, g_token.delta), before)
            add_column(out.B, memory.B, place, g_token.B, g_B_before)
        return g, g_A

    zero = jax.tree.map(jnp.zeros_like, A)
    _, g_A = reading_ahead(strides, read_backward, backward, (tile.state(block.g_in, k), zero), once=once)
    tile.store_state(out.A, g_A, k > 0)


def _before_the_states(tile: Tile, block: _Block, first, delta_bias):
    """The drives and steps of a chunk and the gradients of its readouts, with all threads on different
    numbers."""
    refs, rows, count = block.inputs, block.memory.rows, _tokens_at_once(tile, tile.width, ROW_NUMBERS)

    def read(i):
        return tuple(tile.row(x, first + i * count, count) for x in (refs.u, refs.delta, refs.z, refs.g_out))

    def some(i, read, _):
        u, delta, z, g_out = read
        step = tile.step(first + i * count, delta, delta_bias)
        _write(rows.drive, i * count, step * u)
        _write(rows.step, i * count, step)
        _write(rows.g_y, i * count, gate_gradient(g_out, z))

    reading_ahead(tile.call.blocks.chunk // count, read, some, None)


def _after_the_states(tile: Tile, block: _Block, first, D, delta_bias):
    """The gradients of u, delta and z of a chunk; returns those of D and delta_bias, [1, tile]."""
    refs, out, rows = block.inputs, block.out, block.memory.rows
    count = _tokens_at_once(tile, tile.width, ROW_NUMBERS)

    def for_each_token(parameter):
        return None if parameter is None else jnp.broadcast_to(parameter, (count, tile.width))

    D, delta_bias = for_each_token(D), for_each_token(delta_bias)

    def read(i):
        given = refs.u, refs.delta, refs.z, refs.g_out
        kept = rows.g_drive, rows.g_step, rows.y
        return (
            *(tile.row(x, first + i * count, count) for x in given),
            *(None if x is None else _read(x, i * count, count) for x in kept),
        )

    def some(i, read, sums):
        t = first + i * count
        u, delta, z, g_out, g_drive, g_step, y = read
        y = jnp.zeros_like(u) if y is None else y
        _, gate_vjp = jax.vjp(functools.partial(skip_and_gate, y), u, D, z)
        step, step_vjp = jax.vjp(functools.partial(tile.step, t), delta, delta_bias)
        g_u, g_D, g_z = gate_vjp(g_out)
        g_delta, g_bias = step_vjp(g_step + g_drive * u)
        tile.store_row(out.u, t, g_drive * step + (0.0 if D is None else g_u))
        tile.store_row(out.delta, t, g_delta)
        tile.store_row(out.z, t, g_z)
        return jax.tree.map(jnp.add, sums, (g_D, g_bias))

    zeros = jax.tree.map(jnp.zeros_like, (D, delta_bias))
    sums = reading_ahead(tile.call.blocks.chunk // count, read, some, zeros)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums)


def _tokens_at_once(tile: Tile, width: int, numbers: int) -> int:
    """As many as give every thread so many numbers, of rows or columns of `width`."""
    blocks = tile.call.blocks
    return min(blocks.chunk, max(1, numbers * WARP * blocks.gradient_warps // width))


def _read(ref, i, count=1):
    return plt.load(ref.at[pl.ds(i, count), :])


def _write(ref, i, rows):
    plt.store(ref.at[pl.ds(i, rows.shape[0]), :], rows)


def _barrier(call: TritonCall):
    """Makes what a program wrote to global memory visible to all of its threads."""
    if not call.options.interpret:
        plt.debug_barrier()
