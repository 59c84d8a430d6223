"""What a program is being traced for: its backend, its GPUs, and the mesh axes of its batch."""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Sequence

import jax

from jaxmamba3d.checks import check_choice

DATA_AXIS, PARAMETER_AXIS = "data", "parameters"
BATCH_AXES = (DATA_AXIS, PARAMETER_AXIS)
"""The mesh axes over which batches are shared out; over the second one parameters may be, too."""

LANES, SUBLANES = 128, 8
"""Of a register of TPUs."""

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target_backend", default=None)
_chips: contextvars.ContextVar[Sequence[jax.Device] | None] = contextvars.ContextVar("chips", default=None)


def target_backend() -> str:
    """The one that `compile_for` names, else that of `jax.default_device`, else JAX's: cpu, gpu or tpu."""
    device = jax.config.jax_default_device
    platform = getattr(device, "platform", device)  # a device, a name or None
    return _target.get() or platform or jax.default_backend()


def batch_axes() -> tuple[str, ...]:
    """The axes over which batches are shared out, of the mesh that `jax.set_mesh` set; () without one."""
    automatic = jax.sharding.get_abstract_mesh().auto_axes
    return tuple(axis for axis in BATCH_AXES if axis in automatic)


@contextlib.contextmanager
def compile_for(backend: str, chips: Sequence[jax.Device] | None = None) -> Iterator[None]:
    """Makes every choice by backend as on `backend`, for programs compiled ahead of time for other chips.

    A function that `jax.jit` has traced keeps the choices of its first call.

    Args:
        backend: cpu, gpu or tpu.
        chips: whose age is asked for; None: those here, if any are of that backend.

    Raises:
        ValueError: backend is none of cpu, gpu and tpu.
    """
    check_choice("backend", backend, ("cpu", "gpu", "tpu"))
    tokens = _target.set(backend), _chips.set(chips)
    try:
        yield
    finally:
        for variable, token in zip((_target, _chips), tokens, strict=True):
            variable.reset(token)


def is_old_tpu() -> bool:
    """Whether a TPU is of version 2 to 4, of which a core has a fraction of the later ones' VMEM."""
    return any(re.match(r"TPU v[234]\b", chip.device_kind) for chip in _target_chips())


def older_gpu_than(capability: float) -> str | None:
    """The lowest compute capability of the GPUs if it is below the one given, else None.

    AMD's are names, such as gfx942, and below all.
    """

    def number(found: str) -> float:
        return float(found) if found.replace(".", "").isdigit() else 0.0

    found = [chip.compute_capability for chip in _target_chips() if chip.platform == "gpu"]
    return min((c for c in found if number(c) < capability), key=number, default=None)


def _target_chips() -> Sequence[jax.Device]:
    """Those that `compile_for` names, else those here."""
    chips = _chips.get()
    return jax.devices() if chips is None else chips
