"""Mamba blocks that read a sequence in both directions, and a volume along several axis orders."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmamba3d.checks import check_choice, check_shape, check_that
from jaxmamba3d.nn.mamba import MambaBlock
from jaxmamba3d.nn.norm import LayerNorm
from jaxmamba3d.ops.backend import target_backend
from jaxmamba3d.ops.scan_orders import SCAN_ORDERS, to_tokens, to_volume
from jaxmamba3d.ops.selective_scan.blocks import leaves_gpu_idle
from jaxmamba3d.ops.selective_scan.devices import sequences_a_device


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
        in_one_call: run all orders as one batch with parameters of their own instead of one after another,
            which takes the memory of all at once; None: on GPUs, for volumes so small that one order leaves
            part of the chip idle.
        rngs: random streams; `params` is used.
        options: further arguments of `MambaBlock`.

    Raises:
        ValueError: an unknown order, or none; or an input is of another shape.

    Source: `MultiMambaTrans` of the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        *,
        orders: tuple[str, ...] = tuple(SCAN_ORDERS),
        in_one_call: bool | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        named = not isinstance(orders, str) and len(orders) > 0
        check_that(named, "orders", "a tuple of at least one order", repr(orders))
        for order in orders:
            check_choice("orders", order, SCAN_ORDERS)
        self.orders, self.in_one_call = tuple(orders), in_one_call
        self.blocks = nnx.List(BidirectionalMambaBlock(in_features, rngs=rngs, **options) for _ in orders)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, X, Y, Z, in_features] -> the same."""
        features = self.blocks[0].forward.head.in_features
        check_shape("x", x, "[B, X, Y, Z, in_features]", (None, None, None, None, features))
        sequences = [to_tokens(x, order) for order in self.orders]
        in_one_call = self.in_one_call
        if in_one_call is None:
            batch, length = sequences_a_device(x), sequences[0].shape[1]
            inner = self.blocks[0].forward.mamba.D.shape[0]
            in_one_call = target_backend() == "gpu" and leaves_gpu_idle(batch, length, inner)
        if in_one_call:
            mixed = self._together(sequences)
        else:
            mixed = [block(_apart(tokens)) for block, tokens in zip(self.blocks, sequences, strict=True)]
        volumes = [to_volume(y, x.shape[1:4], order) for y, order in zip(mixed, self.orders, strict=True)]
        return sum(volumes) / len(self.orders)

    def _together(self, sequences: list[jax.Array]) -> list[jax.Array]:
        graph = nnx.graphdef(self.blocks[0])
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(nnx.state, self.blocks))
        # The orders lie inside the batch, so that a sharded batch stays where it is.
        run = jax.vmap(lambda state, tokens: nnx.merge(graph, state)(tokens), in_axes=(0, 1), out_axes=1)
        mixed = run(stacked, _apart(jnp.stack(sequences, axis=1)))
        return [mixed[:, i] for i in range(len(sequences))]


def _apart(tokens: jax.Array) -> jax.Array:
    """The same, written to memory in its order.

    Else XLA fuses the change of order into all that is computed of the tokens, so that each reads across
    memory, and takes minutes to find out what that costs.
    """
    return jax.lax.optimization_barrier(tokens)
