"""Weight initialisations of PyTorch and Mamba that JAX lacks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

LEAKY_SLOPE = 0.01


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's default for weights and biases."""
    return uniform(fan_in**-0.5)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return _initializer(lambda key, shape: _draw(jax.random.uniform, key, shape, -bound, bound))


def he_normal() -> Initializer:
    """Normal with variance 2 / (1 + slope²) / fan_in, slope 0.01: nnU-Net's for kernels [..., C, C_out]."""
    return _he_normal(lambda shape: math.prod(shape[:-1]))


def he_normal_transposed() -> Initializer:
    """The same for transposed convolutions, where PyTorch counts the OUTPUT channels as fan in."""
    return _he_normal(lambda shape: math.prod(shape[:-2]) * shape[-1])


def inverse_softplus_of_steps(shortest: float = 1e-3, longest: float = 1e-1) -> Initializer:
    """The bias whose softplus is log-uniform between two step sizes (at least 1e-4): Mamba's for delta."""

    def init(key, shape):
        logarithm = _draw(jax.random.uniform, key, shape, math.log(shortest), math.log(longest))
        step = jnp.maximum(jnp.exp(logarithm), 1e-4)
        return step + jnp.log(-jnp.expm1(-step))

    return _initializer(init)


def _he_normal(fan_in: Callable[[tuple[int, ...]], int]) -> Initializer:
    def init(key, shape):
        deviation = math.sqrt(2 / (1 + LEAKY_SLOPE**2) / fan_in(shape))
        return deviation * _draw(jax.random.normal, key, shape)

    return _initializer(init)


def _initializer(init: Callable) -> Initializer:
    """Drawn in float32, then cast."""
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: init(key, shape).astype(dtype)


def _draw(sample, key, shape, *bounds):
    """Flat, then shaped: XLA takes seconds on a CPU to compile JAX's generator for an array of many axes."""
    return sample(key, (math.prod(shape),), jnp.float32, *bounds).reshape(shape)
