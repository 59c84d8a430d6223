"""Normalisation layers; statistics are float32 whatever the input is."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxmamba3d.checks import check_count, check_shape, check_that
from jaxmamba3d.ops.dtypes import check_floating


class InstanceNorm(nnx.Module):
    """(x - mean) / sqrt(variance + 1e-5) scale + bias, over the voxels of each sample and channel.

    [B, X, Y, Z, features] -> the same, in x's dtype.

    Args:
        features: channels.
        zero_init: start from a scale of 0, which passes nothing on.

    Source: `torch.nn.InstanceNorm3d` with affine=True.
    """

    def __init__(self, features: int, *, zero_init: bool = False):
        check_count("features", features)
        self.features = features
        self.scale = nnx.Param(jnp.full((features,), 0 if zero_init else 1, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array, voxels: int = 1) -> jax.Array:
        """As above, of volumes of which so many voxels lie side by side; see `packing`."""
        check_shape("x", x, "[B, X, Y, Z, features]", (None, None, None, None, voxels * self.features))
        check_floating("x", x)
        scale, bias = (jnp.tile(param[...], voxels) for param in (self.scale, self.bias))
        return _normalized(voxels, x, scale, bias)


@functools.partial(jax.checkpoint, static_argnums=0)
def _normalized(voxels, x, scale, bias):
    """Keeps x for the backward pass, in its own dtype, and not the float32 values in between."""
    wide = x.astype(jnp.float32)
    mean = _channel_means(wide, voxels)
    variance = _channel_means(jnp.square(wide - mean), voxels)
    scale, bias = (lax.broadcast_to_rank(param, x.ndim) for param in (scale, bias))
    factor = lax.rsqrt(variance + 1e-5) * scale
    return ((wide - mean) * factor + bias).astype(x.dtype)


def _channel_means(x, voxels):
    """Over all voxels, for each of those that lie side by side: [B, 1, 1, 1, voxels features]."""
    means = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    if voxels == 1:
        return means
    parts = means.reshape(*means.shape[:-1], voxels, -1)
    return jnp.tile(jnp.mean(parts, axis=-2), voxels)


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` with PyTorch's epsilon 1e-5, computed in float32, returned in x's dtype."""

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        check_floating("x", x)
        fits = x.shape[-1:] == (self.num_features,)
        check_that(fits, "x", f"[..., {self.num_features}]", f"shape {list(x.shape)}")
        return super().__call__(x).astype(x.dtype)
