"""What is timed beside our scans computes the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmamba3d.bench import peers
from jaxmamba3d.bench.shapes import ScanShape
from jaxmamba3d.ops.selective_scan import selective_scan

torch = pytest.importorskip("torch", reason="torch is not installed, which the peers of the scan bench need")


@pytest.mark.parametrize("reverse", [False, True])
def test_the_loop_of_torch_is_the_same_scan(monkeypatch, reverse):
    scans = []
    monkeypatch.setattr(peers, "_measure", lambda scan, *_: scans.append(scan))
    peers._measure_loop(ScanShape(2, 9, 4, 3, ""), "float32", reverse, False, 1)
    rng = np.random.default_rng(0)
    u, delta, z = (rng.standard_normal((2, 4, 9)).astype(np.float32) for _ in range(3))
    B, C = (rng.standard_normal((2, 3, 9)).astype(np.float32) for _ in range(2))
    A = -np.exp(rng.standard_normal((4, 3))).astype(np.float32)
    D, bias = (rng.standard_normal(4).astype(np.float32) for _ in range(2))
    found = scans[0](*map(torch.from_numpy, (u, delta, A, B, C, D, z, bias)))
    tokens = (np.moveaxis(x, 1, 2) for x in (u, delta, B, C, z))
    u, delta, B, C, z = tokens
    options = {"z": z, "delta_bias": bias, "delta_softplus": True, "reverse": reverse}
    expected = selective_scan(u, delta, A, B, C, D, **options)
    np.testing.assert_allclose(np.moveaxis(found.numpy(), 1, 2), jnp.asarray(expected), rtol=1e-4, atol=1e-5)
