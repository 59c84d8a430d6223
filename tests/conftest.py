"""Eight CPU devices for every test, set before jax starts its backend, unless JAX_PLATFORMS asks for others.

Tests compile much and compute little: the lowest optimisation of machine code saves a third of their time,
and what is compiled again, for another run of the same training, comes out of a cache. Each process of pytest
has its own, for JAX does not write its files atomically.

Elsewhere products are computed in float32, not in the tensor cores' narrower numbers, which tolerances of
rounding do not allow.
"""

import importlib.util
import os
import tempfile

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
compiled_programs = tempfile.TemporaryDirectory(prefix="compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled_programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = " ".join(
        (
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=8",
            "--xla_backend_optimization_level=0",
        )
    )
else:
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


@pytest.fixture(scope="session", autouse=True)
def nnunets_intensity_samples():
    """How many intensities planning samples; in tests it samples few."""
    if importlib.util.find_spec("nibabel") is None:  # the kernels are tested where only JAX is installed, too
        yield None
        return
    from small_datasets import FEW_INTENSITIES

    from jaxmamba3d.data import fingerprint

    number = fingerprint.INTENSITY_SAMPLES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "INTENSITY_SAMPLES", FEW_INTENSITIES)
        yield number


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A part of the tests, in order, for each process: what a module sets up is then seldom made twice."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
