"""Convolution layers of the U-Net, channels last, and its residual block."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Dtype
from jax import lax

from jaxmamba3d.checks import check_count, check_shape, check_sizes, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.nn.initializers import LEAKY_SLOPE, he_normal, he_normal_transposed
from jaxmamba3d.nn.norm import InstanceNorm
from jaxmamba3d.ops.conv3d import average_pool3d, conv3d, upsample3d
from jaxmamba3d.ops.packing import UNPACKED, Packing, pack, side_by_side, unpack


class Conv3D(nnx.Module):
    """3D convolution with (k - 1) // 2 zeros around each axis, He-normal kernel and zero bias.

    [B, X, Y, Z, in_features] -> [B, X / stride, Y / stride, Z / stride, out_features], rounded up.
    With voxels side by side, and of several parts: see `conv3d`.

    Args:
        in_features, out_features: channels.
        kernel_size: voxels, odd.
        strides: voxels.
        use_bias: whether there is a bias.
        dtype: of computation and result; None: the wider one of input and parameters.
        param_dtype: of the parameters.
        rngs: random streams; `params` is used.

    Raises:
        ValueError: a size is no whole number above 0, or that of a kernel even; or an input is of another
            shape.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Triple = (1, 1, 1),
        strides: Triple = (1, 1, 1),
        *,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_sizes(in_features, out_features, kernel_size=kernel_size, strides=strides)
        odd = all(size % 2 for size in kernel_size)
        check_that(odd, "kernel_size", "of odd sizes", kernel_size)
        self.strides, self.dtype = tuple(strides), dtype
        shape = (*kernel_size, in_features, out_features)
        self.kernel = nnx.Param(he_normal()(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if use_bias else None

    def __call__(self, x: jax.Array, packing: Packing = UNPACKED, parts: int = 1) -> jax.Array:
        _check_input(x, self.kernel, packing)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        return _add(conv3d(x, kernel, self.strides, packing, parts), bias, packing)


class Upsample3D(nnx.Module):
    """Transposed convolution with stride = kernel size, He-normal kernel and zero bias.

    [B, X, Y, Z, in_features] -> [B, X size, Y size, Z size, out_features].

    Args:
        in_features, out_features: channels.
        size: voxels.
        dtype, param_dtype, rngs: as for `Conv3D`.

    Raises:
        ValueError: a size is no whole number above 0, or an input is of another shape.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: Triple,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_sizes(in_features, out_features, size=size)
        self.dtype = dtype
        shape = (*size, in_features, out_features)
        self.kernel = nnx.Param(he_normal_transposed()(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        _check_input(x, self.kernel, UNPACKED)
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        packing = self._packing(x)
        y = upsample3d(pack(x, packing.before), kernel, packing)
        return unpack(_add(y, bias, packing), packing.after)

    def _packing(self, x: jax.Array) -> Packing:
        size, features = self.kernel.shape[1], self.kernel.shape[-1]
        after = side_by_side(features, x.shape[2] * size)
        return UNPACKED if after % size else Packing(after // size, after)


def _check_sizes(in_features: int, out_features: int, **triples: Triple) -> None:
    check_count("in_features", in_features)
    check_count("out_features", out_features)
    for name, sizes in triples.items():
        check_sizes(name, sizes)


def _check_input(x: jax.Array, kernel: nnx.Param, packing: Packing) -> None:
    channels = packing.before * kernel.shape[-2]
    check_shape("x", x, "[B, X, Y, Z, in_features]", (None, None, None, None, channels))


def _add(y: jax.Array, bias: jax.Array | None, packing: Packing) -> jax.Array:
    return y if bias is None else y + lax.broadcast_to_rank(jnp.tile(bias, packing.after), y.ndim)


class ConvNorm(nnx.Module):
    """Convolution and instance norm; shapes and arguments as for `Conv3D` and `InstanceNorm`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Triple = (1, 1, 1),
        strides: Triple = (1, 1, 1),
        *,
        use_bias: bool = True,
        zero_init: bool = False,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv3D(
            in_features, out_features, kernel_size, strides, use_bias=use_bias, dtype=dtype, rngs=rngs
        )
        self.norm = InstanceNorm(out_features, zero_init=zero_init)

    def __call__(self, x: jax.Array, packing: Packing = UNPACKED, parts: int = 1) -> jax.Array:
        return self.norm(self.conv(x, packing, parts), packing.after)


def activation(x: jax.Array) -> jax.Array:
    """LeakyReLU with slope 0.01."""
    return jax.nn.leaky_relu(x, LEAKY_SLOPE)


class ResidualBlock(nnx.Module):
    """nnU-Net's residual block: activation(norm(conv(activation(norm(conv(x))))) + shortcut(x)).

    The shortcut averages blocks of voxels where the block has a stride, then projects where the channels
    change. The second norm starts at zero, so that a fresh block passes its shortcut on.

    [B, X, Y, Z, in_features] -> [B, X / stride, Y / stride, Z / stride, out_features].

    Args:
        in_features, out_features, kernel_size, dtype, rngs: as for `Conv3D`.
        strides: voxels; they divide the sizes of an input.

    Raises:
        ValueError: as for `Conv3D`, or an input does not divide by the strides.

    Source: `BasicBlockD` of dynamic-network-architectures.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Triple,
        strides: Triple = (1, 1, 1),
        *,
        dtype: Dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.strides, self.out_features, self.dtype = tuple(strides), out_features, dtype
        self.conv1 = ConvNorm(in_features, out_features, kernel_size, strides, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(out_features, out_features, kernel_size, zero_init=True, dtype=dtype, rngs=rngs)
        project = in_features != out_features
        self.shortcut = (
            ConvNorm(in_features, out_features, use_bias=False, dtype=dtype, rngs=rngs) if project else None
        )

    def __call__(self, x: jax.Array, *others: jax.Array) -> jax.Array:
        """Of one volume, or of several with as many channels each, which are joined."""
        parts = x, *others
        in_features, count = self.conv1.conv.kernel.shape[-2], len(parts)
        joins = in_features % count == 0
        check_that(joins, "the number of volumes", f"a divisor of {in_features}, in_features", count)
        for part in parts:
            legend = "[B, X, Y, Z, in_features]" if count == 1 else f"[B, X, Y, Z, in_features / {count}]"
            check_shape("x", part, legend, (*[None] * 4, in_features // count))
            check_that(part.shape == x.shape, "each volume", f"of shape {list(x.shape)}", list(part.shape))
        parts = promote_dtype(parts, dtype=self.dtype)
        packing = self._packing(x)
        inside = Packing(packing.after, packing.after)
        x = jnp.concatenate([pack(part, packing.before) for part in parts], axis=-1)
        y = self.conv2(activation(self.conv1(x, packing, count)), inside)
        if self.strides != (1, 1, 1):
            x, packing = average_pool3d(x, self.strides, packing), inside
        if self.shortcut is not None:
            x = self.shortcut(x, packing, count)
        return unpack(activation(y + x), inside.after)

    def _packing(self, part: jax.Array) -> Packing:
        size, channels = part.shape[2], part.shape[-1]
        stride = self.strides[1]
        after = side_by_side(self.out_features, -(-size // stride))
        return Packing(math.gcd(side_by_side(channels, size), stride * after), after)
