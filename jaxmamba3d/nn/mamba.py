"""The Mamba layer and the residual block around it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from jaxmamba3d.checks import check_choice, check_count, check_shape, check_that
from jaxmamba3d.nn.initializers import inverse_softplus_of_steps, uniform, uniform_fan_in
from jaxmamba3d.nn.norm import LayerNorm
from jaxmamba3d.ops.causal_conv import causal_conv
from jaxmamba3d.ops.selective_scan import IMPLEMENTATIONS, selective_scan


def _linear(in_features, out_features, use_bias, dtype, param_dtype, rngs, init=None):
    """`nnx.Linear` with PyTorch's default initialisation unless another is given."""
    init = init or uniform_fan_in(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class Mamba(nnx.Module):
    """A selective state-space layer over sequences: [B, L, in_features] -> [B, L, in_features].

        x, z = in_proj(input)
        x = silu(causal_conv(x))
        delta, B, C = x_proj(x);  delta = softplus(dt_proj(delta))
        output = out_proj(selective_scan(x, delta, -exp(A_log), B, C, D, z))

    Args:
        in_features: channels of input and output.
        d_state: state size N.
        d_conv: tokens that the causal convolution sees.
        expand: the inner channels D are expand * in_features.
        dt_rank: rank of delta's projection; None: ceil(in_features / 16).
        scan_implementation: see `selective_scan`.
        dtype: compute dtype of the projections; None: the wider one of input and parameters. The scan's state
            is float32 always.
        param_dtype: dtype of the parameters; A_log and D are float32 always.
        rngs: random streams; `params` is used.

    Raises:
        ValueError: a size is no whole number above 0, there is no such implementation, or an input is of
            another shape.

    Derivatives: in reverse mode alone.

    Source: `Mamba` in mamba_ssm/modules/mamba_simple.py, initialisation included.
    """

    def __init__(
        self,
        in_features: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_implementation: str | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"in_features": in_features, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        if dt_rank is not None:
            sizes["dt_rank"] = dt_rank
        for name, size in sizes.items():
            check_count(name, size)
        dt_rank = math.ceil(in_features / 16) if dt_rank is None else dt_rank
        if scan_implementation is not None:
            check_choice("scan_implementation", scan_implementation, IMPLEMENTATIONS)
        inner = expand * in_features
        self.split = (dt_rank, dt_rank + d_state)
        self.dtype, self.scan_implementation = dtype, scan_implementation
        self.in_proj = _linear(in_features, 2 * inner, False, dtype, param_dtype, rngs)
        conv_init = uniform_fan_in(d_conv)
        self.conv_kernel = nnx.Param(conv_init(rngs.params(), (d_conv, inner), param_dtype))
        self.conv_bias = nnx.Param(conv_init(rngs.params(), (inner,), param_dtype))
        self.x_proj = _linear(inner, dt_rank + 2 * d_state, False, dtype, param_dtype, rngs)
        dt_init = uniform(dt_rank**-0.5)
        self.dt_proj = _linear(dt_rank, inner, False, dtype, param_dtype, rngs, dt_init)
        # Apart from its projection because the scan adds it, in float32.
        self.dt_bias = nnx.Param(inverse_softplus_of_steps()(rngs.params(), (inner,), param_dtype))
        states = jnp.arange(1, d_state + 1, dtype=jnp.float32)
        self.A_log = nnx.Param(jnp.broadcast_to(jnp.log(states), (inner, d_state)))
        self.D = nnx.Param(jnp.ones((inner,), jnp.float32))
        self.out_proj = _linear(inner, in_features, False, dtype, param_dtype, rngs)

    def __call__(self, x: jax.Array, *, reverse: bool = False) -> jax.Array:
        """[B, L, in_features] -> the same; `reverse` runs from the last token to the first."""
        check_shape("x", x, "[B, L, in_features]", (None, None, self.in_proj.in_features))
        check_that(x.size > 0, "x", "not empty", f"shape {list(x.shape)}")
        x, z = jnp.split(self.in_proj(x), 2, axis=-1)
        x = jax.nn.silu(causal_conv(x, self.conv_kernel[...], self.conv_bias[...], reverse=reverse))
        delta, B, C = jnp.split(self.x_proj(x), self.split, axis=-1)
        y = selective_scan(
            x,
            self.dt_proj(delta),
            -jnp.exp(self.A_log[...]),
            B,
            C,
            self.D[...],
            z=z,
            delta_bias=self.dt_bias[...],
            delta_softplus=True,
            reverse=reverse,
            implementation=self.scan_implementation,
        )
        return self.out_proj(y)


class MambaBlock(nnx.Module):
    """A Mamba layer and a linear head, each behind a norm and with a residual.

        x = x + mamba(norm1(x));  x = x + head(norm2(x))

    [B, L, in_features] -> [B, L, in_features] in the wider dtype of x and of what the layers compute in.

    Args:
        in_features: channels.
        remat: store only the block's input for the backward pass, which then runs the block again.
        dtype, param_dtype, rngs: as for `Mamba`.
        options: further arguments of `Mamba`.

    Source: `MambaTrans` of the authors' code.
    """

    def __init__(
        self,
        in_features: int,
        *,
        remat: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        check_count("in_features", in_features)
        self.remat = remat
        self.norm1 = LayerNorm(in_features, rngs=rngs)
        self.mamba = Mamba(in_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **options)
        self.norm2 = LayerNorm(in_features, rngs=rngs)
        self.head = _linear(in_features, in_features, True, dtype, param_dtype, rngs)

    def __call__(self, x: jax.Array, *, reverse: bool = False) -> jax.Array:
        """[B, L, in_features] -> the same; `reverse` runs from the last token to the first."""
        check_shape("x", x, "[B, L, in_features]", (None, None, self.head.in_features))
        if not self.remat:
            return self._run(x, reverse)
        graph, state = nnx.split(self)  # unlike `nnx.remat`, this works inside a loop, too
        return jax.checkpoint(lambda state, x: nnx.merge(graph, state)._run(x, reverse))(state, x)

    def _run(self, x, reverse):
        x = x + self.mamba(self.norm1(x), reverse=reverse)
        return x + self.head(self.norm2(x))
