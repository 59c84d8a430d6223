"""3D convolutions, channels last, each in the form that is fast on the backend at hand."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.ops.backend import target_backend
from jaxmamba3d.ops.dtypes import check_floating


def conv3d(x: jax.Array, kernel: jax.Array, strides: Triple = (1, 1, 1)) -> jax.Array:
    """Convolves volumes (cross-correlation), with (k - 1) // 2 zeros around each axis.

    On CPUs XLA's 3D convolution is 3 to 7 times slower than its 2D one, so there the kernel's planes are
    convolved one by one in 2D and summed.

    Args:
        x: [B, X, Y, Z, C], floating.
        kernel: [KX, KY, KZ, C, C_out], odd sizes.
        strides: voxels.

    Returns:
        [B, X / stride, Y / stride, Z / stride, C_out] in x's dtype, sizes rounded up.

    Raises:
        ValueError: x is of another shape or not floating, or a size of the kernel is even.

    Source: `torch.nn.Conv3d` with padding (k - 1) // 2.
    """
    check_shape("x", x, "[B, X, Y, Z, C]", (None, None, None, None, kernel.shape[3]))
    check_floating("x", x)
    odd = all(size % 2 for size in kernel.shape[:3])
    check_that(odd, "kernel", "of odd sizes along X, Y and Z", f"shape {list(kernel.shape)}")
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:3] == (1, 1, 1):
        return x[:, :: strides[0], :: strides[1], :: strides[2]] @ kernel[0, 0, 0]
    padding = [((size - 1) // 2, (size - 1) // 2) for size in kernel.shape[:3]]
    if target_backend() == "cpu":
        return _conv3d_by_planes(x, kernel, strides, padding)
    return _convolve(x, kernel, strides, padding, ("NDHWC", "DHWIO", "NDHWC"))


def _conv3d_by_planes(x, kernel, strides, padding):
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    planes = (x.shape[1] - kernel.shape[0]) // strides[0] + 1
    total = 0.0
    for tap in range(kernel.shape[0]):
        plane = x[:, tap : tap + (planes - 1) * strides[0] + 1 : strides[0]]
        folded = plane.reshape(-1, *plane.shape[2:])
        total = total + _convolve(folded, kernel[tap], strides[1:], padding[1:], ("NHWC", "HWIO", "NHWC"))
    return total.reshape(x.shape[0], planes, *total.shape[1:])


def _convolve(x, kernel, strides, padding, layout):
    where = jax.typeof(x).sharding
    if where.mesh.explicit_axes:  # JAX differentiates by a kernel only where that is whole and beside x
        kernel = jax.sharding.reshard(kernel, where.update(spec=PartitionSpec()))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


def upsample3d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution whose stride is its kernel size: each voxel becomes one block of voxels.

    Args:
        x: [B, X, Y, Z, C], floating.
        kernel: [KX, KY, KZ, C, C_out].

    Returns:
        [B, X KX, Y KY, Z KZ, C_out] in x's dtype.

    Source: `torch.nn.ConvTranspose3d` with stride = kernel size.
    """
    check_floating("x", x)
    blocks = jnp.einsum("bxyzi,uvwio->bxuyvzwo", x, kernel.astype(x.dtype))
    for axis in 1, 2, 3:  # one at a time: JAX reshapes arrays that lie over explicit mesh axes only so
        blocks = blocks.reshape(*blocks.shape[:axis], -1, *blocks.shape[axis + 2 :])
    return blocks


def average_pool3d(x: jax.Array, window: Triple) -> jax.Array:
    """Means of blocks of voxels: [B, X, Y, Z, C] -> [B, X / window, Y / window, Z / window, C].

    Raises:
        ValueError: a size does not divide by the window's.
    """
    blocks = x
    for axis, name in (3, "Z"), (2, "Y"), (1, "X"):
        size, width = x.shape[axis], window[axis - 1]
        check_that(size % width == 0, f"size of x along {name}", f"divisible by {width}", size)
        blocks = blocks.reshape(*blocks.shape[:axis], size // width, width, *blocks.shape[axis + 1 :])
    return jnp.mean(blocks, axis=(2, 4, 6))
