"""The selective scan as Pallas kernels that lower through Triton, for NVIDIA GPUs.

Chunks of time run in parallel. Forward: every chunk's end state from a zero start (`_summary_kernel`), the
true state before each chunk (`join_chunks`), every chunk again from there (`_output_kernel`). The backward
pass mirrors it (`_adjoint_summary_kernel`, `join_chunks`, `gradient_kernel`), starting from the states
before each chunk that the forward pass leaves.

States lie channels last, [N, D], so that neighbouring threads read neighbouring channels; a program holds a
tile of them in registers and walks the tokens of its block.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from jaxmamba3d.ops.backend import older_gpu_than
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, gate_gradient, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import triton_blocks, triton_chunk
from jaxmamba3d.ops.selective_scan.chunking import join_chunks
from jaxmamba3d.ops.selective_scan.devices import sequences_a_device
from jaxmamba3d.ops.selective_scan.kernel_scan import (
    KernelInputs,
    KernelOptions,
    differentiable_scan,
    dtype_of_parts,
    kernel_inputs,
    like,
    sum_of_parts,
    where_present,
)
from jaxmamba3d.ops.selective_scan.recurrence import advance, decay_of, readout
from jaxmamba3d.ops.selective_scan.triton_gradient import ChunkRows, GradientMemory, gradient_kernel
from jaxmamba3d.ops.selective_scan.triton_tile import Tile, TritonCall
from jaxmamba3d.ops.selective_scan.triton_walk import Walk
from jaxmamba3d.ops.varying import results_like

LARGEST_STATE = 256
OLDEST_CAPABILITY = 8.0


def unsupported_reason(arguments: ScanArguments, backend: str) -> str | None:
    """Why this implementation cannot run a call, or None; on a CPU it runs interpreted, which is slow."""
    if backend == "tpu":
        return "it lowers through Triton, for NVIDIA GPUs"
    if backend == "cpu" and jax.config.jax_enable_x64:
        return "interpreted, it needs jax_enable_x64 unset"
    if old := older_gpu_than(OLDEST_CAPABILITY):
        return f"Triton needs an Ampere GPU or newer, and this one is of compute capability {old}"
    if other := arguments.other_dtype("float16", "bfloat16", "float32"):
        return f"it takes float16, bfloat16 and float32, and not {other}"
    state = arguments.A.shape[1]
    if state > LARGEST_STATE:
        return f"it holds at most {LARGEST_STATE} states, and A has {state}"
    return None


def _single_tile(call: TritonCall, width: int) -> Tile:
    """The tile of a program whose block is one chunk by one tile."""
    return Tile(
        call,
        width,
        first_channel=0,
        channel_offset=pl.program_id(2) * width,
        token_offset=pl.program_id(1) * call.blocks.chunk,
        first_state=0,
        states=call.state_tile,
        part=call.state_tile,
    )


def _summary_kernel(call: TritonCall, refs: KernelInputs, end_ref, span_ref):
    """The state after a chunk from a zero start, and the sum of its steps."""
    tile = _single_tile(call, call.blocks.forward_tile)
    A, delta_bias = tile.state(refs.A), tile.parameter(refs.delta_bias)
    decay = decay_of(A, call.form)
    walk = Walk(tile, refs, rows=("delta",))

    def steps(t, rows):
        return [tile.step(t, rows.delta, delta_bias)]

    def each(token, carry):
        h, span = carry
        h = advance(h, token, decay(token.delta), call.form)
        return (h, span + token.delta), None

    zero = jax.tree.map(jnp.zeros_like, A), jnp.zeros((1, tile.width), jnp.float32)
    h, span = walk(steps, each, zero)
    tile.store_state(end_ref, h)
    tile.store_parameter(span_ref, span)


def _output_kernel(call: TritonCall, refs: KernelInputs, h_in_ref, y_ref):
    """y of a chunk, from the state before it."""
    tile = _single_tile(call, call.blocks.forward_tile)
    A, D, delta_bias = tile.state(refs.A), tile.parameter(refs.D), tile.parameter(refs.delta_bias)
    decay = decay_of(A, call.form)
    walk = Walk(tile, refs, rows=("u", "delta", "z"))

    def steps(t, rows):
        return [tile.step(t, rows.delta, delta_bias)]

    def each(token, h):
        h = advance(h, token, decay(token.delta), call.form)
        return h, readout(h, token, call.form)

    def store(t, rows, readouts):
        tile.store_row(y_ref, t, skip_and_gate(readouts, rows.u, D, rows.z))

    walk(steps, each, tile.state(h_in_ref), store)


def _adjoint_summary_kernel(call: TritonCall, refs: KernelInputs, g_ref):
    """The gradient of the state before a chunk that the chunk's own outputs give."""
    tile = _single_tile(call, call.blocks.forward_tile)
    A, delta_bias = tile.state(refs.A), tile.parameter(refs.delta_bias)
    decay = decay_of(A, call.form)
    walk = Walk(tile, refs, rows=("delta", "z", "g_out"), backward=True)

    def steps_and_gradients(t, rows):
        return [tile.step(t, rows.delta, delta_bias), gate_gradient(rows.g_out, rows.z)]

    def each(token, g_y, g):
        def part(g, decay, C):
            return call.form.multiply_add(g_y, C, g) * decay

        return jax.tree.map(part, g, decay(token.delta), token.C), None

    zero = jax.tree.map(jnp.zeros_like, A)
    tile.store_state(g_ref, walk(steps_and_gradients, each, zero))


