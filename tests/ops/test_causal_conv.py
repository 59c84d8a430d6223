"""The causal convolution against a loop over tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close, rounding

from jaxmamba3d.ops.causal_conv import causal_conv


def loop(x, weight, bias):
    width = len(weight)
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        for k in range(width):
            source = t - (width - 1) + k
            if source >= 0:
                y[:, t] += weight[k] * x[:, source]
    return y + bias


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_loop(length, reverse):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, length, 3), (4, 3), (3,)))
    expected = loop(x[:, ::-1], weight, bias)[:, ::-1] if reverse else loop(x, weight, bias)
    found = causal_conv(*(jnp.asarray(a, jnp.float32) for a in (x, weight, bias)), reverse=reverse)
    assert_close(found, expected, rounding("float32", 4))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"weight must have shape \[W, D\] = \[4, 3\], got \[4, 2\]"):
        causal_conv(jnp.zeros((1, 5, 3)), jnp.zeros((4, 2)), jnp.zeros(3))
