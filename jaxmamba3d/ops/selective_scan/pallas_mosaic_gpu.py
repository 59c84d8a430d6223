"""The selective scan as Pallas kernels that lower through Mosaic GPU, for Hopper GPUs and newer.

The successor of the kernels that lower through Triton, which jax has deprecated; the same passes: every
chunk's end state from a zero start (`_summary_kernel`), the true state before each chunk (`join_chunks`),
every chunk again from there (`_output_kernel`), and the mirror of it backwards. A program is one warpgroup
with a tile of 64 channels of one chunk; asynchronous copies read tokens ahead into shared memory, where the
gradient kernel also keeps the state before every step of tokens. It recomputes the states within a step.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmamba3d.ops.backend import older_gpu_than
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, gate_gradient, skip_and_gate
from jaxmamba3d.ops.selective_scan.blocks import mosaic_gpu_blocks
from jaxmamba3d.ops.selective_scan.chunking import join_chunks
from jaxmamba3d.ops.selective_scan.kernel_scan import (
    KernelInputs,
    KernelOptions,
    differentiable_scan,
    dtype_of_parts,
    like,
    sum_of_parts,
    where_present,
)
from jaxmamba3d.ops.selective_scan.mosaic_gpu_tile import (
    GRID,
    TILE,
    MosaicGpuCall,
    place,
    read_row,
    read_tile,
    skip_and_gate_adjoint,
    walk,
    zero_row,
    zero_tile,
)
from jaxmamba3d.ops.selective_scan.recurrence import advance, decay_of, readout, retreat
from jaxmamba3d.ops.varying import varying_axes

OLDEST_JAX = (0, 11)
OLDEST_CAPABILITY = 9.0
LARGEST_STATE, STATE_STEP = 64, 8
COPY_BYTES = 128
"""What the threads of a warpgroup copy together."""
LONGEST_GRID = 2**16 - 1


def unsupported_reason(arguments: ScanArguments, backend: str) -> str | None:
    """Why this implementation cannot run a call, or None; on a CPU it runs interpreted, which is slow."""
    if backend == "tpu":
        return "it lowers through Mosaic GPU, for NVIDIA GPUs"
    if jax.__version_info__ < OLDEST_JAX:
        return f"it needs jax 0.11 or newer, and this is {jax.__version__}"
    if old := older_gpu_than(OLDEST_CAPABILITY):
        return f"it needs a Hopper GPU or newer, and this one is of compute capability {old}"
    if axes := varying_axes(arguments):
        return f"inside of jax.shard_map, here over {', '.join(axes)}, it needs check_vma=False"
    if other := arguments.other_dtype("float16", "bfloat16", "float32"):
        return f"it takes float16, bfloat16 and float32, and not {other}"
    channels, states = arguments.A.shape
    if channels % TILE:
        return f"it works on {TILE} channels at a time, and {channels} are no multiple of that"
    if states % STATE_STEP or states > LARGEST_STATE:
        return f"it holds a multiple of {STATE_STEP} up to {LARGEST_STATE} states, and A has {states}"
    batch, length, _ = arguments.u.shape
    blocks = mosaic_gpu_blocks(length, states)
    smallest = min(x.dtype.itemsize for x in (arguments.B, arguments.C))
    if (copied := blocks.step * states * smallest) % COPY_BYTES:
        return f"it copies multiples of {COPY_BYTES} bytes, and {blocks.step} tokens of B or C take {copied}"
    if (most := max(batch, math.ceil(length / blocks.chunk))) > LONGEST_GRID:
        return f"CUDA's grids end at {LONGEST_GRID} sequences or chunks, and this call has {most}"
    return None


def _summary_kernel(call: MosaicGpuCall, refs: KernelInputs, out):
    """The state after a chunk from a zero start, and the sum of its steps."""
    at, (end_ref, span_ref) = place(call), out
    delta_bias, decay = _bias(refs, at), decay_of(read_tile(refs.A.at[at.parameter]), call.form)

    def body(_, step, carry):
        h, span = carry
        for j in call.order():
            token = step.token(j)
            h, span = advance(h, token, decay(token.delta), call.form), span + token.delta
        return (h, span), []

    h, span = walk(call, at, refs, delta_bias, body, (zero_tile(call.states), zero_row()))
    end_ref[at.state] = h
    span_ref[at.state] = span


def _output_kernel(call: MosaicGpuCall, refs: KernelInputs, h_in_ref, y_ref, y_rows):
    """y of a chunk, from the state before it."""
    at = place(call)
    delta_bias, decay = _bias(refs, at), decay_of(read_tile(refs.A.at[at.parameter]), call.form)
    D = _parameter(refs.D, at)

    def body(_, step, h):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for j in call.order():
            token = step.token(j)
            h = advance(h, token, decay(token.delta), call.form)
            u, z = (step.row(x, j) for x in (step.refs.u, step.refs.z))
            y = skip_and_gate(readout(h, token, call.form), u, D, z)
            y_rows[j] = y.astype(y_rows.dtype)
        return h, [(y_rows, y_ref.at[at.sequence, step.tokens, at.channels])]

    walk(call, at, refs, delta_bias, body, read_tile(h_in_ref.at[at.state]))
    plgpu.wait_smem_to_gmem(0)


def _adjoint_summary_kernel(call: MosaicGpuCall, refs: KernelInputs, out):
    """The gradient of the state before a chunk that the chunk's own outputs give."""
    at, (g_ref,) = place(call), out
    delta_bias, decay = _bias(refs, at), decay_of(read_tile(refs.A.at[at.parameter]), call.form)

    def body(_, step, g):
        for j in call.order(backward=True):
            token = step.token(j)
            g_y = gate_gradient(step.row(step.refs.g_out, j), step.row(step.refs.z, j))
            g = (g + call.form.from_row(g_y) * call.form.from_column(token.C)) * decay(token.delta)
        return g, []

    g_ref[at.state] = walk(call, at, refs, delta_bias, body, zero_tile(call.states), backward=True)


