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
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelInputs
from jaxmamba3d.ops.selective_scan.recurrence import advance, decay_of, readout, retreat
from jaxmamba3d.ops.selective_scan.triton_tile import Call, Tile


class GradientMemory(NamedTuple):
    """A program's own memory in the gradient kernel.

    Args:
        states: one in `stride` of a chunk, [chunk / stride, N, tile].
        B, C: their gradients of a chunk, summed over the tiles up to now, [chunk, N]; None for a single tile.
    """

    states: Any
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
    call, blocks = tile.call, tile.call.blocks
    A, D, delta_bias = tile.state(refs.A), tile.parameter(refs.D), tile.parameter(refs.delta_bias)
    decay = decay_of(A)
    chunk, stride = blocks.chunk, blocks.stride
    strides = chunk // stride

    def position(s, j):
        """In the chunk."""
        i = s * stride + j
        return chunk - 1 - i if call.options.reverse else i

    def token_at(s, j):
        return tile.token(refs, k * chunk + position(s, j), delta_bias)

    def store_states(s, h):
        memory.states[s] = h
        for j in range(stride):
            token = token_at(s, j)
            h = advance(h, token, decay(token.delta))
        return h

    lax.fori_loop(0, strides, store_states, tile.state(h_in_ref, k))
    _barrier(call)

    def gradients(i, carry):
        g, sums = carry
        s = strides - 1 - i
        states, tokens = [memory.states[s]], []
        for j in range(stride):
            tokens.append(token_at(s, j))
            states.append(advance(states[-1], tokens[-1], decay(tokens[-1].delta)))
        for j in reversed(range(stride)):
            row, token = position(s, j), tokens[j]
            t = k * chunk + row
            _, gate_vjp = jax.vjp(
                skip_and_gate, readout(states[j + 1], token), token.u, D, tile.row(refs.z, t)
            )
            g_y, g_u, g_D, g_z = gate_vjp(tile.row(refs.g_out, t))
            g, g_A, g_token = retreat(g, token, A, decay(token.delta), states[j], states[j + 1], g_y)
            _, step_vjp = jax.vjp(functools.partial(tile.step, t), tile.row(refs.delta, t), delta_bias)
            g_delta, g_bias = step_vjp(g_token.delta)
            tile.store_row(out.u, t, g_token.u if g_u is None else g_token.u + g_u)
            tile.store_row(out.delta, t, g_delta)
            tile.store_row(out.z, t, g_z)
            for ref, kept_ref, part in ((out.B, memory.B, g_token.B), (out.C, memory.C, g_token.C)):
                tile.store_column_sum(ref, t, part, kept_ref, row, add_tile, last_tile)
            sums = jax.tree.map(jnp.add, sums, (g_A, g_D, g_bias))
        return g, sums

    zero = jax.tree.map(jnp.zeros_like, (A, D, delta_bias))
    _, (g_A, g_D, g_bias) = lax.fori_loop(0, strides, gradients, (tile.state(g_in_ref, k), zero))
    tile.add_state(out.A, g_A, add_chunk)
    tile.add_parameter(out.D, g_D, add_chunk)
    tile.add_parameter(out.delta_bias, g_bias, add_chunk)
    _barrier(call)


def _barrier(call: Call):
    """Makes what a program wrote to global memory visible to all of its threads."""
    if not call.options.interpret:
        plt.debug_barrier()
