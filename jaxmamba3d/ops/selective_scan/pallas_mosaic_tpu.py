"""The selective scan as Pallas kernels that lower through Mosaic, for TPUs.

A TPU core runs a grid in order and keeps scratch memory between its steps, so one pass over the chunks
suffices: the state waits in VMEM for the next chunk. Channels lie on lanes and states on sublanes, [N, D].
Sequences narrower than 128 lanes come in with time last, [D, L] and [N, L]: blocks of [L, 64] would be padded
to 128 lanes in HBM, blocks of [64, L] are not; a block is transposed once in VMEM. Tokens are walked as rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxmamba3d.ops.backend import is_old_tpu
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import LANES, OLD_TPU_STATE_BYTES, TPU_VMEM_BYTES, tpu_blocks
from jaxmamba3d.ops.selective_scan.kernel_scan import (
    KernelInputs,
    KernelOptions,
    differentiable_scan,
    kernel_inputs,
    where_present,
)
from jaxmamba3d.ops.selective_scan.recurrence import advance, readout, retreat
from jaxmamba3d.ops.selective_scan.tpu_block import (
    Call,
    TokenScratch,
    order_of,
    read_rows,
    read_tile,
    steps_of,
    turned_block,
    walk,
)
from jaxmamba3d.ops.varying import results_like

LARGEST_STATE = 256


def unsupported_reason(arguments: ScanArguments, backend: str) -> str | None:
    """Why this implementation cannot run a call, or None; on a CPU it runs interpreted, which is slow."""
    if backend == "gpu":
        return "it lowers through Mosaic, for TPUs"
    sequences = (arguments.u, arguments.delta, arguments.B, arguments.C, arguments.z)
    if other := {str(x.dtype) for x in sequences if x is not None} - {"float32", "bfloat16"}:
        return f"it takes float32 and bfloat16, and not {min(other)}"
    channels, state = arguments.A.shape
    if state > LARGEST_STATE:
        return f"it holds at most {LARGEST_STATE} states, and A has {state}"
    blocks = tpu_blocks(arguments.u.shape[1], channels, state)
    too_old = is_old_tpu() and blocks.state_bytes > OLD_TPU_STATE_BYTES
    if too_old or blocks.vmem_limit_bytes > TPU_VMEM_BYTES:
        return f"{channels} channels of {state} states are more than its memory (VMEM) holds"
    return None


def _forward_kernel(
    call: Call, refs: KernelInputs, h0_ref, y_ref, h_in_ref, last_ref, scratch, state, y_rows
):
    """y of a chunk, and the state before it; `state` holds the running states of all tiles."""
    tile = pl.program_id(2)
    h = jnp.where(pl.program_id(1) == 0, read_tile(call, h0_ref), state[tile])
    h_in_ref[...] = h
    u, _ = scratch.fill(call, refs, False)
    A = read_tile(call, refs.A)

    def group(first, count, h):
        tokens, ys = scratch.tokens(first, count), [None] * count
        for i in order_of(call, count):
            h = advance(h, tokens[i], jnp.exp(tokens[i].delta * A))
            ys[i] = readout(h, tokens[i])
        y_rows[pl.ds(first, count), :] = jnp.concatenate(ys, axis=0)
        return h

    h = walk(call, group, h)
    state[tile] = last_ref[tile] = h
    z = read_rows(call, refs.z, False, True)
    y = skip_and_gate(y_rows[...], u, read_tile(call, refs.D), z)
    y_ref[...] = turned_block(y, call.channels).astype(y_ref.dtype)


class _GradientScratch(NamedTuple):
    """VMEM of the gradient kernel: states before the tokens [T, N, D]; y, its gradient, and the gradients of
    the tokens as rows; the running gradient of the state of each tile [tiles, N, D]."""

    states: Any
    y: Any
    g_y: Any
    g_token: TokenScratch
    g: Any


def _gradient_kernel(
    call: Call, refs: KernelInputs, h_in_ref, g_last_ref, out, scratch, own: _GradientScratch
):
    """All gradients of a chunk, from the state before it and the gradient of the state after it.

    u, delta, z, B and C of `out` are like the inputs; A and h0 are [tiles, N, tile], D and delta_bias
    [tiles, 1, tile].
    """
    step, tile = pl.program_id(1), pl.program_id(2)
    g = jnp.where(step == 0, read_tile(call, g_last_ref), own.g[tile])
    u, delta = scratch.fill(call, refs, True)
    A, D, delta_bias = read_tile(call, refs.A), read_tile(call, refs.D), read_tile(call, refs.delta_bias)

    def keep_states(first, count, h):
        tokens, ys = scratch.tokens(first, count), [None] * count
        for i in order_of(call, count):
            own.states[first + i] = h
            h = advance(h, tokens[i], jnp.exp(tokens[i].delta * A))
            ys[i] = readout(h, tokens[i])
        own.y[pl.ds(first, count), :] = jnp.concatenate(ys, axis=0)
        return h

    walk(call, keep_states, read_tile(call, h_in_ref))
    z = read_rows(call, refs.z, True, True)
    _, gate_vjp = jax.vjp(skip_and_gate, own.y[...], u, D, z)
    own.g_y[...], g_u, g_D, g_z = gate_vjp(read_rows(call, refs.g_out, True, True))

    def gradients(first, count, carry):
        g, g_A = carry
        rows = pl.ds(first, count)
        tokens, g_y, found = scratch.tokens(first, count), own.g_y[rows, :], [None] * count
        for i in order_of(call, count, backward=True):
            h = own.states[first + i]
            decay = jnp.exp(tokens[i].delta * A)
            after = advance(h, tokens[i], decay)
            g, g_A, found[i] = retreat(g, tokens[i], A, decay, h, after, g_y[i : i + 1], g_A)
        g_u, g_delta, g_B, g_C = zip(*found, strict=True)
        own.g_token.u[rows, :], own.g_token.delta[rows, :] = (jnp.concatenate(x, 0) for x in (g_u, g_delta))
        own.g_token.B[rows, :], own.g_token.C[rows, :] = (jnp.concatenate(x, 1).T for x in (g_B, g_C))
        return g, g_A

    g, g_A = walk(call, gradients, (g, jnp.zeros_like(A)), backward=True)
    own.g[tile] = out.h0[tile] = g
    _, step_vjp = jax.vjp(functools.partial(steps_of, call, True), delta, delta_bias)
    g_delta, g_bias = step_vjp(own.g_token.delta[...])
    for ref, value in ((out.u, own.g_token.u[...] + g_u), (out.delta, g_delta), (out.z, g_z)):
        if ref is not None:
            ref[...] = turned_block(value, call.channels).astype(ref.dtype)
    # B and C serve all tiles of a chunk, which follow one another; A, D and delta_bias all chunks of a tile.
    for ref, rows in ((out.B, own.g_token.B), (out.C, own.g_token.C)):
        _add(ref, ..., turned_block(rows[...], call.states), tile > 0)
    for ref, value in ((out.A, g_A), (out.D, g_D), (out.delta_bias, g_bias)):
        if ref is not None:
            _add(ref, tile, value, step > 0)


def _add(ref, index, value, begun):
    ref[index] = (jnp.where(begun, ref[index], 0.0).astype(value.dtype) + value).astype(ref.dtype)


def _input_blocks(call: Call, inputs: KernelInputs, backward: bool) -> KernelInputs:
    chunk, tile = call.blocks.chunk, call.blocks.tile

    def sequence(width, block_width, position):
        """Of an array as wide as `width`, in blocks as wide as `block_width`."""
        if width < LANES:
            time_last = (None, block_width, chunk)
            return pl.BlockSpec(time_last, lambda b, s, d: (b, position(d), call.stored_chunk(s, backward)))
        time_first = (None, chunk, block_width)
        return pl.BlockSpec(time_first, lambda b, s, d: (b, call.stored_chunk(s, backward), position(d)))

    row = sequence(call.channels, tile, lambda d: d)
    column = sequence(call.states, call.states, lambda d: 0)
    groups = inputs.A.shape[0]
    parameter = pl.BlockSpec((None, 1, tile), lambda b, s, d: (lax.rem(b, jnp.int32(groups)), 0, d))
    decay = pl.BlockSpec((None, call.states, tile), lambda b, s, d: (lax.rem(b, jnp.int32(groups)), 0, d))
    blocks = KernelInputs(row, row, decay, column, column, parameter, row, parameter, row)
    return where_present(blocks, inputs)


def _border_block(call: Call, backward: bool) -> pl.BlockSpec:
    """Of the states before the chunks, [B, chunks, N, D]."""
    tile = (None, None, call.states, call.blocks.tile)
    return pl.BlockSpec(tile, lambda b, s, d: (b, call.stored_chunk(s, backward), 0, d))


def _state_block(call: Call) -> pl.BlockSpec:
    """Of a state of each sequence, [B, N, D]."""
    return pl.BlockSpec((None, call.states, call.blocks.tile), lambda b, s, d: (b, 0, d))


def _tiled(call: Call, rows: int):
    """Shape and block of an output [B, tiles, rows, tile] that stays in VMEM for all of a sequence."""
    shape = (call.tiles, rows, call.blocks.tile)
    block = pl.BlockSpec((None, *shape), lambda b, s, d: (b, 0, 0, 0))
    return jax.ShapeDtypeStruct((call.batch, *shape), jnp.float32), block


def _untiled(call: Call, array: jax.Array) -> jax.Array:
    """[B, tiles, rows, tile] -> [B, rows, D]."""
    joined = jnp.swapaxes(array, 1, 2).reshape(call.batch, array.shape[2], -1)
    return joined[..., : call.channels]


def _token_scratch(call: Call) -> TokenScratch:
    row = pltpu.VMEM((call.blocks.chunk, call.blocks.tile), jnp.float32)
    column = pltpu.VMEM((call.blocks.chunk, call.states), jnp.float32)
    return TokenScratch(row, row, column, column)


def _run(call: Call, kernel, name: str, operands, out_shape, **options):
    return pl.pallas_call(
        functools.partial(kernel, call),
        name=f"selective_scan_{name}",
        grid=(call.batch, call.chunks, call.tiles),
        interpret=call.options.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=call.blocks.vmem_limit_bytes,
        ),
        out_shape=results_like(out_shape, operands),
        **options,
    )(*operands)


def _call(options: KernelOptions, arguments: ScanArguments) -> Call:
    (batch, length, channels), states = arguments.u.shape, arguments.A.shape[2]
    blocks = tpu_blocks(length, channels, states)
    return Call(options, batch, length, channels, states, blocks)


def _turned(array, width: int):
    """[B, L, width] as the kernels take it, or back."""
    return array if array is None or width >= LANES else jnp.swapaxes(array, 1, 2)


def _inputs(arguments: ScanArguments, g_out: jax.Array | None = None) -> KernelInputs:
    """With time last where sequences are narrow."""
    _, channels, states = arguments.A.shape
    inputs = kernel_inputs(arguments, g_out)
    rows = {name: _turned(getattr(inputs, name), channels) for name in ("u", "delta", "z", "g_out")}
    return inputs._replace(**rows, B=_turned(inputs.B, states), C=_turned(inputs.C, states))


def _forward_pass(options: KernelOptions, arguments: ScanArguments):
    call, inputs = _call(options, arguments), _inputs(arguments)
    batch, states, channels = call.batch, call.states, call.channels
    if arguments.h0 is None:
        h0 = jnp.zeros((batch, states, channels), jnp.float32)
    else:
        h0 = jnp.swapaxes(arguments.h0, 1, 2)
    last_shape, last_block = _tiled(call, states)
    input_blocks = _input_blocks(call, inputs, False)
    y, h_in, last_state = _run(
        call,
        _forward_kernel,
        "forward",
        (inputs, h0),
        [
            jax.ShapeDtypeStruct(inputs.u.shape, inputs.u.dtype),
            jax.ShapeDtypeStruct((batch, call.chunks, states, channels), jnp.float32),
            last_shape,
        ],
        in_specs=[input_blocks, _state_block(call)],
        out_specs=[input_blocks.u, _border_block(call, False), last_block],
        scratch_shapes=[
            _token_scratch(call),
            pltpu.VMEM((call.tiles, states, call.blocks.tile), jnp.float32),
            pltpu.VMEM((call.blocks.chunk, call.blocks.tile), jnp.float32),
        ],
    )
    return _turned(y, channels), jnp.swapaxes(_untiled(call, last_state), 1, 2), h_in


def _backward_pass(options, arguments: ScanArguments, h_in, g_out, g_last):
    call, inputs = _call(options, arguments), _inputs(arguments, g_out)
    blocks = _input_blocks(call, inputs, True)
    tiled_state, tiled_row = _tiled(call, call.states), _tiled(call, 1)

    def pair(array, block, dtype=None):
        """Shape and block of a gradient like an array; None for None."""
        return None if array is None else (jax.ShapeDtypeStruct(array.shape, dtype or array.dtype), block)

    sum_dtype = None if call.tiles == 1 else jnp.float32  # of the sums over tiles in B and C
    outputs = ScanArguments(
        u=pair(inputs.u, blocks.u),
        delta=pair(inputs.delta, blocks.delta),
        A=tiled_state,
        B=pair(inputs.B, blocks.B, sum_dtype),
        C=pair(inputs.C, blocks.C, sum_dtype),
        D=None if inputs.D is None else tiled_row,
        z=pair(inputs.z, blocks.z),
        delta_bias=None if inputs.delta_bias is None else tiled_row,
        h0=tiled_state,
    )
    shapes, specs = (
        ScanArguments(*(None if output is None else output[i] for output in outputs)) for i in range(2)
    )
    chunk, tile = call.blocks.chunk, call.blocks.tile
    row = pltpu.VMEM((chunk, tile), jnp.float32)
    (g,) = _run(
        call,
        _gradient_kernel,
        "gradient",
        (inputs, h_in, jnp.swapaxes(g_last, 1, 2)),
        [shapes],
        in_specs=[blocks, _border_block(call, True), _state_block(call)],
        out_specs=[specs],
        scratch_shapes=[
            _token_scratch(call),
            _GradientScratch(
                states=pltpu.VMEM((chunk, call.states, tile), jnp.float32),
                y=row,
                g_y=row,
                g_token=_token_scratch(call),
                g=pltpu.VMEM((call.tiles, call.states, tile), jnp.float32),
            ),
        ],
    )
    g_A, g_h0 = (jnp.swapaxes(_untiled(call, x), 1, 2) for x in (g.A, g.h0))
    g_D, g_bias = (None if x is None else _untiled(call, x)[:, 0] for x in (g.D, g.delta_bias))
    g_u, g_delta, g_z = (_turned(x, call.channels) for x in (g.u, g.delta, g.z))
    g_B, g_C = (_turned(x, call.states).astype(y.dtype) for x, y in ((g.B, arguments.B), (g.C, arguments.C)))
    return ScanArguments(
        u=g_u,
        delta=g_delta,
        A=g_A,
        B=g_B,
        C=g_C,
        D=g_D,
        z=g_z,
        delta_bias=g_bias,
        h0=None if arguments.h0 is None else g_h0,
    )


scan = differentiable_scan(_forward_pass, _backward_pass)
