"""Which backend a program is being traced for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target_backend", default=None)


def target_backend() -> str:
    """JAX's default backend, or the one that `compile_for` names: cpu, gpu or tpu."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compile_for(backend: str) -> Iterator[None]:
    """Makes every choice by backend as on `backend`, for programs compiled ahead of time for other chips."""
    token = _target.set(backend)
    try:
        yield
    finally:
        _target.reset(token)
