"""The public selective scan: checks, documentation, and the choice of an implementation."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from jaxmamba3d.checks import UnsupportedError, check_choice, check_shape, check_that
from jaxmamba3d.ops.backend import target_backend
from jaxmamba3d.ops.dtypes import check_floating
from jaxmamba3d.ops.selective_scan import (
    pallas_mosaic_gpu,
    pallas_mosaic_tpu,
    pallas_triton,
    reference,
    xla,
)
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments
from jaxmamba3d.ops.selective_scan.devices import laid_out_as_u
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelOptions
from jaxmamba3d.ops.varying import varying_axes, varying_together

logger = logging.getLogger(__name__)


class Implementation(NamedTuple):
    """One way to compute the scan.

    Args:
        scan: (arguments, delta_softplus, reverse) -> y [B, L, D] in u's dtype, last state [B, D, N] float32.
        unsupported_reason: (arguments, backend) -> why it cannot run this call there, or None.
    """

    scan: Callable[[ScanArguments, bool, bool], tuple[jax.Array, jax.Array]]
    unsupported_reason: Callable[[ScanArguments, str], str | None]


def _everywhere(scan, **options) -> Implementation:
    def run(arguments, delta_softplus, reverse):
        arguments = laid_out_as_u(arguments)
        return scan(arguments, delta_softplus=delta_softplus, reverse=reverse, **options)

    return Implementation(run, lambda arguments, backend: None)


def _kernel(module) -> Implementation:
    def run(arguments, delta_softplus, reverse):
        interpret = target_backend() == "cpu"
        return module.scan(KernelOptions(delta_softplus, reverse, interpret), arguments)

    def unsupported_reason(arguments, backend):
        if backend == "cpu" and (axes := varying_axes(arguments)):
            return (
                f"interpreted inside of jax.shard_map, here over {', '.join(axes)}, it needs check_vma=False"
            )
        return module.unsupported_reason(arguments, backend)

    return Implementation(run, unsupported_reason)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": _everywhere(reference.scan),
    "xla_sequential": _everywhere(xla.scan, inner=xla.SequentialScan),
    "xla_associative": _everywhere(xla.scan, inner=xla.AssociativeScan),
    "pallas_triton": _kernel(pallas_triton),
    "pallas_mosaic_gpu": _kernel(pallas_mosaic_gpu),
    "pallas_mosaic_tpu": _kernel(pallas_mosaic_tpu),
}

PREFERRED = {
    "cpu": ("xla_sequential",),
    "gpu": ("pallas_triton", "pallas_mosaic_gpu", "xla_associative"),
    "tpu": ("pallas_mosaic_tpu", "xla_associative"),
}
"""By backend: the first that supports a call is taken."""


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    z: jax.Array | None = None,
    delta_bias: jax.Array | None = None,
    delta_softplus: bool = False,
    h0: jax.Array | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Runs a selective state-space model (Mamba-1) over sequences.

        delta[t] <- softplus(delta[t] + delta_bias)            (each part where asked for)
        h[t] = exp(delta[t] A) h[t-1] + (delta[t] u[t]) B[t]
        y[t] = (C[t] . h[t] + D u[t]) silu(z[t])               (D and z where given)

    Args:
        u: input, [B, L, D], floating.
        delta: step sizes, [B, L, D].
        A: decay rates, negative for a stable model, [D, N].
        B: input weights of each token, [B, L, N].
        C: output weights of each token, [B, L, N].
        D: weight of the direct path from input to output, [D].
        z: gate, [B, L, D].
        delta_bias: added to delta, [D].
        delta_softplus: pass delta through softplus.
        h0: state before the first token, [B, D, N]; zero if None.
        reverse: run from the last token to the first; nothing is flipped or copied.
        return_last_state: also return the state after the last token (with `reverse`, the first).
        implementation: reference | xla_associative | xla_sequential | pallas_triton | pallas_mosaic_gpu |
            pallas_mosaic_tpu; None takes the first that supports the call: xla_sequential on CPUs, a Pallas
            kernel on GPUs and TPUs, else xla_associative. What counts is JAX's default backend; for arrays on
            another, set `jax.default_device`; to lower or export for other chips, trace the call inside of
            `jaxmamba3d.ops.backend.compile_for` (`jax.export` asks for `disabled_checks` of Triton's custom
            call). On CPUs the kernels run interpreted, for tests.

    Returns:
        y [B, L, D] in u's dtype, and with `return_last_state` the state [B, D, N] in float32.

    Numerics:
        State and sums are float32 whatever the inputs are, sums over time in gradients included. Memory
        beyond inputs and outputs is a few times the state at chunk borders, [chunks, B, D, N] float32, and
        the states of the chunks at work, in Triton's gradient of at least one per sequence; XLA also makes
        float32 copies of bfloat16 sequences on CPUs. Chunks of long sequences have 128 to 256 tokens in XLA
        and on TPUs, 32 to 256 in Triton, 16 to 256 in Mosaic GPU; XLA, where no such number divides the
        length, and Mosaic GPU pad the sequences, which copies them. A model that is not stable (A > 0) may
        overflow in a chunk's decay where its states would not.

    Derivatives: in reverse mode. Those of the kernels cannot be differentiated again, and none has a
    forward mode (`jax.jvp`) but `reference`.

    Several devices: a batch that is sharded stays where it is, over explicit axes (of the mesh that is set by
    `jax.set_mesh`) and inside of `jax.shard_map` too. For the kernel on TPUs and automatic axes, set a mesh
    with an axis named data, over which the batch is then shared out.

    Raises:
        ValueError: a shape or dtype does not fit, or the implementation is unknown.
        UnsupportedError: the implementation named cannot run this call on this backend.

    Source:
        Gu and Dao, "Mamba", arXiv 2312.00752, equations 2 and Algorithm 2; `selective_scan_ref` in
        mamba_ssm/ops/selective_scan_interface.py, whose tensors are [B, D, L].
    """
    given = (u, delta, A, B, C, D, z, delta_bias, h0)
    arguments = ScanArguments(*(None if array is None else jnp.asarray(array) for array in given))
    _check(arguments)
    flags = {"delta_softplus": delta_softplus, "reverse": reverse, "return_last_state": return_last_state}
    for name, flag in flags.items():
        known = isinstance(flag, bool | np.bool_)
        check_that(known, name, "True or False, known when the call is traced", type(flag).__name__)
    arguments = varying_together(arguments.with_float32_parameters().with_first_state())
    backend = target_backend()
    if implementation is None:
        implementation = _first_supporting(arguments, backend)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if reason := IMPLEMENTATIONS[implementation].unsupported_reason(arguments, backend):
        raise UnsupportedError(f"selective_scan: {implementation} cannot run this call: {reason}")
    y, last_state = IMPLEMENTATIONS[implementation].scan(arguments, delta_softplus, reverse)
    return (y, last_state) if return_last_state else y


