"""The contract of the scan for the calls that pallas_mosaic_gpu supports.

The interpreter plays every load and every asynchronous copy of a GPU, and raises where two of them race.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_contract import OPTIONAL, assert_like_reference, random_arguments, value_and_gradients
from tolerances import assert_close, rounding

from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.ops.selective_scan import unsupported_reason
from jaxmamba3d.ops.selective_scan.blocks import mosaic_gpu_blocks, override_blocks
from jaxmamba3d.ops.selective_scan.mosaic_gpu_tile import softplus
from jaxmamba3d.ops.selective_scan.pallas_mosaic_gpu import OLDEST_JAX

KERNEL = "pallas_mosaic_gpu"
needs_its_jax = pytest.mark.skipif(
    jax.__version_info__ < OLDEST_JAX, reason="pallas_mosaic_gpu needs jax 0.11 or newer"
)


@needs_its_jax
@pytest.mark.parametrize(
    ("shape", "reverse", "dtype"),
    [
        ((1, 1, 64, 8), False, "float32"),
        ((2, 21, 64, 16), True, "float32"),
        ((1, 16, 128, 24), False, "float32"),
        ((1, 13, 64, 64), True, "float32"),
        ((1, 19, 64, 32), False, "bfloat16"),
    ],
)
def test_values_and_gradients(shape, reverse, dtype):
    tolerance = rounding("float32", shape[1]) if dtype == "float32" else rounding(dtype, 1)
    arguments = random_arguments(*shape, dtype=dtype)
    with override_blocks(chunk=8, step=4):
        assert_like_reference(arguments, KERNEL, tolerance, delta_softplus=True, reverse=reverse)


@needs_its_jax
@pytest.mark.parametrize("absent", [("z",), ("h0", "D"), OPTIONAL], ids=" ".join)
def test_optional_arguments(absent):
    kept = {k: v for k, v in random_arguments(1, 11, 64, 8).items() if k not in absent}
    assert_like_reference(kept, KERNEL, rounding("float32", 11))


@needs_its_jax
def test_vmap():
    arguments = random_arguments(1, 9, 64, 8)
    stacked = {k: jnp.stack([v, v + 0.1]) if k in ("u", "A") else v for k, v in arguments.items()}
    axes = ({k: 0 if k in ("u", "A") else None for k in arguments},)
    mapped = jax.vmap(functools.partial(value_and_gradients, implementation=KERNEL), axes)(stacked)
    for i in range(2):
        one = {k: v[i] if k in ("u", "A") else v for k, v in stacked.items()}
        for name, value in value_and_gradients(one, "reference").items():
            assert_close(mapped[name][i], value, rounding("float32", 9), name)


@pytest.mark.parametrize(
    ("channels", "states", "backend", "reason"),
    [
        (5, 8, "gpu", "64 channels at a time, and 5 are no multiple"),
        (64, 7, "gpu", "multiple of 8 up to 64 states, and A has 7"),
        (64, 128, "gpu", "multiple of 8 up to 64 states, and A has 128"),
        (64, 8, "tpu", "for NVIDIA GPUs"),
        (64, 8, "gpu", None),
    ],
)
def test_what_it_cannot_do_is_said(channels, states, backend, reason):
    shapes = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in random_arguments(1, 2, channels, states).items()
    }
    with compile_for(backend):
        found = unsupported_reason(KERNEL, **shapes)
    if jax.__version_info__ < OLDEST_JAX and backend == "gpu":
        reason = "needs jax 0.11 or newer"
    assert reason in found if reason else found is None


def test_blocks_fit_registers_and_shared_memory():
    for states in range(8, 65, 8):
        blocks = mosaic_gpu_blocks(2**20, states)
        assert blocks.chunk % blocks.step == 0
        assert blocks.step * states <= 256
        assert blocks.chunk // blocks.step * 64 * states * 4 <= 64 * 2**10
    assert mosaic_gpu_blocks(5, 8).chunk == 8


def test_softplus_is_exact_where_it_is_small_too():
    x = np.linspace(-80.0, 80.0, 10001, dtype=np.float32)
    exact = np.logaddexp(x.astype(np.float64), 0.0)
    np.testing.assert_allclose(softplus(x), exact, rtol=4e-7)
