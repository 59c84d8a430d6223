"""What all implementations of the scan share: the call's arguments, their float32 forms, and the gate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class ScanArguments(NamedTuple):
    """The arrays of one call; None where an optional one is absent.

    u, delta, z [B, L, D]; A [D, N]; B, C [B, L, N]; D, delta_bias [D]; h0 [B, D, N]. What implementations get
    has A, D, delta_bias and h0 in float32, and an h0.
    """

    u: jax.Array
    delta: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array | None
    z: jax.Array | None
    delta_bias: jax.Array | None
    h0: jax.Array | None

    def other_dtype(self, *known: str) -> str | None:
        """The dtype of a sequence that is none of the known ones, or None."""
        found = {str(x.dtype) for x in (self.u, self.delta, self.B, self.C, self.z) if x is not None}
        return min(found - set(known), default=None)

    def with_float32_parameters(self) -> "ScanArguments":
        """A, D, delta_bias and h0 in float32, so that their gradients are summed over time in float32 too."""
        wide = {name: getattr(self, name) for name in ("A", "D", "delta_bias", "h0")}
        return self._replace(**jax.tree.map(lambda x: x.astype(jnp.float32), wide))

    def with_first_state(self) -> "ScanArguments":
        """With an h0 of zeros where there is none."""
        if self.h0 is not None:
            return self
        return self._replace(h0=jnp.zeros((len(self.u), *self.A.shape), jnp.float32))


def step_size(delta: jax.Array, delta_bias: jax.Array | None, delta_softplus: bool) -> jax.Array:
    """The step delta in float32, [..., D]: bias added, then softplus, each where asked for."""
    delta = delta.astype(jnp.float32)
    if delta_bias is not None:
        delta = delta + lax.broadcast_to_rank(delta_bias, delta.ndim)
    return jax.nn.softplus(delta) if delta_softplus else delta


def skip_and_gate(y: jax.Array, u: jax.Array, D: jax.Array | None, z: jax.Array | None) -> jax.Array:
    """(y + D u) silu(z) in float32, [..., D]; each part where its array is given."""
    if D is not None:
        y = y + lax.broadcast_to_rank(D, u.ndim) * u.astype(jnp.float32)
    return y if z is None else y * jax.nn.silu(z.astype(jnp.float32))


def gate_gradient(g_out: jax.Array, z: jax.Array | None) -> jax.Array:
    """The gradient of what `skip_and_gate` gates, in float32: the gate is linear in y, so what it makes of y
    it makes of the gradient."""
    return skip_and_gate(g_out, None, None, z)