class _GradientScratch(NamedTuple):
    """Shared memory of the gradient kernel: the state before each step of tokens, and a step's gradients on
    their way out; those that a call lacks are None."""

    states: jax.Array
    out: ScanArguments


def _gradient_kernel(
    call: MosaicGpuCall, refs: KernelInputs, h_in_ref, g_in_ref, out: ScanArguments, scratch: _GradientScratch
):
    """All gradients of a chunk, from the state before it and the gradient of the state after it.

    Those of the parameters are sums over the chunk, those of B and C over the tile's channels.
    """
    at, form, order = place(call), call.form, call.order()
    A, D, delta_bias = read_tile(refs.A.at[at.parameter]), _parameter(refs.D, at), _bias(refs, at)
    decay = decay_of(A, form)

    def keep_states(k, step, h):
        scratch.states[k] = h
        for j in order:
            token = step.token(j)
            h = advance(h, token, decay(token.delta), form)
        return h, []

    before_y = refs._replace(C=None, z=None, g_out=None)
    walk(call, at, before_y, delta_bias, keep_states, read_tile(h_in_ref.at[at.state]))

    def gradients(k, step, carry):
        g, g_A, sums = carry
        states, tokens = [read_tile(scratch.states.at[call.steps - 1 - k])], []
        for j in order:
            tokens.append(step.token(j))
            states.append(advance(states[-1], tokens[-1], decay(tokens[-1].delta), form))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for i in reversed(range(len(order))):
            j, token = order[i], tokens[i]
            u, z, g_out = (step.row(x, j) for x in (step.refs.u, step.refs.z, step.refs.g_out))
            y = readout(states[i + 1], token, form)
            g_y, g_u, g_D, g_z = skip_and_gate_adjoint(y, u, D, z, g_out)
            here = decay(token.delta), states[i], states[i + 1], g_y
            g, g_A, g_token = retreat(g, token, A, *here, g_A, form)
            g_delta = step.slope(j, g_token.delta + g_token.drive * u)
            g_bias = None if delta_bias is None else g_delta
            g_scanned = g_token.drive * token.delta
            g_u = g_scanned if g_u is None else g_scanned + g_u
            found = ScanArguments(g_u, g_delta, None, g_token.B, g_token.C, None, g_z, None, None)
            for rows, value in zip(scratch.out, found, strict=True):
                if rows is not None:
                    rows[j] = value.astype(rows.dtype)
            sums = jax.tree.map(jnp.add, sums, (g_D, g_bias))
        row = at.sequence, step.tokens, at.channels
        column = at.sequence, at.tile, step.tokens
        places = ScanArguments(row, row, None, column, column, None, row, None, None)
        staged = zip(scratch.out, out, places, strict=True)
        return (g, g_A, sums), [(rows, ref.at[index]) for rows, ref, index in staged if rows is not None]

    zeros = tuple(None if x is None else zero_row() for x in (D, delta_bias))
    start = read_tile(g_in_ref.at[at.state]), zero_tile(call.states), zeros
    _, g_A, sums = walk(call, at, refs, delta_bias, gradients, start, backward=True)
    for ref, value in zip((out.A, out.D, out.delta_bias), (g_A, *sums), strict=True):
        if ref is not None:
            ref[at.state] = value
    plgpu.wait_smem_to_gmem(0)


def _parameter(ref, at):
    return None if ref is None else read_row(ref.at[at.parameter])


def _bias(refs: KernelInputs, at):
    return _parameter(refs.delta_bias, at)


