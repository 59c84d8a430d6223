"""The gradient kernel of the scan through Triton: what `pallas_triton` runs last in the backward pass.

Triton has no scratch memory that a program could index, so it writes one state of a chunk in `stride` to
global memory, where it stays in the second-level cache, and recomputes those between in registers. There it
also sums the gradients of B and C over its tiles of channels. A program reuses its part of that memory for
one chunk after another: the memory does not grow with the sequence.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import WARP
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelInputs
from jaxmamba3d.ops.selective_scan.recurrence import Token, advance, decay_of, readout, retreat
from jaxmamba3d.ops.selective_scan.triton_tile import Call, Tile

ROW_NUMBERS = 4


class ChunkRows(NamedTuple):
    """What a chunk's tokens have for the channels of a tile, [chunk, tile] float32.

    Args:
        step: of the recurrence.
        g_y: gradient of the readout.
        g_step: gradient of the step.
        y: the readout; None where nothing needs it.
    """

    step: Any
    g_y: Any
    g_step: Any
    y: Any


class GradientMemory(NamedTuple):
    """A program's own memory in the gradient kernel.

    Args:
        states: one in `stride` of a chunk, [chunk / stride, N, tile].
        rows: of a chunk and a tile.
        B, C: their gradients of a chunk, summed over the tiles up to now, [chunk, N]; None for a single tile.
    """

    states: Any
    rows: ChunkRows
    B: Any
    C: Any


def gradient_kernel(
    call: Call, refs: KernelInputs, h_in_ref, g_in_ref, out: ScanArguments, memory: GradientMemory
):
    """All gradients of a block, from the states before and the gradients after its chunks.

    Those of the parameters are sums over the block, those of B and C over its channels.
    """
    blocks = call.blocks
    channel_offset = pl.program_id(2) * blocks.groups * blocks.gradient_tile
    token_offset = pl.program_id(1) * blocks.run * blocks.chunk

    # The last programs of an axis may have less to do.
    chunks = jnp.minimum(blocks.run, call.chunks - pl.program_id(1) * blocks.run)
    tiles = pl.cdiv(call.channels, blocks.gradient_tile)
    groups = jnp.minimum(blocks.groups, tiles - pl.program_id(2) * blocks.groups)

    def chunk_and_group(i, _):
        k, group = lax.div(i, groups), lax.rem(i, groups)
        tile = Tile(call, blocks.gradient_tile, group * blocks.gradient_tile, channel_offset, token_offset)
        order = k > 0, group > 0, group == groups - 1
        _one_tile(tile, refs, h_in_ref, g_in_ref, out, memory, k, *order)

    lax.fori_loop(0, chunks * groups, chunk_and_group, None)


def _one_tile(tile: Tile, refs, h_in_ref, g_in_ref, out, memory, k, add_chunk, add_tile, last_tile):
    """The gradients of chunk k of the block for one tile of channels.

    `add_chunk`, `add_tile`: whether earlier chunks and tiles have begun the sums; `last_tile` ends them.
    """
    call, form = tile.call, tile.call.form
    A, D, delta_bias = tile.state(refs.A), tile.parameter(refs.D), tile.parameter(refs.delta_bias)
    decay = decay_of(A, form)
    chunk, stride = call.blocks.chunk, call.blocks.stride
    first, strides, rows = k * chunk, chunk // stride, memory.rows

    def position(s, j):
        """In the chunk."""
        i = s * stride + j
        return chunk - 1 - i if call.options.reverse else i

    def token_at(s, j, C_ref=None):
        i = position(s, j)
        t = first + i
        return Token(tile.row(refs.u, t), _read(rows.step, i), tile.column(refs.B, t), tile.column(C_ref, t))

    def store_states(s, h):
        memory.states[s] = h
        for j in range(stride):
            token = token_at(s, j)
            h = advance(h, token, decay(token.delta), form)
        return h

    _before_the_states(tile, refs, rows, first, delta_bias)
    _barrier(call)
    lax.fori_loop(0, strides, store_states, tile.state(h_in_ref, k))
    _barrier(call)

    def gradients(i, carry):
        g, g_A = carry
        s = strides - 1 - i
        states, tokens = [memory.states[s]], []
        for j in range(stride):
            tokens.append(token_at(s, j, refs.C))
            states.append(advance(states[-1], tokens[-1], decay(tokens[-1].delta), form))
        for j in reversed(range(stride)):
            i, token = position(s, j), tokens[j]
            t, g_y = first + i, _read(rows.g_y, i)
            if rows.y is not None:
                _write(rows.y, i, readout(states[j + 1], token, form))
            here = decay(token.delta), states[j], states[j + 1], g_y
            g, g_A, g_token = retreat(g, token, A, *here, g_A, form)
            tile.store_row(out.u, t, g_token.u if D is None else g_token.u + g_y * D)
            _write(rows.g_step, i, g_token.delta)
            for ref, kept_ref, part in ((out.B, memory.B, g_token.B), (out.C, memory.C, g_token.C)):
                tile.store_column_sum(ref, t, part, kept_ref, i, add_tile, last_tile)
        return g, g_A

    _, g_A = lax.fori_loop(0, strides, gradients, (tile.state(g_in_ref, k), jnp.zeros_like(A)))
    tile.add_state(out.A, g_A, add_chunk)
    _barrier(call)
    g_D, g_bias = _after_the_states(tile, refs, out, rows, first, D, delta_bias)
    tile.add_parameter(out.D, g_D, add_chunk)
    tile.add_parameter(out.delta_bias, g_bias, add_chunk)
    _barrier(call)


def _before_the_states(tile: Tile, refs, rows: ChunkRows, first, delta_bias):
    """The steps of a chunk and the gradients of its readouts.

    With all threads on different numbers: beside the states, several of them compute the same row.
    """
    count = _tokens_at_once(tile)

    def some(i, _):
        t = first + i * count
        step = tile.step(t, tile.row(refs.delta, t, count), delta_bias)
        # The gate is linear in y: what it makes of y it makes of the gradient.
        g_y = skip_and_gate(tile.row(refs.g_out, t, count), None, None, tile.row(refs.z, t, count))
        _write(rows.step, i * count, step)
        _write(rows.g_y, i * count, g_y)

    lax.fori_loop(0, tile.call.blocks.chunk // count, some, None)


def _after_the_states(tile: Tile, refs, out, rows: ChunkRows, first, D, delta_bias):
    """The gradients of delta and z of a chunk; returns those of D and delta_bias, [1, tile]."""
    count = _tokens_at_once(tile)

    def for_each_token(parameter):
        return None if parameter is None else jnp.broadcast_to(parameter, (count, tile.width))

    D, delta_bias = for_each_token(D), for_each_token(delta_bias)

    def some(i, sums):
        t = first + i * count
        u, delta, z, g_out = (tile.row(x, t, count) for x in (refs.u, refs.delta, refs.z, refs.g_out))
        y = jnp.zeros_like(u) if rows.y is None else _read(rows.y, i * count, count)
        _, gate_vjp = jax.vjp(lambda D, z: skip_and_gate(y, u, D, z), D, z)
        _, step_vjp = jax.vjp(functools.partial(tile.step, t), delta, delta_bias)
        g_D, g_z = gate_vjp(g_out)
        g_delta, g_bias = step_vjp(_read(rows.g_step, i * count, count))
        tile.store_row(out.delta, t, g_delta)
        tile.store_row(out.z, t, g_z)
        return jax.tree.map(jnp.add, sums, (g_D, g_bias))

    zeros = jax.tree.map(jnp.zeros_like, (D, delta_bias))
    sums = lax.fori_loop(0, tile.call.blocks.chunk // count, some, zeros)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums)


def _tokens_at_once(tile: Tile) -> int:
    """Where no states are at hand: as many as give every thread `ROW_NUMBERS` numbers."""
    blocks = tile.call.blocks
    return min(blocks.chunk, max(1, ROW_NUMBERS * WARP * blocks.gradient_warps // tile.width))


def _read(ref, i, count=1):
    return plt.load(ref.at[pl.ds(i, count), :])


def _write(ref, i, rows):
    plt.store(ref.at[pl.ds(i, rows.shape[0]), :], rows)


def _barrier(call: Call):
    """Makes what a program wrote to global memory visible to all of its threads."""
    if not call.options.interpret:
        plt.debug_barrier()
