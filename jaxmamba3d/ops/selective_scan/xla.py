"""The selective scan in plain XLA: chunks in sequence, and inside a chunk either a sequential scan
(`xla_sequential`) or `jax.lax.associative_scan` (`xla_associative`).

Only the state at chunk borders is kept for the backward pass, which recomputes the states of one chunk at a
time. Inside, time leads and channels come last, [T, N, D]: sums over the state are then sums of contiguous
rows, which CPUs and GPUs vectorise.

All is written for one sequence and mapped over the batch. Gradients of the parameters are so summed over the
batch at the very end: where it is sharded, no device waits for another inside the loops.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.ops.selective_scan.arguments import ScanArguments, skip_and_gate, step_size
from jaxmamba3d.ops.selective_scan.chunking import chunk_count, chunk_length
from jaxmamba3d.ops.selective_scan.recurrence import Token, advance, compose, readout, retreat

TILE_NUMBERS = 2048
"""A CPU core walks the tokens of one sequence two to three times as fast for states of at most so many
numbers, 8 kB; those of two sequences at once more slowly, but training gives each core its own."""


class InnerScan(Protocol):
    """Recurrence over one chunk, a `Token` with time in front: drive, delta [T, D]; B, C [T, N]. A and states
    are [N, D]."""

    @staticmethod
    def outputs(chunk: Token, A: jax.Array, h_in: jax.Array, reverse: bool, keep_states: bool):
        """The state after the chunk, y = C h [T, D], and the state before each token [T, N, D]."""

    @staticmethod
    def gradients(
        chunk: Token, A: jax.Array, h_before: jax.Array, g_y: jax.Array, g_h: jax.Array, reverse: bool
    ) -> tuple[jax.Array, jax.Array, Token]:
        """Gradients of the incoming state, of A [N, D] and of the tokens, from those of y and of the
        state after the chunk; `h_before` is the state before each token."""

    @staticmethod
    def channel_tile(channels: int, states: int) -> int:
        """How many channels to scan at once, a divisor of all."""


class SequentialScan:
    """One token after the other."""

    @staticmethod
    def outputs(chunk, A, h_in, reverse, keep_states):
        def step(h_before, token):
            token = _as_tile(token)
            h = advance(h_before, token, jnp.exp(token.delta * A))
            return h, (readout(h, token)[0], h_before if keep_states else None)

        h_out, (y, h_before) = lax.scan(step, h_in, chunk, reverse=reverse)
        return h_out, y, h_before

    @staticmethod
    def gradients(chunk, A, h_before, g_y, g_h, reverse):
        def step(carry, token):
            g, g_A = carry
            token, h, g_y = token
            token = _as_tile(token)
            decay = jnp.exp(token.delta * A)
            h_after = advance(h, token, decay)
            g, g_A, g_token = retreat(g, token, A, decay, h, h_after, g_y[None], g_A)
            return (g, g_A), _from_tile(g_token)

        carry = (g_h, jnp.zeros_like(A))
        (g_in, g_A), g_chunk = lax.scan(step, carry, (chunk, h_before, g_y), reverse=not reverse)
        return g_in, g_A, g_chunk

    @staticmethod
    def channel_tile(channels, states):
        """A state of at most `TILE_NUMBERS`, if there is a divisor that is not far below."""
        most = TILE_NUMBERS // states
        if channels <= most:
            return channels
        tile = max(divisor for divisor in range(1, most + 1) if channels % divisor == 0) if most else 0
        return tile if 4 * tile > most else channels


def _as_tile(token: Token) -> Token:
    """drive, delta [D] as rows; B, C [N] as columns."""
    drive, delta, B, C = token
    return Token(drive[None], delta[None], B[:, None], C[:, None])


def _from_tile(token: Token) -> Token:
    drive, delta, B, C = token
    return Token(drive[0], delta[0], B[:, 0], C[:, 0])


def _prefix_states(A, delta, drive, h_in, reverse):
    """State after each token [T, N, D], from the state before the first.

    What is left of that is told by the sum of the steps: products of decays near 1 are all rounded down.
    """
    _, drives = lax.associative_scan(compose, (jnp.exp(delta[:, None, :] * A[None]), drive), reverse=reverse)
    steps = lax.cumsum(delta, axis=0, reverse=reverse)
    return jnp.exp(steps[:, None, :] * A[None]) * h_in[None] + drives


def _shift(x, first, reverse):
    """`x` one token later in scan order, with `first` in front."""
    return jnp.concatenate([x[1:], first[None]] if reverse else [first[None], x[:-1]])


class AssociativeScan:
    """All tokens at once, in a logarithmic number of steps."""

    @staticmethod
    def outputs(chunk, A, h_in, reverse, keep_states):
        drive, delta, B, C = chunk
        h = _prefix_states(A, delta, drive[:, None, :] * B[..., None], h_in, reverse)
        y = jnp.sum(h * C[..., None], axis=1)
        return h[0 if reverse else -1], y, _shift(h, h_in, reverse) if keep_states else None

    @staticmethod
    def gradients(chunk, A, h_before, g_y, g_h, reverse):
        drive, delta, B, C = chunk
        decay = jnp.exp(delta[:, None, :] * A[None])
        drive = drive[:, None, :]
        # The adjoint runs against time; a token's own decay acts on it after it is read, hence the shift.
        delta_of_next = _shift(delta, jnp.zeros_like(delta[0]), not reverse)
        g = _prefix_states(A, delta_of_next, g_y[:, None, :] * C[..., None], g_h, not reverse)
        g_before = g * decay
        g_exponent = g_before * h_before
        g_chunk = Token(
            drive=jnp.sum(g * B[..., None], axis=1),
            delta=jnp.sum(g_exponent * A[None], axis=1),
            B=jnp.sum(g * drive, axis=-1),
            C=jnp.sum(g_y[:, None, :] * (decay * h_before + drive * B[..., None]), axis=-1),
        )
        g_A = jnp.sum(g_exponent * delta[:, None, :], axis=0)
        return g_before[-1 if reverse else 0], g_A, g_chunk

    @staticmethod
    def channel_tile(channels, states):
        return channels


@dataclass(frozen=True)
class _Options:
    """The static part of a call."""

    inner: type[InnerScan]
    delta_softplus: bool
    reverse: bool
    length: int
    states: int

    @property
    def chunk(self) -> int:
        return chunk_length(self.length)

    def prepare(self, index, u, delta, B, C, delta_bias) -> Token:
        """One chunk as float32; tokens beyond the length get a step of 0: no change."""
        delta = step_size(delta, delta_bias, self.delta_softplus)
        if self.length % self.chunk:
            token = index * self.chunk + jnp.arange(self.chunk)
            delta = jnp.where(token[:, None] < self.length, delta, 0.0)
        u, B, C = (x.astype(jnp.float32) for x in (u, B, C))
        return Token(delta * u, delta, B, C)


def _chunk_of(array, index, chunk):
    """Tokens of chunk `index`, [T, ...], read in place; None stays None."""
    return None if array is None else lax.dynamic_slice_in_dim(array, index * chunk, chunk)


def _over_chunks(body, carry, options: _Options, tokens, extra=None, reverse=False):
    """`lax.scan` of body(carry, index, chunk's tokens, extra[index]) over the chunks of [L, ...] arrays.

    Outputs [T, ...] of the chunks are joined to [L, ...]; the second output is stacked by chunk.
    """
    chunk, count = options.chunk, chunk_count(options.length, options.chunk)
    padding = count * chunk - options.length
    if padding:
        tokens = jax.tree.map(lambda x: jnp.pad(x, ((0, padding), (0, 0))), tokens)

    def step(carry, slot):
        index, extra = slot
        return body(carry, index, tuple(_chunk_of(x, index, chunk) for x in tokens), extra)

    carry, (joined, stacked) = lax.scan(step, carry, (jnp.arange(count), extra), reverse=reverse)

    def join(x):
        return x.reshape(count * chunk, -1)[: options.length]

    return carry, jax.tree.map(join, joined), stacked


def _over_tiles(options: _Options, of_tile, *rows):
    """of_tile(*rows) -> rows, columns: of the channels of one tile after the others; columns are summed.

    Rows are trees of arrays [..., D], the first of them u [T, D].
    """
    u, channels = rows[0], rows[0].shape[-1]
    tile = options.inner.channel_tile(channels, options.states)
    # Channels that devices share out over an explicit axis are few for each, and may not be cut across them.
    if tile == channels or jax.typeof(u).sharding.spec[-1] is not None:
        return of_tile(*rows)

    def split(x):
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, tile), -2, 0)

    def join(x):
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], channels)

    rows, columns = lax.map(lambda rows: of_tile(*rows), jax.tree.map(split, rows))
    return jax.tree.map(join, rows), jax.tree.map(lambda x: jnp.sum(x, axis=0), columns)


def _forward(options: _Options, arguments: ScanArguments):
    """y [L, D], the last state [N, D], and the state before each chunk [chunks, N, D]."""
    u, delta, A, B, C, D, z, delta_bias, h0 = arguments
    A = A.T
    h_in = h0.T

    def body(h, index, tokens, _):
        u, delta, B, C, z = tokens

        def of_tile(u, delta, z, h, A, D, delta_bias):
            prepared = options.prepare(index, u, delta, B, C, delta_bias)
            h_out, y, _ = options.inner.outputs(prepared, A, h, options.reverse, keep_states=False)
            return (h_out, skip_and_gate(y, u, D, z).astype(u.dtype)), None

        (h_out, y), _ = _over_tiles(options, of_tile, u, delta, z, h, A, D, delta_bias)
        return h_out, (y, h)

    return _over_chunks(body, h_in, options, (u, delta, B, C, z), reverse=options.reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(options: _Options, arguments: ScanArguments):
    last_state, y, _ = _forward(options, arguments)
    return y, last_state.T


def _scan_forward(options, arguments):
    last_state, y, borders = _forward(options, arguments)
    return (y, last_state.T), (arguments, borders)


def _scan_backward(options: _Options, residuals, gradients):
    (u, delta, A, B, C, D, z, delta_bias, _), borders = residuals
    g_out, g_last = gradients
    A_rows = A.T
    parameters = (D, delta_bias)

    def body(carry, index, tokens, h_in):
        u, delta, B, C, z, g_out = tokens
        wide_B, wide_C = (x.astype(jnp.float32) for x in (B, C))  # their gradients are sums over all tiles

        def of_tile(u, delta, z, g_out, h_in, carry, A, D, delta_bias):
            g_h, g_A, g_parameters = carry
            exact_u = u.astype(jnp.float32)  # both its gradients are summed before they are rounded
            prepared, prepare_vjp = jax.vjp(
                functools.partial(options.prepare, index), exact_u, delta, wide_B, wide_C, delta_bias
            )
            _, y, h_before = options.inner.outputs(prepared, A, h_in, options.reverse, keep_states=True)
            _, gate_vjp = jax.vjp(skip_and_gate, y, exact_u, D, z)
            g_y, g_u_skip, g_D, g_z = gate_vjp(g_out.astype(jnp.float32))
            g_h, g_A_chunk, g_prepared = options.inner.gradients(
                prepared, A, h_before, g_y, g_h, options.reverse
            )
            g_u, g_delta, g_B, g_C, g_bias = prepare_vjp(g_prepared)
            g_u = (g_u + g_u_skip).astype(u.dtype)
            g_parameters = jax.tree.map(jnp.add, g_parameters, (g_D, g_bias))
            return ((g_h, g_A + g_A_chunk, g_parameters), (g_u, g_delta, g_z)), (g_B, g_C)

        rows = u, delta, z, g_out, h_in, carry, A_rows, D, delta_bias
        (carry, (g_u, g_delta, g_z)), (g_B, g_C) = _over_tiles(options, of_tile, *rows)
        return carry, ((g_u, g_delta, g_B.astype(B.dtype), g_C.astype(C.dtype), g_z), None)

    carry = (g_last.T, jnp.zeros_like(A_rows), jax.tree.map(jnp.zeros_like, parameters))
    carry, g_tokens, _ = _over_chunks(
        body, carry, options, (u, delta, B, C, z, g_out), extra=borders, reverse=not options.reverse
    )
    g_h0, g_A, (g_D, g_bias) = carry
    g_u, g_delta, g_B, g_C, g_z = g_tokens
    return (ScanArguments(g_u, g_delta, g_A.T, g_B, g_C, g_D, g_z, g_bias, g_h0.T),)


_scan.defvjp(_scan_forward, _scan_backward)


@functools.partial(jax.jit, static_argnames=("inner", "delta_softplus", "reverse"))
def scan(
    arguments: ScanArguments, *, inner: type[InnerScan], delta_softplus: bool, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """y [B, L, D] in u's dtype and the last state [B, D, N] in float32."""
    options = _Options(inner, delta_softplus, reverse, arguments.u.shape[1], arguments.A.shape[1])
    a_sequence = ScanArguments(u=0, delta=0, A=None, B=0, C=0, D=None, z=0, delta_bias=None, h0=0)
    return jax.vmap(functools.partial(_scan, options), in_axes=(a_sequence,))(arguments)
