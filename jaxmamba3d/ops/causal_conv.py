"""The depthwise causal convolution of Mamba, along time in either direction."""

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_shape


def causal_conv(x: jax.Array, weight: jax.Array, bias: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Convolves each channel with the tokens before it: y[t] = bias + sum_k weight[k] x[t - (W - 1) + k].

    Written as a sum of W shifted products, which every backend fuses into one pass over x. With `reverse`
    a token sees those after it: the result of flip, convolve, flip, without a flip.

    Args:
        x: [B, L, D].
        weight: [W, D], the last row acting on the token itself.
        bias: [D].

    Returns:
        [B, L, D] in x's dtype.

    Raises:
        ValueError: a shape does not fit.

    Source:
        `causal_conv1d` of mamba-ssm, whose weight is [D, 1, W].
    """
    length, channels = x.shape[1:]
    width = weight.shape[0]
    check_shape("weight", weight, "[W, D]", (width, channels))
    check_shape("bias", bias, "[D]", (channels,))
    past = ((0, 0), (0, width - 1), (0, 0)) if reverse else ((0, 0), (width - 1, 0), (0, 0))
    padded = jnp.pad(x, past)
    y = bias.astype(x.dtype)
    for k in range(width):
        start = width - 1 - k if reverse else k
        y = y + weight[k].astype(x.dtype) * padded[:, start : start + length]
    return y
