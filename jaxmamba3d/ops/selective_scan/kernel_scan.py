"""What makes a differentiable scan of a kernel's forward and backward pass.

A kernel is opaque to JAX: here it learns how a kernel is differentiated (`jax.custom_vjp`), that a mapped
axis is more batch (`custom_vmap`), and that devices may share sequences out (`on_devices`).

Inside, parameters have an axis [G] in front, for G scans in one call: sequence b has those of b % G.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl

from jaxmamba3d.ops.selective_scan.arguments import ScanArguments
from jaxmamba3d.ops.selective_scan.blocks import Overrides, block_overrides, overriding
from jaxmamba3d.ops.selective_scan.devices import on_devices, split_by_sequence


class KernelOptions(NamedTuple):
    """The static part of a call.

    `chunk`: tokens of a chunk, for a kernel whose own rule depends on the batch. Forward and backward pass
    must cut alike, but may see other batches: one of them mapped alone, or a device's part. `overrides`: of
    the blocks, where the call is; the passes may be traced elsewhere.
    """

    delta_softplus: bool
    reverse: bool
    interpret: bool
    chunk: int | None = None
    overrides: Overrides = ()


@dataclass(frozen=True)
class KernelCall:
    """The static part of a call of a kernel: its arrays' sizes, and the blocks that they are cut into."""

    options: KernelOptions
    batch: int
    length: int
    channels: int
    states: int
    blocks: Any

    @property
    def chunks(self) -> int:
        return pl.cdiv(self.length, self.blocks.chunk)

    def descends(self, backward: bool = False) -> bool:
        """Whether tokens are visited from the last to the first, in scan order or against it."""
        return self.options.reverse != backward


class KernelInputs(NamedTuple):
    """Arrays of a call as kernels take them, their blocks, or their refs; None where absent.

    u, delta, z, g_out [B, L, D]; B, C [B, L, N]; A [G, N, D]; D, delta_bias [G, 1, D]; Mosaic's kernels turn
    some of them.
    """

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    delta_bias: Any
    g_out: Any = None


def kernel_inputs(arguments: ScanArguments, g_out: jax.Array | None = None) -> KernelInputs:
    """The arrays of a call, parameters with channels last."""
    u, delta, A, B, C, D, z, delta_bias, _ = arguments
    D, delta_bias = (None if x is None else x[:, None] for x in (D, delta_bias))
    return KernelInputs(u, delta, jnp.swapaxes(A, 1, 2), B, C, D, z, delta_bias, g_out)


def where_present(fields: NamedTuple, arrays: NamedTuple) -> NamedTuple:
    """`fields` with None where `arrays` has None."""
    pairs = zip(fields, arrays, strict=True)
    return type(fields)(*(None if array is None else field for field, array in pairs))


def like(array: jax.Array | None, dtype=None) -> jax.ShapeDtypeStruct | None:
    """Shape of a gradient that is like an array; None for None."""
    return None if array is None else jax.ShapeDtypeStruct(array.shape, dtype or array.dtype)


def dtype_of_parts(array: jax.Array, parts: int) -> jnp.dtype:
    """Of an array's gradient that is the sum of parts: where there are several, their sum is rounded, not
    they."""
    return array.dtype if parts == 1 else jnp.dtype(jnp.float32)


def sum_of_parts(parts: jax.Array, array: jax.Array) -> jax.Array:
    """An array's gradient from its parts, [B, parts, ...]."""
    return jnp.sum(parts, axis=1).astype(array.dtype)


ForwardPass = Callable[[KernelOptions, ScanArguments], tuple[jax.Array, jax.Array, Any]]
"""Parameters with [G] in front -> y [B, L, D], last state [B, D, N], and arrays [B, ...] for the backward
pass."""
BackwardPass = Callable[[KernelOptions, ScanArguments, Any, jax.Array, jax.Array], ScanArguments]
"""Arguments, arrays of the forward pass, gradients of y and of the last state -> gradients, those of the
parameters A, D and delta_bias for each sequence alone, with [B] in front."""