def unsupported_reason(implementation: str, **arrays: jax.Array) -> str | None:
    """Why an implementation cannot run a call on the current backend, or None if it can.

    Args:
        implementation: see `selective_scan`.
        arrays: the call's arrays, or `jax.ShapeDtypeStruct`s of theirs, by name.

    Raises:
        ValueError: there is no such implementation or array, an array lacks that the call needs, or one is of
            a shape or dtype that does not fit.
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    for name in arrays:
        check_choice("an array's name", name, ScanArguments._fields)
    found = {name: _as_jax_takes_it(array) for name, array in arrays.items()}
    arguments = ScanArguments(**(dict.fromkeys(ScanArguments._fields) | found))
    _check(arguments)
    return IMPLEMENTATIONS[implementation].unsupported_reason(arguments, target_backend())


def _as_jax_takes_it(array):
    """NumPy's arrays may be of dtypes that JAX narrows; None stays None."""
    if array is None or isinstance(array, jax.Array | jax.ShapeDtypeStruct):
        return array
    array = np.asarray(array)
    return jax.ShapeDtypeStruct(array.shape, canonicalize_dtype(array.dtype))


def _first_supporting(arguments: ScanArguments, backend: str) -> str:
    reasons = []
    for name in PREFERRED.get(backend, ("xla_associative",)):
        reason = IMPLEMENTATIONS[name].unsupported_reason(arguments, backend)
        if reason is None:
            _log_choice(backend, name, "; ".join(reasons))
            return name
        reasons.append(f"not {name}: {reason}")
    raise AssertionError(f"the last choice on {backend} supports every call")


@functools.cache
def _log_choice(backend: str, name: str, reasons: str) -> None:
    """Once for each choice."""
    logger.info("selective_scan on %s: %s%s", backend, name, f" ({reasons})" if reasons else "")


def _check(arguments: ScanArguments) -> None:
    for name in ("u", "delta", "A", "B", "C"):
        check_that(getattr(arguments, name) is not None, name, "an array", None)
    check_that(arguments.u.ndim == 3, "u", "[B, L, D]", f"shape {list(arguments.u.shape)}")
    check_that(arguments.A.ndim == 2, "A", "[D, N]", f"shape {list(arguments.A.shape)}")
    (batch, length, channels), state = arguments.u.shape, arguments.A.shape[1]
    check_that(length >= 1, "u", "at least one token long", f"shape {list(arguments.u.shape)}")
    check_that(batch * channels >= 1, "u", "not empty", f"shape {list(arguments.u.shape)}")
    check_that(state >= 1, "A", "of at least one state", f"shape {list(arguments.A.shape)}")
    token = "[B, L, D]", (batch, length, channels)
    projection = "[B, L, N]", (batch, length, state)
    channel = "[D]", (channels,)
    legends = ScanArguments(
        u=token,
        delta=token,
        A=("[D, N]", (channels, state)),
        B=projection,
        C=projection,
        D=channel,
        z=token,
        delta_bias=channel,
        h0=("[B, D, N]", (batch, channels, state)),
    )
    for name, array, legend in zip(ScanArguments._fields, arguments, legends, strict=True):
        if array is not None:
            check_shape(name, array, *legend)
            check_floating(name, array)
