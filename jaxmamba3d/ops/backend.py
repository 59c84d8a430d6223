"""What a program is being traced for: its backend, its GPUs, and the mesh axes of its batch."""

import contextlib
import contextvars
import re
from collections.abc import Iterator

import jax

from jaxmamba3d.checks import check_choice

DATA_AXIS, PARAMETER_AXIS = "data", "parameters"
BATCH_AXES = (DATA_AXIS, PARAMETER_AXIS)
"""The mesh axes over which batches are shared out; over the second one parameters may be, too."""

LANES, SUBLANES = 128, 8
"""Of a register of TPUs."""

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target_backend", default=None)


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
def compile_for(backend: str) -> Iterator[None]:
    """Makes every choice by backend as on `backend`, for programs compiled ahead of time for other chips.

    A function that `jax.jit` has traced keeps the choices of its first call.

    Raises:
        ValueError: backend is none of cpu, gpu and tpu.
    """
    check_choice("backend", backend, ("cpu", "gpu", "tpu"))
    token = _target.set(backend)
    try:
        yield
    finally:
        _target.reset(token)


def is_old_tpu() -> bool:
    """Whether a TPU here is of version 2 to 4, of which a core has a fraction of the later ones' VMEM."""
    return any(re.match(r"TPU v[234]\b", device.device_kind) for device in jax.devices())


def older_gpu_than(capability: float) -> str | None:
    """The lowest compute capability of the GPUs here if it is below the one given, else None.

    AMD's are names, such as gfx942, and below all.
    """

    def number(found: str) -> float:
        return float(found) if found.replace(".", "").isdigit() else 0.0

    found = [device.compute_capability for device in jax.devices() if device.platform == "gpu"]
    return min((c for c in found if number(c) < capability), key=number, default=None)
