"""The scans of a PyTorch user, where they can be imported: mamba-ssm's CUDA kernel, on CPUs a plain loop."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax

from jaxmamba3d.bench.shapes import ScanShape
from jaxmamba3d.bench.timing import Timing, time_calls

DOES_NOT_FIT = "does not fit into memory"

LONGEST_LOOP = 4096
"""Tokens up to which a Python loop over time is measured."""


def peers() -> dict[str, Callable[..., Timing | str]]:
    """Name -> measure(shape, dtype, reverse, backward, repeats) -> Timing, or why there is none."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if torch.cuda.is_available() and importlib.util.find_spec("mamba_ssm") is not None:
        return {"mamba_ssm (CUDA)": _measure_mamba_ssm}
    return {"torch loop": _measure_loop} if jax.default_backend() == "cpu" else {}


def _measure_mamba_ssm(shape: ScanShape, dtype: str, reverse: bool, backward: bool, repeats: int):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(u, delta, A, B, C, D, z, delta_bias):
        if reverse:  # as its users do
            u, delta, B, C, z = (x.flip(-1) for x in (u, delta, B, C, z))
        y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
        return y.flip(-1) if reverse else y

    return _measure(scan, shape, dtype, backward, repeats, "cuda")


def _measure_loop(shape: ScanShape, dtype: str, reverse: bool, backward: bool, repeats: int):
    if shape.length > LONGEST_LOOP:
        return "a loop over so many tokens takes too long"
    import torch

    def scan(u, delta, A, B, C, D, z, delta_bias):
        delta = torch.nn.functional.softplus(delta.float() + delta_bias[:, None])
        h, ys = torch.zeros(u.shape[0], *A.shape), [None] * u.shape[2]
        for t in reversed(range(u.shape[2])) if reverse else range(u.shape[2]):
            step = delta[:, :, t, None]
            h = torch.exp(step * A) * h + step * u[:, :, t, None].float() * B[:, None, :, t].float()
            ys[t] = (h * C[:, None, :, t].float()).sum(-1)
        y = torch.stack(ys, -1) + D[:, None] * u.float()
        return (y * torch.nn.functional.silu(z.float())).to(u.dtype)

    return _measure(scan, shape, dtype, backward, repeats, "cpu")


def _measure(
    scan: Any, shape: ScanShape, dtype: str, backward: bool, repeats: int, device: str
) -> Timing | str:
    import torch

    batch, length, channels, states, _ = shape
    torch.manual_seed(0)

    def sequence(width):
        values = torch.randn(batch, width, length, device=device)
        return values.to(getattr(torch, dtype)).requires_grad_(backward)

    u, delta, z, B, C = (sequence(width) for width in (channels, channels, channels, states, states))
    A = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    D, delta_bias = torch.ones(channels, device=device), torch.full((channels,), -4.0, device=device)
    parameters = [x.requires_grad_(backward) for x in (A, D, delta_bias)]
    inputs = [u, delta, A, B, C, D, z, delta_bias]

    def call():
        if not backward:
            with torch.no_grad():
                return scan(*inputs)
        y = scan(*inputs)
        return torch.autograd.grad(y, [u, delta, z, B, C, *parameters], torch.ones_like(y))

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    try:
        wait(call())
        return time_calls(call, repeats=repeats, wait=wait)
    except torch.cuda.OutOfMemoryError:
        return DOES_NOT_FIT
