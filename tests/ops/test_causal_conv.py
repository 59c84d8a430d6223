"""The causal convolution against a loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from over_devices import needs_two_devices
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


def test_bfloat16_is_rounded_once():
    rng = np.random.default_rng(0)
    draws = (rng.standard_normal(shape) for shape in ((2, 50, 8), (4, 8), (8,)))
    x, weight, bias = (jnp.asarray(a, jnp.bfloat16) for a in draws)
    found = causal_conv(x, weight, bias)
    assert found.dtype == jnp.bfloat16
    expected = loop(*(np.asarray(a, np.float64) for a in (x, weight, bias)))
    error = np.abs(np.asarray(found, np.float64) - expected) / np.abs(expected)
    assert error.max() < 2**-8 * 1.01


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_the_loop(reverse, dtype):
    rng = np.random.default_rng(0)
    draws = (rng.standard_normal(shape) for shape in ((2, 9, 3), (4, 3), (3,), (2, 9, 3)))
    with jax.enable_x64(dtype == "float64"):
        x, weight, bias, g = (jnp.asarray(a, dtype) for a in draws)
        _, vjp = jax.vjp(functools.partial(causal_conv, reverse=reverse), x, weight, bias)
        gradients = vjp(g)
    x, weight, bias, g = (np.asarray(a, np.float64) for a in (x, weight, bias, g))

    def output(x, weight, bias):
        return loop(x[:, ::-1], weight, bias)[:, ::-1] if reverse else loop(x, weight, bias)

    def gradient(n):
        """The output is linear in each argument: its value for unit vectors, minus that for zero."""
        arguments = [x, weight, bias]
        zero = np.zeros_like(arguments[n])
        parts = []
        for unit in np.eye(zero.size).reshape(-1, *zero.shape):
            one, none = ([*arguments[:n], value, *arguments[n + 1 :]] for value in (unit, zero))
            parts.append(np.sum(g * (output(*one) - output(*none))))
        return np.reshape(parts, zero.shape)

    for n, found in enumerate(gradients):
        assert_close(found, gradient(n), rounding(dtype, 2 if dtype == "bfloat16" else 18))


def test_gradients_are_of_the_dtypes_of_their_arguments():
    arguments = jnp.ones((1, 5, 3), jnp.bfloat16), jnp.ones((4, 3)), jnp.ones(3, jnp.float16)
    y, vjp = jax.vjp(causal_conv, *arguments)
    assert y.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in vjp(y)] == [argument.dtype for argument in arguments]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": jnp.zeros((1, 5, 3), int)}, "x must be floating, got int32"),
        ({"weight": jnp.zeros((4, 3), complex)}, "weight must be floating, got complex64"),
        ({"bias": jnp.zeros(3, int)}, "bias must be floating, got int32"),
        ({"x": jnp.zeros((5, 3))}, r"x must be \[B, L, D\], got shape \[5, 3\]"),
        ({"weight": jnp.zeros(())}, r"weight must have shape \[W, D\] = \[any, 3\], got \[\]"),
        ({"weight": jnp.zeros((4, 2))}, r"weight must have shape \[W, D\] = \[any, 3\], got \[4, 2\]"),
        ({"weight": jnp.zeros((0, 3))}, r"weight must be of at least one row, got shape \[0, 3\]"),
        ({"bias": jnp.zeros(1)}, r"bias must have shape \[D\] = \[3\], got \[1\]"),
    ],
)
def test_arguments_are_checked(changed, message):
    arguments = {"x": jnp.zeros((1, 5, 3)), "weight": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    with pytest.raises(ValueError, match=message):
        causal_conv(**arguments | changed)


@needs_two_devices
@pytest.mark.parametrize("split", [("data",), (None, "data"), (None, None, "data")])
def test_gradients_over_an_explicit_axis(split):
    rng = np.random.default_rng(0)
    x, weight, bias = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 8, 4), (3, 4), (4,)))

    def loss(x, weight, bias):
        return jnp.sum(causal_conv(x, weight, bias) ** 2)

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*split)))
        found = jax.jit(jax.grad(loss, (0, 1, 2)))(placed, weight, bias)
    for a, b in zip(found, jax.grad(loss, (0, 1, 2))(x, weight, bias), strict=True):
        assert_close(a, b, rounding("float32", 50))
