"""The definition of the selective scan: one `lax.scan` over time in float32, differentiated by JAX."""

import functools

import jax
import jax.numpy as jnp

from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, skip_and_gate, step_size


@functools.partial(jax.jit, static_argnames=("delta_softplus", "reverse"))
def scan(arguments: ScanArguments, *, delta_softplus: bool, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """y [B, L, D] in u's dtype and the last state [B, D, N] in float32."""
    u, delta, A, B, C, D, z, delta_bias, h0 = arguments

    def step(h, token):
        u, delta, B, C = token
        h = jnp.exp(delta[..., None] * A[None]) * h + (delta * u)[..., None] * B[:, None, :]
        return h, jnp.einsum("bdn,bn->bd", h, C, precision="highest")

    delta = step_size(delta, delta_bias, delta_softplus)
    tokens = tuple(jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (u, delta, B, C))
    last_state, y = jax.lax.scan(step, h0, tokens, reverse=reverse)
    return skip_and_gate(jnp.moveaxis(y, 0, 1), u, D, z).astype(u.dtype), last_state
