"""Layers of packed volumes against themselves on volumes that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close, rounding

from jaxmamba3d.nn import InstanceNorm
from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.ops.conv3d import average_pool3d, conv3d, upsample3d
from jaxmamba3d.ops.packing import UNPACKED, Packing, pack, side_by_side, unpack

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def assert_packed_equals_unpacked(function, packing, volumes, *others):
    """function(volumes, *others, packing) with its gradients, packed and not."""

    def value_and_gradients(packing, volumes, *others):
        def run(volumes, *others):
            joined = jnp.concatenate([pack(x, packing.before) for x in volumes], axis=-1)
            return unpack(function(joined, *others, packing), packing.after)

        y, vjp = jax.vjp(run, volumes, *others)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    both = jax.jit(lambda *arguments: [value_and_gradients(p, *arguments) for p in (packing, UNPACKED)])
    found, expected = map(jax.tree.leaves, both(volumes, *others))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rounding("float32", 1000))


@pytest.mark.parametrize(("channels", "size", "expected"), [(32, 256, 4), (64, 112, 2), (128, 64, 1)])
def test_as_many_voxels_lie_side_by_side_as_fill_the_lanes(channels, size, expected):
    with compile_for("tpu"):
        assert side_by_side(channels, size) == expected
    assert side_by_side(channels, size) == 1


@pytest.mark.parametrize(
    ("channels", "size", "expected"),
    [(30, 64, 4), (48, 64, 2), (1, 64, 64), (32, 6, 2), (32, 7, 1), (320, 8, 1)],
)
def test_voxels_side_by_side_divide_those_along_y(channels, size, expected):
    with compile_for("tpu"):
        assert side_by_side(channels, size) == expected


def test_neighbours_along_y_lie_side_by_side():
    x = normal(2, 3, 8, 5, 2)
    packed = pack(x, 4)
    assert packed.shape == (2, 3, 2, 5, 8)
    np.testing.assert_array_equal(packed[1, 2, 1, 4], x[1, 2, 4:8, 4].reshape(-1))
    np.testing.assert_array_equal(unpack(packed, 4), x)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("stride", "packing"), [(1, (4, 4)), (1, (2, 4)), (2, (4, 2)), (2, (1, 2)), (3, (6, 2)), (4, (2, 1))]
)
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 5, 1), (1, 1, 1)])
def test_convolution(kernel_size, stride, packing, parts):
    def convolve(x, kernel, packing):
        return conv3d(x, kernel, (1, stride, 2), packing, parts)

    volumes = [normal(1, 3, 12 * stride, 4, 2) for _ in range(parts)]
    assert_packed_equals_unpacked(convolve, Packing(*packing), volumes, normal(*kernel_size, 2 * parts, 3))


@pytest.mark.parametrize(
    ("width", "packing"), [(2, (4, 2)), (2, (2, 1)), (4, (2, 1)), (3, (3, 1)), (1, (2, 2)), (2, (1, 1))]
)
@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_pooling(width, packing, backend):
    def pool(x, packing):
        with compile_for("cpu" if packing is UNPACKED else backend):
            return average_pool3d(x, (2, width, 1), packing)

    assert_packed_equals_unpacked(pool, Packing(*packing), [normal(2, 4, 4 * width, 3, 2)])


@pytest.mark.parametrize(("size", "packing"), [((2, 2, 2), (1, 2)), ((1, 2, 2), (2, 4)), ((2, 1, 1), (2, 2))])
def test_upsampling(size, packing):
    kernel = normal(*size, 3, 2)
    assert_packed_equals_unpacked(upsample3d, Packing(*packing), [normal(2, 2, 4, 3, 3)], kernel)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((3, 2, 1), "X must be divisible by 3, got 4"),
        ((2, 4, 1), "Y must be .* 4, got 6"),
        ((2, 2, 2), "Z must"),
    ],
)
def test_pooling_checks_voxels(window, message):
    with pytest.raises(ValueError, match=f"size of x along {message}"):
        average_pool3d(jnp.zeros((1, 4, 3, 5, 2)), window, Packing(2, 1))


def test_instance_norm():
    norm = InstanceNorm(3)
    norm.scale[...], norm.bias[...] = normal(3), normal(3)

    def normalise(x, packing):
        return norm(x, packing.after)

    assert_packed_equals_unpacked(normalise, Packing(4, 4), [normal(2, 2, 8, 3, 3)])


def test_a_packing_that_the_stride_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"packing\.before must be a divisor of 2, stride times .*, got 4"):
        conv3d(jnp.zeros((1, 4, 2, 4, 8)), jnp.zeros((3, 3, 3, 2, 2)), (2, 2, 2), Packing(4, 1))


def test_a_packing_that_would_drop_voxels_is_refused():
    with pytest.raises(
        ValueError, match=r"packing\.after must be a divisor of 6, the result's voxels .*, got 4"
    ):
        conv3d(jnp.zeros((1, 1, 3, 1, 2)), jnp.zeros((1, 3, 1, 1, 1)), (1, 1, 1), Packing(2, 4))


def test_an_upsampling_that_would_be_packed_otherwise_is_refused():
    with pytest.raises(ValueError, match=r"packing\.after must be 4, KY times before, got 3"):
        upsample3d(jnp.zeros((1, 2, 2, 2, 6)), jnp.zeros((2, 2, 2, 3, 2)), Packing(2, 3))