def _launch(call: MosaicGpuCall, kernel, name: str, operands, out_type, scratch_types=()):
    """Runs a kernel(call, *operands, out, *scratch), one program a sequence, chunk and tile.

    Arguments and results are trees of arrays.
    """
    tree = jax.tree.structure((operands, out_type, scratch_types))
    interpret = {"interpret": plgpu.InterpretGPUParams(detect_races=True)} if call.options.interpret else {}

    def body(*refs):
        operands, out, scratch = jax.tree.unflatten(tree, refs)
        kernel(call, *operands, out, *scratch)

    body.__name__ = f"selective_scan_{name}"
    run = plgpu.kernel(
        body,
        out_type=jax.tree.leaves(out_type),
        scratch_types=jax.tree.leaves(scratch_types),
        grid=call.grid,
        grid_names=GRID,
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        **interpret,
    )
    return jax.tree.unflatten(jax.tree.structure(out_type), run(*jax.tree.leaves(operands)))


def _inputs(call: MosaicGpuCall, arguments: ScanArguments, g_out: jax.Array | None = None) -> KernelInputs:
    """Sequences padded to whole chunks; A [G, D, N], D and delta_bias [G, D]."""
    padding = call.chunks * call.blocks.chunk - call.length

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, padding), (0, 0))) if padding and x is not None else x

    inputs = KernelInputs(*arguments[:-1], g_out)
    rows = {name: padded(getattr(inputs, name)) for name in ("u", "delta", "B", "C", "z", "g_out")}
    return inputs._replace(**rows)


def _call(options: KernelOptions, arguments: ScanArguments) -> MosaicGpuCall:
    (batch, length, channels), (groups, _, states) = arguments.u.shape, arguments.A.shape
    blocks = mosaic_gpu_blocks(length, states)
    return MosaicGpuCall(options, batch, length, channels, states, blocks, groups)


def _forward_pass(options: KernelOptions, arguments: ScanArguments):
    call = _call(options, arguments)
    inputs = _inputs(call, arguments)
    rows = (call.batch, call.chunks, call.channels)
    state = jax.ShapeDtypeStruct((*rows, call.states), jnp.float32)
    ends, spans = _launch(
        call,
        _summary_kernel,
        "summary",
        (inputs._replace(C=None, D=None, z=None),),
        (state, jax.ShapeDtypeStruct(rows, jnp.float32)),
    )
    h_in, last_state = join_chunks(ends, spans[..., None], inputs.A, arguments.h0, reverse=options.reverse)
    y = _launch(
        call,
        _output_kernel,
        "output",
        (inputs, h_in),
        like(inputs.u),
        (plgpu.SMEM((call.blocks.step, TILE), inputs.u.dtype),),
    )
    return y[:, : call.length], last_state, (h_in, spans)


def _backward_pass(options, arguments: ScanArguments, residuals, g_out, g_last):
    h_in, spans = residuals
    call = _call(options, arguments)
    inputs = _inputs(call, arguments, g_out)
    (g_ends,) = _launch(
        call,
        _adjoint_summary_kernel,
        "adjoint_summary",
        (inputs._replace(u=None, B=None, D=None),),
        (like(h_in),),
    )
    g_in, g_h0 = join_chunks(g_ends, spans[..., None], inputs.A, g_last, reverse=not options.reverse)

    step, states, tiles = call.blocks.step, call.states, call.channels // TILE

    def column(x):
        """Of each tile."""
        batch, padded, _ = x.shape
        return jax.ShapeDtypeStruct((batch, tiles, padded, states), dtype_of_parts(x, tiles))

    out = ScanArguments(
        u=like(inputs.u),
        delta=like(inputs.delta),
        A=like(h_in),
        B=column(inputs.B),
        C=column(inputs.C),
        D=like(spans),
        z=like(inputs.z),
        delta_bias=like(spans),
        h0=None,
    )
    out = where_present(out, arguments)
    rows = out._replace(A=None, D=None, delta_bias=None)
    rows = jax.tree.map(lambda x: plgpu.SMEM((step, states if x.ndim == 4 else TILE), x.dtype), rows)
    swizzle = next(size for size in (128, 64, 32) if 4 * states % size == 0)
    kept = plgpu.SMEM(
        (call.steps, TILE, states),
        jnp.float32,
        transforms=(plgpu.TilingTransform((8, swizzle // 4)), plgpu.SwizzleTransform(swizzle)),
    )
    g = _launch(
        call, _gradient_kernel, "gradient", (inputs, h_in, g_in), out, (_GradientScratch(kept, rows),)
    )
    g_u, g_delta, g_z = (None if x is None else x[:, : call.length] for x in (g.u, g.delta, g.z))
    g_B, g_C = (sum_of_parts(x[:, :, : call.length], y) for x, y in ((g.B, inputs.B), (g.C, inputs.C)))
    g_A, g_D, g_bias = (None if x is None else jnp.sum(x, axis=1) for x in (g.A, g.D, g.delta_bias))
    return ScanArguments(g_u, g_delta, g_A, g_B, g_C, g_D, g_z, g_bias, g_h0)


scan = differentiable_scan(_forward_pass, _backward_pass, interpreter_can_partition=False)
