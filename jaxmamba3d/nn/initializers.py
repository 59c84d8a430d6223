"""Weight initialisations of PyTorch and Mamba that JAX lacks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

LEAKY_SLOPE = 0.01
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's default for weights and biases."""
    return uniform(fan_in**-0.5)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return _initializer(lambda key, length, _: _uniform(key, length, -bound, bound))


def he_normal() -> Initializer:
    """Normal with variance 2 / (1 + slope²) / fan_in, slope 0.01: nnU-Net's for kernels [..., C, C_out]."""
    return _he_normal(lambda shape: math.prod(shape[:-1]))


def he_normal_transposed() -> Initializer:
    """The same for transposed convolutions, where PyTorch counts the OUTPUT channels as fan in."""
    return _he_normal(lambda shape: math.prod(shape[:-2]) * shape[-1])


def inverse_softplus_of_steps() -> Initializer:
    """The bias whose softplus is log-uniform from 0.001 to 0.1: Mamba's for delta."""

    def draw(key, length, _):
        step = jnp.exp(_uniform(key, length, math.log(SHORTEST_STEP), math.log(LONGEST_STEP)))
        return step + jnp.log(-jnp.expm1(-step))

    return _initializer(draw)


def _he_normal(fan_in: Callable[[tuple[int, ...]], int]) -> Initializer:
    def draw(key, length, shape):
        deviation = math.sqrt(2 / (1 + LEAKY_SLOPE**2) / fan_in(shape))
        return deviation * jax.random.normal(key, (length,), jnp.float32)

    return _initializer(draw)


def _uniform(key, length, low, high):
    return jax.random.uniform(key, (length,), jnp.float32, low, high)


def _initializer(draw: Callable[[jax.Array, int, tuple[int, ...]], jax.Array]) -> Initializer:
    """Takes the first of the float32 numbers draw(key, length, shape).

    They are flat and have one of few lengths, for XLA compiles JAX's generator again for each shape: a
    fraction of a second for a flat one, seconds on a CPU for one of many axes. With JAX's default,
    `jax_threefry_partitionable`, a number depends on its place alone, so those left over change nothing.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        size = int(math.prod(shape))  # of NumPy's integers it is one of them
        array = draw(key, _length_to_draw(size), shape)[:size].reshape(shape).astype(dtype)
        return array if out_sharding is None else jax.sharding.reshard(array, out_sharding)

    return init


def _length_to_draw(size: int) -> int:
    """The next of 2^12, 2^14, .. 2^20, where drawing too much costs nothing, and 2^21, 2^22, .. beyond."""
    power = max((size - 1).bit_length(), 12)
    return 2 ** (power if power > 20 else power + power % 2)
