"""Mamba blocks that read a sequence in both directions, and a volume along several axis orders."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from jaxmamba3d.checks import check_choice
from jaxmamba3d.nn.mamba import MambaBlock
from jaxmamba3d.nn.norm import LayerNorm
from jaxmamba3d.ops.scan_orders import SCAN_ORDERS, to_tokens, to_volume


class BidirectionalMambaBlock(nnx.Module):
    """Two Mamba blocks, one forward and one backward in time, summed and normed.

        norm(forward(x) + backward(x, reverse=True))

    [B, L, in_features] -> [B, L, in_features]. Arguments as for `Mamba`.

    Source: `PanMambaTrans` of the authors' code, which flips the sequence instead.
    """

    def __init__(
        self,
        in_features: int,
        *,
        d_state: int = 16,
        scan_implementation: str | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def block():
            return MambaBlock(
                in_features,
                d_state=d_state,
                scan_implementation=scan_implementation,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.forward = block()
        self.backward = block()
        self.norm = LayerNorm(in_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, in_features] -> the same."""
        return self.norm(self.forward(x) + self.backward(x, reverse=True))


class MultiOrderMambaBlock(nnx.Module):
    """The mean of bidirectional blocks that each read the volume along its own axis order.

    [B, X, Y, Z, in_features] -> [B, X, Y, Z, in_features]. Arguments as for `Mamba`, and

    Args:
        orders: names out of XYZ, XZY, YXZ, ZXY; the axis named last runs fastest.

    Source: `MultiMambaTrans` of the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        *,
        orders: tuple[str, ...] = tuple(SCAN_ORDERS),
        d_state: int = 16,
        scan_implementation: str | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for order in orders:
            check_choice("orders", order, SCAN_ORDERS)
        self.orders = tuple(orders)
        self.blocks = nnx.List(
            BidirectionalMambaBlock(
                in_features,
                d_state=d_state,
                scan_implementation=scan_implementation,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for _ in orders
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, X, Y, Z, in_features] -> the same."""
        total = 0.0
        for order, block in zip(self.orders, self.blocks, strict=True):
            total = total + to_volume(block(to_tokens(x, order)), x.shape[1:4], order)
        return total / len(self.orders)
