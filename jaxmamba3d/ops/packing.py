"""Voxels side by side in the channels of a volume, so that few channels fill the lanes of a TPU.

A TPU works on 128 channels at once and pads fewer to as many, in memory, too. So neighbours along Y may share
them: a volume [B, X, Y, Z, C] is packed as [B, X, Y / voxels, Z, voxels C]. A convolution of packed volumes
is one with a larger kernel, many of whose numbers are 0: still fewer products than with empty lanes. Y,
because in nnU-Net's plans X is the axis with the fewest voxels, and along Z tokens follow one another.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.ops.backend import LANES, target_backend


class Packing(NamedTuple):
    """Voxels that lie side by side in what a layer takes, and in what it gives."""

    before: int = 1
    after: int = 1


UNPACKED = Packing()


def side_by_side(channels: int, size: int) -> int:
    """How many voxels of volumes with so many channels, and voxels along Y, to pack: 1 but on TPUs."""
    if target_backend() != "tpu" or channels > LANES:
        return 1
    return math.gcd(size, 1 << ((LANES // channels).bit_length() - 1))


def pack(x: jax.Array, voxels: int) -> jax.Array:
    """[B, X, Y, Z, C] -> [B, X, Y / voxels, Z, voxels C]; `voxels` divides Y."""
    if voxels == 1:
        return x
    *outer, y, z, channels = x.shape
    rows = jnp.swapaxes(x.reshape(*outer, y // voxels, voxels, z, channels), 3, 4)
    return rows.reshape(*outer, y // voxels, z, voxels * channels)


def unpack(x: jax.Array, voxels: int) -> jax.Array:
    """[B, X, Y / voxels, Z, voxels C] -> [B, X, Y, Z, C]."""
    if voxels == 1:
        return x
    *outer, rows, z, channels = x.shape
    x = jnp.swapaxes(x.reshape(*outer, rows, z, voxels, channels // voxels), 3, 4)
    return x.reshape(*outer, rows * voxels, z, channels // voxels)


class PackedKernel(NamedTuple):
    """What convolves packed volumes: a kernel [KX, T, KZ, before C, after C_out], its stride along Y and the
    rows of zeros before the first."""

    kernel: jax.Array
    stride: int
    padding: int


def packed_kernel(
    kernel: jax.Array, stride: int, padding: int, packing: Packing, parts: int = 1
) -> PackedKernel:
    """The kernel of a convolution for packed volumes.

    Args:
        kernel: [KX, KY, KZ, parts C, C_out].
        stride: voxels along Y.
        padding: zeros before the first voxel along Y.
        packing: of the volumes; `before` divides `stride after`.
        parts: volumes of C channels, packed each by itself, that are joined to the one convolved.

    Raises:
        ValueError: `before` does not divide `stride after`.
    """
    before, after = packing
    fits = stride * after % before == 0
    check_that(fits, "packing.before", f"a divisor of {stride * after}, stride times packing.after", before)
    if packing == UNPACKED:
        return PackedKernel(kernel, stride, padding)
    kx, ky, kz, channels, channels_out = kernel.shape
    # Voxel o of a row that comes out sees, through plane k of the kernel, one voxel of a row that goes in.
    o, k = np.indices((after, ky))
    row, inner = np.divmod(stride * o + k - padding, before)
    first = int(row.min())
    sees = np.zeros((ky, row.max() - first + 1, before, after), bool)
    sees[k, row - first, inner, o] = True
    planes = kernel.reshape(kx, ky, 1, kz, parts, 1, channels // parts, 1, channels_out)
    packed = sum(
        jnp.where(sees[k][:, None, None, :, None, :, None], planes[:, k], 0) for k in range(ky)
    )  # [KX, T, KZ, parts, before, C, after, C_out]
    shape = kx, sees.shape[1], kz, before * channels, after * channels_out
    return PackedKernel(packed.reshape(shape), stride * after // before, -first)


def packed_upsampling_kernel(kernel: jax.Array, voxels: int) -> jax.Array:
    """The kernel of a transposed convolution whose stride is its size, for packed volumes.

    Args:
        kernel: [KX, KY, KZ, C, C_out].
        voxels: side by side in what goes in; KY times as many are in what comes out.

    Returns:
        [KX, 1, KZ, voxels C, voxels KY C_out].
    """
    kx, ky, kz, channels, channels_out = kernel.shape
    own = np.eye(voxels, dtype=bool)[:, None, :, None, None]
    blocks = jnp.where(own, jnp.moveaxis(kernel, 1, 3)[:, :, None, :, None], 0)
    return blocks.reshape(kx, 1, kz, voxels * channels, voxels * ky * channels_out)
