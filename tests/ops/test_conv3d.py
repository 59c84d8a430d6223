"""Both forms of the convolution against each other and against loops; upsampling, pooling too."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from over_devices import FORMS, assert_the_gradient_of_one_device, needs_two_devices
from tolerances import assert_close, rounding

from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.ops.conv3d import average_pool3d, conv3d, upsample3d

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (5, 1, 3), (1, 1, 1)])
def test_planes_equal_the_3d_form_with_gradients(kernel_size, strides):
    x, kernel = normal(2, 6, 8, 4, 3), normal(*kernel_size, 3, 5)

    def value_and_gradients(backend):
        with compile_for(backend):
            y, vjp = jax.vjp(lambda x, kernel: conv3d(x, kernel, strides), x, kernel)
            return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    assert value_and_gradients("cpu")[0].shape == (
        2,
        *(-(-n // s) for n, s in zip((6, 8, 4), strides, strict=True)),
        5,
    )
    for planes, whole in zip(value_and_gradients("cpu"), value_and_gradients("gpu"), strict=True):
        assert_close(planes, whole, rounding("float32", 100))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_convolution_is_what_loops_say(dtype):
    x, kernel = RNG.standard_normal((1, 3, 4, 3, 2)), RNG.standard_normal((3, 3, 3, 2, 2))
    with jax.enable_x64(dtype == "float64"):
        found = conv3d(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((1, 3, 4, 3, 2))
    for i, j, k in itertools.product(range(3), range(4), range(3)):
        expected[0, i, j, k] = np.einsum("xyzi,xyzio->o", padded[0, i : i + 3, j : j + 3, k : k + 3], kernel)
    assert_close(found, expected, rounding(dtype, 54))


def test_planes_of_bfloat16_are_summed_in_float32():
    x, kernel = (jnp.abs(normal(*shape)).astype(jnp.bfloat16) for shape in ((1, 6, 4, 5, 2), (5, 3, 1, 2, 3)))
    found = np.asarray(conv3d(x, kernel), np.float32)
    expected = np.asarray(conv3d(x.astype(jnp.float32), kernel.astype(jnp.float32)))
    assert np.max(np.abs(found - expected) / expected) < 2**-8 * 1.01


@pytest.mark.parametrize("size", [(2, 3, 3), (3, 2, 3), (3, 3, 2)])
def test_kernels_of_even_sizes_are_refused(size):
    kernel = jnp.zeros((*size, 1, 1))
    with pytest.raises(ValueError, match="kernel must be of odd sizes along X, Y and Z, got shape"):
        conv3d(jnp.zeros((1, 4, 4, 4, 1)), kernel)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upsample3d(jnp.zeros((1, 2, 2, 2, 3)), jnp.zeros((2, 2, 2, 4, 2))), "x must have shape"),
        (
            lambda: upsample3d(jnp.zeros((1, 2, 2, 2, 3), int), jnp.zeros((2, 2, 2, 3, 2))),
            "x must be .*float",
        ),
        (lambda: average_pool3d(jnp.zeros((2, 2, 2, 3)), (2, 2, 2)), "x must have shape"),
        (lambda: average_pool3d(jnp.zeros((1, 2, 2, 2, 3), int), (2, 2, 2)), "floating"),
    ],
)
def test_volumes_of_another_form_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [1, 3])
def test_the_result_is_of_the_volumes_dtype(size):
    y = conv3d(jnp.zeros((1, 4, 4, 4, 1), jnp.bfloat16), jnp.zeros((size, size, size, 1, 2)))
    assert (y.dtype, y.shape) == (jnp.bfloat16, (1, 4, 4, 4, 2))


def test_upsampled_volumes_keep_their_dtype():
    y = upsample3d(jnp.zeros((1, 2, 2, 2, 3), jnp.bfloat16), jnp.zeros((2, 2, 2, 3, 4)))
    assert (y.dtype, y.shape) == (jnp.bfloat16, (1, 4, 4, 4, 4))


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_pooled_volumes_keep_their_dtype(backend):
    with compile_for(backend):
        y = average_pool3d(jnp.ones((1, 2, 4, 2, 3), jnp.bfloat16), (2, 2, 1))
    assert (y.dtype, y.shape) == (jnp.bfloat16, (1, 1, 2, 2, 3))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("function", [conv3d, upsample3d])
def test_whole_numbers_are_refused(function, size):
    """The kernel would be cut off to whole numbers."""
    with pytest.raises(ValueError, match="x must be floating, got int32"):
        function(jnp.ones((1, 4, 4, 4, 1), jnp.int32), jnp.ones((size, size, size, 1, 1)))


@pytest.mark.parametrize("shape", [(4, 4, 4, 1), (1, 4, 4, 4, 2)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match=r"x must have shape \[B, X, Y, Z, C\] = \[any, any, any, any, 1\]"):
        conv3d(jnp.ones(shape), jnp.ones((1, 1, 1, 1, 1)))


def test_upsampling_writes_one_block_a_voxel():
    x, kernel = normal(2, 2, 3, 2, 4), normal(1, 2, 3, 4, 5)
    y = np.asarray(upsample3d(x, kernel))
    assert y.shape == (2, 2, 6, 6, 5)
    for i, j, k in itertools.product(range(2), range(3), range(2)):
        block = np.einsum("bi,xyzio->bxyzo", x[:, i, j, k], kernel)
        assert_close(y[:, i : i + 1, 2 * j : 2 * j + 2, 3 * k : 3 * k + 3], block, rounding("float32", 4))


def test_pooling_is_the_mean_of_blocks():
    x = normal(1, 2, 4, 6, 3)
    y = np.asarray(average_pool3d(x, (1, 2, 3)))
    assert y.shape == (1, 2, 2, 2, 3)
    assert_close(y[0, 1, 0, 1], np.asarray(x)[0, 1, 0:2, 3:6].mean((0, 1)), rounding("float32", 6))


@needs_two_devices
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_gradients_over_devices(backend, form):
    kernels = {size: normal(*size, 2, 2) for size in [(3, 3, 3), (1, 1, 1), (2, 1, 2)]}

    def loss(kernels, x):
        y = conv3d(conv3d(x, kernels[3, 3, 3], (2, 2, 1)), kernels[1, 1, 1])
        return jnp.sum(average_pool3d(upsample3d(y, kernels[2, 1, 2]), (4, 2, 2)) ** 3)

    with compile_for(backend):
        assert_the_gradient_of_one_device(loss, kernels, normal(2, 4, 4, 4, 2), form, 1e-5)