def differentiable_scan(
    forward_pass: ForwardPass, backward_pass: BackwardPass, *, interpreter_can_partition: bool = True
) -> Callable[[KernelOptions, ScanArguments], tuple[jax.Array, jax.Array]]:
    """(options, arguments) -> y [B, L, D] in u's dtype and the last state [B, D, N] float32.

    `interpreter_can_partition`: whether the interpreter of the kernels can run inside of a program that is
    partitioned over devices; where not, it runs on one.
    """

    forward_pass, backward_pass = map(_traced_once, (forward_pass, backward_pass))

    def each_sequence(options, function):
        return _each_sequence(function, partition=interpreter_can_partition or not options.interpret)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def scan(options, arguments):
        return forward(options, arguments)[0]

    def forward(options, arguments):
        def run(sequences, parameters):
            return forward_pass(options, _merged(sequences, parameters))

        sequences, parameters = _split(arguments)
        parameters = jax.tree.map(lambda x: x[None], parameters)
        y, last_state, residuals = each_sequence(options, run)(sequences, parameters)
        return (y, last_state), (sequences, parameters, residuals)

    def backward(options, saved, gradients):
        def run(batched, parameters):
            sequences, residuals, g_y, g_last = batched
            return backward_pass(options, _merged(sequences, parameters), residuals, g_y, g_last)

        sequences, parameters, residuals = saved
        g = each_sequence(options, run)((sequences, residuals, *gradients), parameters)
        g_sequences, g_parameters = _split(g)
        # Where the batch is sharded, only this sum is one over devices.
        return (_merged(g_sequences, jax.tree.map(lambda x: jnp.sum(x, axis=0), g_parameters)),)

    scan.defvjp(forward, backward)

    def call(options, arguments):
        # What is split otherwise over explicit axes gets its gradient back as it was.
        arguments = _merged(*split_by_sequence(*_split(arguments)))
        return scan(options._replace(overrides=block_overrides()), arguments)

    return call


def _traced_once(function):
    """function(options, *arrays), traced and lowered once for all calls alike, as a network has them."""

    def run(options, *arrays):
        # Pallas takes the numbers in kernels and blocks for 64 bits wide under jax_enable_x64, and fails.
        with jax.enable_x64(False), overriding(options.overrides):
            return function(options, *arrays)

    run.__name__ = f"selective_scan{function.__name__}"
    return jax.jit(run, static_argnums=0)


def _split(arguments: ScanArguments) -> tuple[ScanArguments, ScanArguments]:
    """What belongs to sequences, and the parameters that they share."""
    parameters = arguments._replace(u=None, delta=None, B=None, C=None, z=None, h0=None)
    return arguments._replace(A=None, D=None, delta_bias=None), parameters


def _merged(sequences: ScanArguments, parameters: ScanArguments) -> ScanArguments:
    pairs = zip(sequences, parameters, strict=True)
    return ScanArguments(*(one if other is None else other for one, other in pairs))


def _each_sequence(function, partition: bool):
    """function(batched, parameters), where all leaves of `batched` and of the result have [B] in front."""

    @custom_vmap
    def mapped(batched, parameters):
        return on_devices(function, batched, parameters) if partition else function(batched, parameters)

    @mapped.def_vmap
    def rule(size, is_mapped, batched, parameters):
        fold = functools.partial(_fold, size)
        own = any(jax.tree.leaves(is_mapped[1])) or any(x.shape[0] > 1 for x in jax.tree.leaves(parameters))
        folded = jax.tree.map(fold, batched, is_mapped[0])
        groups = jax.tree.map(fold, parameters, is_mapped[1]) if own else parameters
        result = jax.tree.map(functools.partial(_unfold, size), mapped(folded, groups))
        return result, jax.tree.map(lambda _: True, result)

    return mapped


def _fold(size, array, is_mapped):
    """[V, B, ...] -> [B V, ...], and likewise [V, G, ...], or the same from an array without [V].

    The batch stays outermost, so that its shards stay whole, and sequence b has parameters b % G still.
    """
    if not is_mapped:
        array = jnp.broadcast_to(array, (size, *array.shape))
    array = jnp.swapaxes(array, 0, 1)
    return array.reshape(-1, *array.shape[2:])


def _unfold(size, array):
    return jnp.swapaxes(array.reshape(-1, size, *array.shape[1:]), 0, 1)