def _call(options: KernelOptions, inputs: KernelInputs) -> TritonCall:
    (batch, length, channels), states = inputs.u.shape, inputs.A.shape[1]
    blocks = triton_blocks(batch, length, channels, states, options.chunk)
    return TritonCall(options, batch, length, channels, states, blocks)


def _token_block(tokens: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, tokens, width), lambda b, s, c: (b, s, c))


def _input_blocks(call: TritonCall, inputs: KernelInputs, tokens: int, channels: int) -> KernelInputs:
    """Blocks of the inputs for programs of so many tokens and channels."""
    row = _token_block(tokens, channels)
    column = pl.BlockSpec((None, tokens, call.state_tile), lambda b, s, c: (b, s, 0))
    groups = inputs.A.shape[0]
    parameter = pl.BlockSpec((None, 1, channels), lambda b, s, c: (lax.rem(b, jnp.int32(groups)), 0, c))
    decay = pl.BlockSpec(
        (None, call.state_tile, channels), lambda b, s, c: (lax.rem(b, jnp.int32(groups)), 0, c)
    )
    blocks = KernelInputs(row, row, decay, column, column, parameter, row, parameter, row)
    return where_present(blocks, inputs)


def _state_block(call: TritonCall, chunks: int | None, channels: int) -> pl.BlockSpec:
    """Of arrays [B, chunks, N, D]; `chunks` None: one chunk a program, and the block lacks that axis."""
    return pl.BlockSpec((None, chunks, call.state_tile, channels), lambda b, s, c: (b, s, 0, c))


def _own_block(array: jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """A program's part of an array [B, slots, splits, ...]."""
    shape = array.shape[3:]
    return pl.BlockSpec((None, None, None, *shape), lambda b, s, c: (b, s, c, *[0] * len(shape)))


def _run(call: TritonCall, kernel, name: str, warps: int, operands, out_shape, **options):
    return pl.pallas_call(
        functools.partial(kernel, call),
        name=f"selective_scan_{name}",
        interpret=call.options.interpret,
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=1),
        out_shape=results_like(out_shape, operands),
        **options,
    )(*operands)


def _run_forward(call: TritonCall, kernel, name: str, inputs: KernelInputs, states, out_shape, out_specs):
    """A kernel whose program is one chunk by one tile."""
    blocks = call.blocks
    width = blocks.forward_tile
    return _run(
        call,
        kernel,
        name,
        blocks.forward_warps,
        (inputs, *states),
        out_shape,
        grid=(call.batch, call.chunks, pl.cdiv(call.channels, width)),
        in_specs=[
            _input_blocks(call, inputs, blocks.chunk, width),
            *(_state_block(call, None, width) for _ in states),
        ],
        out_specs=out_specs,
    )


def _forward_pass(options: KernelOptions, arguments: ScanArguments):
    inputs = kernel_inputs(arguments)
    call = _call(options, inputs)
    width = call.blocks.forward_tile
    chunks, state = (call.batch, call.chunks), (call.states, call.channels)
    ends, spans = _run_forward(
        call,
        _summary_kernel,
        "summary",
        inputs._replace(C=None, D=None, z=None),
        (),
        out_shape=[
            jax.ShapeDtypeStruct((*chunks, *state), jnp.float32),
            jax.ShapeDtypeStruct((*chunks, 1, call.channels), jnp.float32),
        ],
        out_specs=[
            _state_block(call, None, width),
            pl.BlockSpec((None, None, 1, width), lambda b, s, c: (b, s, 0, c)),
        ],
    )
    h_in, last_state = join_chunks(
        ends,
        spans,
        inputs.A,
        jnp.swapaxes(arguments.h0, 1, 2),
        reverse=call.options.reverse,
    )
    (y,) = _run_forward(
        call,
        _output_kernel,
        "output",
        inputs,
        (h_in,),
        out_shape=[like(inputs.u)],
        out_specs=[_token_block(call.blocks.chunk, width)],
    )
    return y, jnp.swapaxes(last_state, 1, 2), (h_in, spans)


