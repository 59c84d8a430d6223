"""The selective scan as Pallas kernels that lower through Mosaic, for TPUs.

A TPU core runs a grid in order and keeps scratch memory between its steps, so one pass over the chunks
suffices: the state waits in VMEM for the next chunk.

Channels lie on lanes and states on sublanes. Where channels would leave lanes empty, parts of the states lie
side by side: 32 states of 64 channels are a tile [16, 128], and what belongs to channels is repeated, or
summed over the parts. More than 32 states make several tiles, one after another, for registers hold no more.

Sequences narrower than 128 lanes come in with time last, [D, L], as B and C do, [N, L]: blocks of [L, 64]
would be padded to 128 lanes in HBM, blocks of [64, L] are not; a block is transposed once in VMEM.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxmamba3d.ops.backend import LANES, is_old_tpu
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, gate_gradient, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import (
    OLD_TPU_STATE_BYTES,
    TPU_VMEM_BYTES,
    TPU_WORKING_BYTES,
    tpu_blocks,
)
from jaxmamba3d.ops.selective_scan.kernel_scan import (
    KernelInputs,
    KernelOptions,
    differentiable_scan,
    dtype_of_parts,
    kernel_inputs,
    like,
    where_present,
)
from jaxmamba3d.ops.selective_scan.recurrence import Token, advance, decay_of, readout, retreat
from jaxmamba3d.ops.selective_scan.tpu_block import (
    PRODUCTS,
    LineScratch,
    TokenScratch,
    TpuCall,
    folded,
    in_order,
    read_rows,
    read_tile,
    registers_of,
    row_block,
    rows_of,
    steps_of,
    unfolded,
    untiled,
    walk,
)
from jaxmamba3d.ops.selective_scan.tpu_sums import line_tokens, row_sums
from jaxmamba3d.ops.varying import results_like

LARGEST_STATE = 256


def unsupported_reason(arguments: ScanArguments, backend: str) -> str | None:
    """Why this implementation cannot run a call, or None; on a CPU it runs interpreted, which is slow."""
    if backend == "gpu":
        return "it lowers through Mosaic, for TPUs"
    if other := arguments.other_dtype("float32", "bfloat16"):
        return f"it takes float32 and bfloat16, and not {other}"
    channels, state = arguments.A.shape
    if state > LARGEST_STATE:
        return f"it holds at most {LARGEST_STATE} states, and A has {state}"
    old = is_old_tpu()
    blocks = tpu_blocks(arguments.u.shape[1], channels, state, old=old)
    taken = blocks.state_bytes(channels, state)
    if (old and taken > OLD_TPU_STATE_BYTES) or taken + TPU_WORKING_BYTES > TPU_VMEM_BYTES:
        return f"{channels} channels of {state} states are more than its memory (VMEM) holds"
    return None


def _forward_kernel(
    call: TpuCall, refs: KernelInputs, h0_ref, y_ref, h_in_ref, last_ref, scratch, state, y_rows
):
    """y of a chunk, and the state before it; `state` holds the running states of all tiles."""
    step, tile = pl.program_id(1), pl.program_id(2)
    u, _ = scratch.fill(call, refs, False)
    y_rows[...] = jnp.zeros_like(y_rows)

    @call.for_each_state_tile
    def _(k):
        h = jnp.where(step == 0, read_tile(call, h0_ref, tile, k), state[tile, k])
        h_in_ref[k] = h
        decay = decay_of(read_tile(call, refs.A, tile, k))

        def group(first, count, h):
            for register, tokens in scratch.tokens(call, k, first, count):
                ys = {}
                for i, token in tokens:
                    h = advance(h, token, decay(token.delta))
                    ys[i] = readout(h, token, PRODUCTS)
                y_rows[rows_of(first, register), :] += row_sums(in_order(ys))
            return h

        state[tile, k] = last_ref[tile, k] = walk(call, group, h)

    y = skip_and_gate(y_rows[...], u, read_tile(call, refs.D, tile), read_rows(call, refs.z, False))
    y_ref[...] = row_block(call, y).astype(y_ref.dtype)


class _GradientScratch(NamedTuple):
    """VMEM of the gradient kernel: of a tile of states those before the tokens, and their repeated B and C
    [T, height, lanes]; y, its gradient, and the gradients of the tokens as rows; the running gradients of the
    states of all tiles."""

    states: Any
    B: Any
    C: Any
    y: Any
    g_y: Any
    g_token: Token
    g: Any


def _gradient_kernel(
    call: TpuCall, refs: KernelInputs, h_in_ref, g_last_ref, out, scratch, own: _GradientScratch
):
    """All gradients of a chunk, from the state before it and the gradient of the state after it.

    u, delta, z, B and C of `out` are like the inputs; A and h0 are [tiles, state tiles, height, lanes], D and
    delta_bias [tiles, 1, lanes].
    """
    step, tile = pl.program_id(1), pl.program_id(2)
    u, delta = scratch.fill(call, refs, True)
    D, delta_bias = read_tile(call, refs.D, tile), read_tile(call, refs.delta_bias, tile)
    z, g_out = read_rows(call, refs.z, True), read_rows(call, refs.g_out, True)
    for ref in (own.y, own.g_token.drive, own.g_token.delta):
        ref[...] = jnp.zeros_like(ref)
    own.g_y[...] = gate_gradient(g_out, z)

    @call.for_each_state_tile
    def _(k):
        A = read_tile(call, refs.A, tile, k)
        decay = decay_of(A)

        def keep_states(first, count, h):
            for register, tokens in scratch.tokens(call, k, first, count):
                states, B, C, ys = ({} for _ in range(4))
                for i, token in tokens:
                    states[i], B[i], C[i] = h, token.B, token.C
                    h = advance(h, token, decay(token.delta))
                    ys[i] = readout(h, token, PRODUCTS)
                rows = rows_of(first, register)
                own.states[rows], own.B[rows], own.C[rows] = (jnp.stack(in_order(x)) for x in (states, B, C))
                own.y[rows, :] += row_sums(in_order(ys))
            return h

        def gradients(first, count, carry):
            g, g_A, after = carry
            for register in registers_of(call, count, backward=True):
                rows, start = rows_of(first, register), min(register)
                states, B, C = own.states[rows], own.B[rows], own.C[rows]
                g_drive, g_delta, g_B, g_C = ({} for _ in range(4))
                for i in register:
                    row, j = pl.ds(first + i, 1), i - start
                    token = Token(scratch.drive[row, :], scratch.delta[row, :], B[j], C[j])
                    h, lasting, g_y = states[j], decay(token.delta), own.g_y[row, :]
                    g, g_A, g_token = retreat(g, token, A, lasting, h, after, g_y, g_A, PRODUCTS)
                    g_drive[i], g_delta[i], g_B[i], g_C[i] = g_token
                    after = h
                own.g_token.drive[rows, :] += row_sums(in_order(g_drive))
                own.g_token.delta[rows, :] += row_sums(in_order(g_delta))
                own.g_token.B.put(k, first + start, in_order(g_B))
                own.g_token.C.put(k, first + start, in_order(g_C))
            return g, g_A, after

        last = walk(call, keep_states, read_tile(call, h_in_ref, tile, k))
        g = jnp.where(step == 0, read_tile(call, g_last_ref, tile, k), own.g[tile, k])
        g, g_A, _ = walk(call, gradients, (g, jnp.zeros_like(A), last), backward=True)
        own.g[tile, k] = out.h0[tile, k] = g
        _add(out.A, (tile, k), g_A, step > 0)

    _, gate_vjp = jax.vjp(skip_and_gate, own.y[...], u, D, z)
    _, g_u, g_D, g_z = gate_vjp(g_out)
    g_drive = own.g_token.drive[...]
    steps, step_vjp = jax.vjp(functools.partial(steps_of, call, True), delta, delta_bias)
    g_delta, g_bias = step_vjp(own.g_token.delta[...] + g_drive * u)
    for ref, value in ((out.u, g_drive * steps + g_u), (out.delta, g_delta), (out.z, g_z)):
        if ref is not None:
            ref[...] = row_block(call, value).astype(ref.dtype)
    # B and C serve all tiles of a chunk, which follow one another; D and delta_bias all chunks of a tile.
    for ref, sums in ((out.B, own.g_token.B), (out.C, own.g_token.C)):
        _add(ref, ..., sums.columns(call), tile > 0)
    for ref, value in ((out.D, g_D), (out.delta_bias, g_bias)):
        if ref is not None:
            _add(ref, tile, value, step > 0)


def _add(ref, index, value, begun):
    ref[index] = (jnp.where(begun, ref[index], 0.0).astype(value.dtype) + value).astype(ref.dtype)


def _input_blocks(call: TpuCall, inputs: KernelInputs, backward: bool) -> KernelInputs:
    chunk, tile = call.blocks.chunk, call.blocks.tile

    def time_last(rows, position):
        return pl.BlockSpec(
            (None, rows, chunk), lambda b, s, d: (b, position(d), call.stored_chunk(s, backward))
        )

    def parameter(*rows):
        """Of one of the groups, [G, *rows, lanes of all tiles]."""

        def position(b, s, d):
            return lax.rem(b, jnp.int32(inputs.A.shape[0])), *[0] * len(rows), d

        return pl.BlockSpec((None, *rows, call.lanes), position)

    if call.channels < LANES:
        row = time_last(tile, lambda d: d)
    else:
        row = pl.BlockSpec((None, chunk, tile), lambda b, s, d: (b, call.stored_chunk(s, backward), d))
    column = time_last(call.filled_states, lambda d: 0)
    line = parameter(1)
    blocks = KernelInputs(row, row, parameter(*_rows(call)), column, column, line, row, line, row)
    return where_present(blocks, inputs)


def _rows(call: TpuCall) -> tuple[int, int]:
    """Of a state: [state tiles, height]."""
    return call.state_tiles, call.blocks.height


def _border_block(call: TpuCall, backward: bool) -> pl.BlockSpec:
    """Of the states before the chunks, [B, chunks, state tiles, height, lanes of all tiles]."""
    tile = (None, None, *_rows(call), call.lanes)
    return pl.BlockSpec(tile, lambda b, s, d: (b, call.stored_chunk(s, backward), 0, 0, d))


def _state_block(call: TpuCall) -> pl.BlockSpec:
    """Of a state of each sequence, [B, state tiles, height, lanes of all tiles]."""
    return pl.BlockSpec((None, *_rows(call), call.lanes), lambda b, s, d: (b, 0, 0, d))


def _tiled(call: TpuCall, *rows: int):
    """Shape and block of an output [B, tiles, *rows, lanes] that stays in VMEM for all of a sequence."""
    shape = (call.tiles, *rows, call.lanes)
    block = pl.BlockSpec((None, *shape), lambda b, s, d: (b, *[0] * len(shape)))
    return jax.ShapeDtypeStruct((call.batch, *shape), jnp.float32), block


def _token_scratch(call: TpuCall) -> TokenScratch:
    row = pltpu.VMEM((call.blocks.chunk, call.lanes), jnp.float32)
    column = pltpu.VMEM((call.state_tiles, call.blocks.chunk, LANES), jnp.float32)
    columns = pltpu.VMEM((call.state_tiles, call.tile_states, call.blocks.chunk), jnp.float32)
    return TokenScratch(row, row, column, column, columns)


def _gradient_scratch(call: TpuCall) -> _GradientScratch:
    chunk, (state_tiles, height) = call.blocks.chunk, _rows(call)
    row = pltpu.VMEM((chunk, call.lanes), jnp.float32)
    tokens = line_tokens(height)
    lines = pl.cdiv(chunk, tokens)
    sums = LineScratch(
        pltpu.VMEM((state_tiles, call.blocks.fold, lines, tokens * height), jnp.float32),
        pltpu.VMEM((state_tiles, lines * tokens, call.tile_states), jnp.float32),
    )
    tiles = pltpu.VMEM((chunk, height, call.lanes), jnp.float32)
    return _GradientScratch(
        states=tiles,
        B=tiles,
        C=tiles,
        y=row,
        g_y=row,
        g_token=Token(row, row, sums, sums),
        g=pltpu.VMEM((call.tiles, state_tiles, height, call.lanes), jnp.float32),
    )


def _run(call: TpuCall, kernel, name: str, operands, out_shape, **options):
    return pl.pallas_call(
        functools.partial(kernel, call),
        name=f"selective_scan_{name}",
        grid=(call.batch, call.chunks, call.tiles),
        interpret=call.options.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=call.blocks.state_bytes(call.channels, call.states) + TPU_WORKING_BYTES,
        ),
        out_shape=results_like(out_shape, operands),
        **options,
    )(*operands)


def _call(options: KernelOptions, arguments: ScanArguments) -> TpuCall:
    (batch, length, channels), states = arguments.u.shape, arguments.A.shape[2]
    blocks = tpu_blocks(length, channels, states, old=is_old_tpu())
    return TpuCall(options, batch, length, channels, states, blocks)


def _turned(call: TpuCall, row):
    """[B, L, D] as the kernels take it, or back; None stays None."""
    return row if row is None or call.channels >= LANES else jnp.swapaxes(row, 1, 2)


def _inputs(call: TpuCall, arguments: ScanArguments, g_out: jax.Array | None = None) -> KernelInputs:
    """u, delta, z and g_out [B, L, D], or with time last if narrow; B and C [B, N, L]; parameters folded."""
    inputs, fold = kernel_inputs(arguments, g_out), call.blocks.fold
    rows = {name: _turned(call, getattr(inputs, name)) for name in ("u", "delta", "z", "g_out")}
    missing = call.filled_states - call.states
    B, C = (jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, missing), (0, 0))) for x in (inputs.B, inputs.C))
    # What D adds to y belongs to one part of the states.
    D = None if inputs.D is None else jnp.pad(inputs.D, ((0, 0), (0, 0), (0, (fold - 1) * call.channels)))
    delta_bias = None if inputs.delta_bias is None else jnp.tile(inputs.delta_bias, fold)
    return inputs._replace(**rows, A=folded(call, arguments.A), B=B, C=C, D=D, delta_bias=delta_bias)


def _forward_pass(options: KernelOptions, arguments: ScanArguments):
    call = _call(options, arguments)
    inputs, rows = _inputs(call, arguments), _rows(call)
    state_shape = (*rows, call.blocks.fold * call.channels)
    last_shape, last_block = _tiled(call, *rows)
    input_blocks = _input_blocks(call, inputs, False)
    y, h_in, last_state = _run(
        call,
        _forward_kernel,
        "forward",
        (inputs, folded(call, arguments.h0)),
        [
            like(inputs.u),
            jax.ShapeDtypeStruct((call.batch, call.chunks, *state_shape), jnp.float32),
            last_shape,
        ],
        in_specs=[input_blocks, _state_block(call)],
        out_specs=[input_blocks.u, _border_block(call, False), last_block],
        scratch_shapes=[
            _token_scratch(call),
            pltpu.VMEM((call.tiles, *rows, call.lanes), jnp.float32),
            pltpu.VMEM((call.blocks.chunk, call.lanes), jnp.float32),
        ],
    )
    return _turned(call, y), unfolded(call, last_state), h_in


def _backward_pass(options, arguments: ScanArguments, h_in, g_out, g_last):
    call = _call(options, arguments)
    inputs, rows = _inputs(call, arguments, g_out), _rows(call)
    blocks = _input_blocks(call, inputs, True)
    tiled_state, tiled_line = _tiled(call, *rows), _tiled(call, 1)

    def of_tiles(array):
        return like(array, dtype_of_parts(array, call.tiles))

    outputs = ScanArguments(
        u=(like(inputs.u), blocks.u),
        delta=(like(inputs.delta), blocks.delta),
        A=tiled_state,
        B=(of_tiles(inputs.B), blocks.B),
        C=(of_tiles(inputs.C), blocks.C),
        D=tiled_line,
        z=(like(inputs.z), blocks.z),
        delta_bias=tiled_line,
        h0=tiled_state,
    )
    shapes, specs = (where_present(ScanArguments(*each), arguments) for each in zip(*outputs, strict=True))
    (g,) = _run(
        call,
        _gradient_kernel,
        "gradient",
        (inputs, h_in, folded(call, g_last)),
        [shapes],
        in_specs=[blocks, _border_block(call, True), _state_block(call)],
        out_specs=[specs],
        scratch_shapes=[_token_scratch(call), _gradient_scratch(call)],
    )
    g_A, g_h0 = (unfolded(call, x) for x in (g.A, g.h0))
    g_u, g_delta, g_z = (_turned(call, x) for x in (g.u, g.delta, g.z))
    g_B, g_C = (
        jnp.swapaxes(x, 1, 2)[..., : call.states].astype(y.dtype)
        for x, y in ((g.B, arguments.B), (g.C, arguments.C))
    )
    return ScanArguments(
        u=g_u,
        delta=g_delta,
        A=g_A,
        B=g_B,
        C=g_C,
        D=None if g.D is None else untiled(call, g.D)[:, 0, 0],
        z=g_z,
        delta_bias=None if g.delta_bias is None else jnp.sum(untiled(call, g.delta_bias)[:, 0], axis=1),
        h0=g_h0,
    )


scan = differentiable_scan(_forward_pass, _backward_pass)
