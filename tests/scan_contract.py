"""Calls of the selective scan, and how far they may be from the reference."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerances import assert_close

from jaxmamba3d.ops.selective_scan import IMPLEMENTATIONS, selective_scan, unsupported_reason

OPTIONAL = ("D", "z", "delta_bias", "h0")


def random_arguments(batch, length, channels, state, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    return {
        "u": normal(batch, length, channels),
        "delta": jnp.abs(normal(batch, length, channels)) / 4,  # positive: stable without softplus too
        "A": -jnp.exp(jnp.asarray(rng.standard_normal((channels, state)), jnp.float32)),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": jnp.abs(normal(channels)) / 4,
        "h0": normal(batch, channels, state).astype(jnp.float32),
    }


TESTED = [
    name
    for name in sorted(set(IMPLEMENTATIONS) - {"reference", "pallas_mosaic_gpu"})
    if not unsupported_reason(name, **random_arguments(1, 2, 4, 3))
]
"""All that run here; pallas_mosaic_gpu supports other calls: test_pallas_mosaic_gpu.py has them."""


def value_and_gradients(arguments, implementation, **options):
    """y, last state and the gradient of every argument of a random scalar of both."""

    def loss(arguments):
        y, last = selective_scan(
            **arguments, return_last_state=True, implementation=implementation, **options
        )
        rng = np.random.default_rng(1)
        weights = [jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for x in (y, last)]
        return jnp.sum(y.astype(jnp.float32) * weights[0]) + jnp.sum(last * weights[1]), (y, last)

    (_, (y, last)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arguments)
    return {"y": y, "last_state": last} | {f"gradient of {k}": v for k, v in gradients.items()}


def assert_like_reference(arguments, implementation, tolerance, **options):
    actual = value_and_gradients(arguments, implementation, **options)
    assert_close_to_reference(
        actual, value_and_gradients(arguments, "reference", **options), implementation, tolerance
    )


def assert_close_to_reference(actual, expected, implementation, tolerance):
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert_close(actual[name], value, tolerance, f"{implementation} {name}")
