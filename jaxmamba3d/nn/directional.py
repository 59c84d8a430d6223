"""Mamba blocks that read a sequence in both directions, and a volume along several axis orders."""

from typing import Any

import jax
from flax import nnx

from jaxmamba3d.checks import check_choice
from jaxmamba3d.nn.mamba import MambaBlock
from jaxmamba3d.nn.norm import LayerNorm
from jaxmamba3d.ops.scan_orders import SCAN_ORDERS, to_tokens, to_volume


class BidirectionalMambaBlock(nnx.Module):
    """Two Mamba blocks, one forward and one backward in time, summed and normed.

        norm(forward(x) + backward(x, reverse=True))

    [B, L, in_features] -> [B, L, in_features].

    Args:
        in_features: channels.
        rngs: random streams; `params` is used.
        options: further arguments of `MambaBlock`.

    Source: `PanMambaTrans` of the authors' code, which flips the sequence instead.
    """

    def __init__(self, in_features: int, *, rngs: nnx.Rngs, **options: Any):
        self.forward = MambaBlock(in_features, rngs=rngs, **options)
        self.backward = MambaBlock(in_features, rngs=rngs, **options)
        self.norm = LayerNorm(in_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, in_features] -> the same."""
        return self.norm(self.forward(x) + self.backward(x, reverse=True))


class MultiOrderMambaBlock(nnx.Module):
    """The mean of bidirectional blocks that each read the volume along its own axis order.

    [B, X, Y, Z, in_features] -> [B, X, Y, Z, in_features].

    Args:
        in_features: channels.
        orders: names out of XYZ, XZY, YXZ, ZXY; the axis named last runs fastest.
        rngs: random streams; `params` is used.
        options: further arguments of `MambaBlock`.

    Raises:
        ValueError: an unknown order.

    Source: `MultiMambaTrans` of the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        *,
        orders: tuple[str, ...] = tuple(SCAN_ORDERS),
        rngs: nnx.Rngs,
        **options: Any,
    ):
        for order in orders:
            check_choice("orders", order, SCAN_ORDERS)
        self.orders = tuple(orders)
        self.blocks = nnx.List(BidirectionalMambaBlock(in_features, rngs=rngs, **options) for _ in orders)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, X, Y, Z, in_features] -> the same."""
        total = 0.0
        for order, block in zip(self.orders, self.blocks, strict=True):
            total = total + to_volume(block(to_tokens(x, order)), x.shape[1:4], order)
        return total / len(self.orders)
