"""3D convolutions, channels last, each in the form that is fast on the backend at hand.

Each takes volumes of which several voxels lie side by side, too; see `packing`.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.ops.backend import target_backend
from jaxmamba3d.ops.dtypes import at_least_float32, check_floating
from jaxmamba3d.ops.packing import UNPACKED, Packing, packed_kernel, packed_upsampling_kernel


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Triple = (1, 1, 1),
    packing: Packing = UNPACKED,
    parts: int = 1,
) -> jax.Array:
    """Convolves volumes (cross-correlation), with (k - 1) // 2 zeros around each axis.

    On CPUs XLA's 3D convolution is 3 to 7 times slower than its 2D one, and on TPUs it leaves most of a
    register empty where a batch is small. So there the kernel's planes are convolved one by one in 2D, the
    volume's planes being the batch, and summed in float32.

    Args:
        x: [B, X, Y, Z, C], floating.
        kernel: [KX, KY, KZ, C, C_out], odd sizes.
        strides: voxels.
        packing: of x and of the result; `before` divides `strides[1] after`, and `after` the result's voxels.
        parts: see `packed_kernel`.

    Returns:
        [B, X / stride, Y / stride, Z / stride, C_out] in x's dtype, sizes rounded up.

    Raises:
        ValueError: x is of another shape or not floating, a size of the kernel is even, or the packing does
            not fit the stride or the size along Y.

    Over explicit mesh axes the batch alone may be split.

    Source: `torch.nn.Conv3d` with padding (k - 1) // 2.
    """
    channels = packing.before * kernel.shape[3]
    check_shape("x", x, "[B, X, Y, Z, C]", (None, None, None, None, channels))
    check_floating("x", x)
    odd = all(size % 2 for size in kernel.shape[:3])
    check_that(odd, "kernel", "of odd sizes along X, Y and Z", f"shape {list(kernel.shape)}")
    padding = [(size - 1) // 2 for size in kernel.shape[:3]]
    return _padded_conv3d(x, kernel.astype(x.dtype), strides, padding, packing, parts)


def _padded_conv3d(x, kernel, strides, padding, packing, parts=1):
    """With as many zeros on both sides of an axis, of voxels."""
    voxels = (x.shape[2] * packing.before + 2 * padding[1] - kernel.shape[1]) // strides[1] + 1
    whole = voxels % packing.after == 0
    check_that(whole, "packing.after", f"a divisor of {voxels}, the result's voxels along Y", packing.after)
    kernel, stride, first = packed_kernel(kernel, strides[1], padding[1], packing, parts)
    if kernel.shape[:3] == (1, 1, 1):
        return x[:, :: strides[0], ::stride, :: strides[2]] @ kernel[0, 0, 0]
    last = (voxels // packing.after - 1) * stride + kernel.shape[1] - x.shape[2] - first
    strides = strides[0], stride, strides[2]
    padding = (padding[0], padding[0]), (first, last), (padding[2], padding[2])
    if target_backend() == "gpu":
        return _convolve(x, kernel, strides, padding, ("NDHWC", "DHWIO", "NDHWC"))
    return _conv3d_by_planes(x, kernel, strides, padding)


def _conv3d_by_planes(x, kernel, strides, padding):
    dtype = x.dtype
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    planes = (x.shape[1] - kernel.shape[0]) // strides[0] + 1
    sum_dtype = None if len(kernel) == 1 else at_least_float32(dtype)
    total = 0.0
    for tap in range(kernel.shape[0]):
        seen = x[:, tap : tap + (planes - 1) * strides[0] + 1 : strides[0]]
        folded = seen.reshape(x.shape[0] * planes, *seen.shape[2:])
        layout = "NHWC", "HWIO", "NHWC"
        total += _convolve(folded, kernel[tap], strides[1:], padding[1:], layout, sum_dtype)
    return total.reshape(x.shape[0], planes, *total.shape[1:]).astype(dtype)


def _convolve(x, kernel, strides, padding, layout, dtype=None):
    where = jax.typeof(x).sharding
    if where.mesh.explicit_axes:  # JAX differentiates by a kernel only where that is whole and beside x
        kernel = jax.sharding.reshard(kernel, where.update(spec=PartitionSpec()))
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, preferred_element_type=dtype
    )


def upsample3d(x: jax.Array, kernel: jax.Array, packing: Packing = UNPACKED) -> jax.Array:
    """Transposed convolution whose stride is its kernel size: each voxel becomes one block of voxels.

    Args:
        x: [B, X, Y, Z, C], floating.
        kernel: [KX, KY, KZ, C, C_out].
        packing: of x and of the result; (1, 1) or (voxels, voxels KY).

    Returns:
        [B, X KX, Y KY, Z KZ, C_out] in x's dtype.

    Raises:
        ValueError: x is of another shape or not floating, or the packing is another.

    Source: `torch.nn.ConvTranspose3d` with stride = kernel size.
    """
    voxels = packing.before
    check_shape("x", x, "[B, X, Y, Z, C]", (None, None, None, None, voxels * kernel.shape[3]))
    check_floating("x", x)
    if packing != UNPACKED:
        after = voxels * kernel.shape[1]
        check_that(packing.after == after, "packing.after", f"{after}, KY times before", packing.after)
        kernel = packed_upsampling_kernel(kernel, voxels)
    blocks = jnp.einsum("bxyzi,uvwio->bxuyvzwo", x, kernel.astype(x.dtype))
    for axis in 1, 2, 3:  # one at a time: JAX reshapes arrays that lie over explicit mesh axes only so
        size = blocks.shape[axis] * blocks.shape[axis + 1]
        blocks = blocks.reshape(*blocks.shape[:axis], size, *blocks.shape[axis + 2 :])
    return blocks


def average_pool3d(x: jax.Array, window: Triple, packing: Packing = UNPACKED) -> jax.Array:
    """Means of blocks of voxels: [B, X, Y, Z, C] -> [B, X / window, Y / window, Z / window, C].

    By a convolution where volumes are packed, and on TPUs, whose matrix unit joins neighbours faster than any
    other.

    Args:
        x: volumes, floating.
        window: voxels.
        packing: as for `conv3d`.

    Returns:
        in x's dtype.

    Raises:
        ValueError: x is not of five axes or not floating, or a size does not divide by the window's.

    Numerics: as a convolution those of a matrix product.
    """
    check_shape("x", x, "[B, X, Y, Z, C]", (None,) * 5)
    check_floating("x", x)
    sizes = x.shape[1], x.shape[2] * packing.before, x.shape[3]
    for name, size, width in zip("XYZ", sizes, window, strict=True):
        check_that(size % width == 0, f"size of x along {name}", f"divisible by {width}", size)
    if target_backend() == "tpu" or packing != UNPACKED:
        channels = x.shape[-1] // packing.before
        mean = jnp.eye(channels, dtype=x.dtype) / math.prod(window)
        kernel = jnp.broadcast_to(mean, (*window, channels, channels))
        return _padded_conv3d(x, kernel, window, (0, 0, 0), packing)
    blocks = x
    for axis in 3, 2, 1:
        width = window[axis - 1]
        shape = blocks.shape
        blocks = blocks.reshape(*shape[:axis], shape[axis] // width, width, *shape[axis + 1 :])
    return jnp.mean(blocks, axis=(2, 4, 6))
