"""The axis orders in which a volume is read as a sequence, and the way there and back."""

import math

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_choice, check_shape, check_that

# The name gives the axes from slowest to fastest: in XYZ the last stored axis runs fastest.
SCAN_ORDERS: dict[str, tuple[int, int, int]] = {
    "XYZ": (0, 1, 2),
    "XZY": (0, 2, 1),
    "YXZ": (1, 0, 2),
    "ZXY": (2, 0, 1),
}


def to_tokens(volume: jax.Array, order: str = "XYZ") -> jax.Array:
    """Reads a volume [B, X, Y, Z, C] along an axis order as tokens [B, L, C], L = X Y Z."""
    check_choice("order", order, SCAN_ORDERS)
    check_that(volume.ndim == 5, "volume", "[B, X, Y, Z, C]", f"shape {list(volume.shape)}")
    x, y, z = SCAN_ORDERS[order]
    permuted = jnp.transpose(volume, (0, x + 1, y + 1, z + 1, 4))
    return permuted.reshape(volume.shape[0], math.prod(volume.shape[1:4]), volume.shape[-1])


def to_volume(tokens: jax.Array, shape: tuple[int, int, int], order: str = "XYZ") -> jax.Array:
    """Puts tokens [B, L, C] that were read along an axis order back into a volume [B, *shape, C]."""
    check_choice("order", order, SCAN_ORDERS)
    check_that(len(shape) == 3, "shape", "the sizes along X, Y and Z", shape)
    check_shape("tokens", tokens, "[B, L, C]", (None, math.prod(shape), None))
    axes = SCAN_ORDERS[order]
    permuted = tokens.reshape(tokens.shape[0], *(shape[axis] for axis in axes), tokens.shape[-1])
    back = [axes.index(axis) + 1 for axis in range(3)]
    return jnp.transpose(permuted, (0, *back, 4))
