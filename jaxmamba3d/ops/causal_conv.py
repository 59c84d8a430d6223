"""The depthwise causal convolution of Mamba, along time in either direction."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.ops.dtypes import at_least_float32, check_floating
from jaxmamba3d.ops.varying import varying_together


def causal_conv(x: jax.Array, weight: jax.Array, bias: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Convolves each channel with the tokens before it: y[t] = bias + sum_k weight[k] x[t - (W - 1) + k].

    Written as a sum of W shifted products, which every backend fuses into one pass over x. With `reverse`
    a token sees those after it: the result of flip, convolve, flip, without a flip.

    Args:
        x: [B, L, D], floating.
        weight: [W, D], floating, the last row acting on the token itself.
        bias: [D], floating.

    Returns:
        [B, L, D] in x's dtype.

    Raises:
        ValueError: a shape or dtype does not fit.

    Numerics: products and sums are float32 at least.

    Derivatives: in reverse mode alone.

    Source:
        `causal_conv1d` of mamba-ssm, whose weight is [D, 1, W].
    """
    check_that(x.ndim == 3, "x", "[B, L, D]", f"shape {list(x.shape)}")
    channels = x.shape[-1]
    check_shape("weight", weight, "[W, D]", (None, channels))
    check_that(len(weight) >= 1, "weight", "of at least one row", f"shape {list(weight.shape)}")
    check_shape("bias", bias, "[D]", (channels,))
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        check_floating(name, array)
    return _conv(reverse, *varying_together(_laid_out(x, weight, bias)))


def _laid_out(x: jax.Array, weight: jax.Array, bias: jax.Array):
    """Arrays over explicit mesh axes, split as x is along the batch and the channels alone."""
    where = jax.typeof(x).sharding
    if not where.mesh.explicit_axes:
        return x, weight, bias
    batch, _, channels = where.spec
    splits = (batch, None, channels), (None, channels), (channels,)
    return tuple(
        jax.sharding.reshard(array, where.update(spec=PartitionSpec(*split)))
        for array, split in zip((x, weight, bias), splits, strict=True)
    )


def _shifted(x: jax.Array, width: int, reverse: bool) -> list[jax.Array]:
    """For each row of the weight, what it multiplies: x, moved in time, zero beyond its ends."""
    length = x.shape[1]
    past = (0, width - 1) if reverse else (width - 1, 0)
    padded = jnp.pad(x, ((0, 0), past, (0, 0)))
    starts = range(width - 1, -1, -1) if reverse else range(width)
    return [padded[:, start : start + length] for start in starts]


def _weighted(x: jax.Array, weight: jax.Array, reverse: bool):
    wide = at_least_float32(x.dtype)
    shifted = _shifted(x, weight.shape[0], reverse)
    rows = weight.astype(wide)[:, None, None]
    return sum(row * y.astype(wide) for row, y in zip(rows, shifted, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(reverse, x, weight, bias):
    weighted = _weighted(x, weight, reverse)
    return (weighted + lax.broadcast_to_rank(bias.astype(weighted.dtype), 3)).astype(x.dtype)


def _forward(reverse, x, weight, bias):
    return _conv(reverse, x, weight, bias), (x, weight, bias)


def _backward(reverse, saved, g):
    """By hand: on CPUs JAX's own form takes five times as long, nearly all of it for the weight."""
    x, weight, bias = saved
    wide = g.astype(at_least_float32(g.dtype))
    g_weight = jnp.stack(
        [jnp.sum(wide * y.astype(wide.dtype), axis=(0, 1)) for y in _shifted(x, weight.shape[0], reverse)]
    )
    g_bias = jnp.sum(wide, axis=(0, 1)).astype(bias.dtype)
    return _weighted(g, weight, not reverse).astype(x.dtype), g_weight.astype(weight.dtype), g_bias


_conv.defvjp(_forward, _backward)
