"""What this machine offers."""

import importlib.metadata
import os
import platform

PACKAGES = ("jaxmamba3d", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")
"""Those on which results depend."""


def core_count() -> int:
    """CPU cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # a scheduler may grant fewer cores than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def installed_versions() -> dict[str, str]:
    """The versions of Python and of `PACKAGES`."""
    return {package: _version(package) for package in PACKAGES} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that is only on the path
        return "not installed"