def _backward_pass(options, arguments: ScanArguments, residuals, g_out, g_last):
    h_in, spans = residuals
    inputs = kernel_inputs(arguments, g_out)
    call = _call(options, inputs)
    blocks = call.blocks
    (g_ends,) = _run_forward(
        call,
        _adjoint_summary_kernel,
        "adjoint_summary",
        inputs._replace(u=None, B=None, D=None),
        (),
        out_shape=[like(h_in)],
        out_specs=[_state_block(call, None, blocks.forward_tile)],
    )
    g_in, g_h0 = join_chunks(
        g_ends,
        spans,
        inputs.A,
        jnp.swapaxes(g_last, 1, 2),
        reverse=not call.options.reverse,
    )

    slots = pl.cdiv(call.chunks, blocks.run)
    width = blocks.groups * blocks.gradient_tile
    splits = pl.cdiv(call.channels, width)
    tokens = blocks.run * blocks.chunk
    row = _token_block(tokens, width)
    column = pl.BlockSpec((None, None, tokens, call.state_tile), lambda b, s, c: (b, c, s, 0))
    parameter = pl.BlockSpec((None, None, 1, width), lambda b, s, c: (b, s, 0, c))

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((call.batch, *shape), dtype)

    def of_splits(x):
        return array(splits, call.length, call.states, dtype=dtype_of_parts(x, splits))

    def own(*shape):
        """For each program."""
        return array(slots, splits, *shape)

    states, channels = call.states, call.channels
    shapes = ScanArguments(
        u=like(inputs.u),
        delta=like(inputs.delta),
        A=array(slots, states, channels),
        B=of_splits(inputs.B),
        C=of_splits(inputs.C),
        D=array(slots, 1, channels),
        z=like(inputs.z),
        delta_bias=array(slots, 1, channels),
        h0=None,
    )
    shapes = where_present(shapes, arguments)
    sums = None if blocks.groups == 1 else own(blocks.chunk, call.state_tile)
    kept_states = own(blocks.chunk // blocks.stride, blocks.gradient_states, blocks.gradient_tile)
    row_memory = own(blocks.chunk, blocks.gradient_tile)
    rows = ChunkRows(*[row_memory] * 5, None if inputs.z is None else row_memory)
    memory = GradientMemory(kept_states, rows, sums, sums)
    state = _state_block(call, None, width)
    blocks_out = ScanArguments(row, row, state, column, column, parameter, row, parameter, None)
    g, _ = _run(
        call,
        gradient_kernel,
        "gradient",
        blocks.gradient_warps,
        (inputs, h_in, g_in),
        [shapes, memory],
        grid=(call.batch, slots, splits),
        in_specs=[
            _input_blocks(call, inputs, tokens, width),
            *[_state_block(call, blocks.run, width)] * 2,
        ],
        out_specs=[where_present(blocks_out, shapes), jax.tree.map(_own_block, memory)],
    )
    g_B, g_C = sum_of_parts(g.B, inputs.B), sum_of_parts(g.C, inputs.C)
    g_D, g_bias = (None if x is None else jnp.sum(x, axis=(1, 2)) for x in (g.D, g.delta_bias))
    g_A, g_h0 = (jnp.swapaxes(x, 1, 2) for x in (jnp.sum(g.A, axis=1), g_h0))
    return ScanArguments(g.u, g.delta, g_A, g_B, g_C, g_D, g.z, g_bias, g_h0)


_scan = differentiable_scan(_forward_pass, _backward_pass)


def scan(options: KernelOptions, arguments: ScanArguments) -> tuple[jax.Array, jax.Array]:
    """See `differentiable_scan`; forward and backward pass have the chunks that suit a device's part."""
    chunk = triton_chunk(sequences_a_device(arguments.u), *arguments.u.shape[1:])
    return _scan(options._replace(chunk=chunk), arguments)
