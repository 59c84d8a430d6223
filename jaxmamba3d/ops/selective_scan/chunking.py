"""How time is cut into chunks, and how their summaries are joined."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.ops.selective_scan.recurrence import compose

SHORTEST, LONGEST = 128, 256


def chunk_length(length: int) -> int:
    """Tokens in a chunk: the divisor of `length` nearest to LONGEST if there is one in range.

    Chunks that divide the length need no padding. Volumes nearly always have one; where none lies in
    SHORTEST..LONGEST, the chunk that pads least is taken, the longest among equals.
    """
    if length <= LONGEST:
        return length
    return min(range(LONGEST, SHORTEST - 1, -1), key=lambda chunk: -length % chunk)


def chunk_count(length: int, chunk: int) -> int:
    """Chunks that hold `length` tokens, the last one possibly padded."""
    return math.ceil(length / chunk)


def join_chunks(
    ends: jax.Array, spans: jax.Array, A: jax.Array, first: jax.Array, *, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """The true state before each chunk, from what each chunk makes of a zero state.

    A does not depend on time, so a chunk's whole decay is exp(span A): a chunk maps h to exp(span A) h + end,
    and `jax.lax.associative_scan` composes these maps. The adjoint's chunks compose likewise, with `reverse`
    the other way round.

    Args, with states and channels in either order:
        ends: state after each chunk from a zero state, [B, chunks, N, D].
        spans: sum of delta over each chunk, [B, chunks, 1, D].
        A: [G, N, D]; sequence b has that of b % G.
        first: state before the first chunk, [B, N, D].
        reverse: the chunk stored last comes first.

    Returns:
        The state before each chunk [B, chunks, N, D], and that after all [B, N, D].
    """
    groups = A.shape[0]
    A = A if groups == 1 else jnp.tile(A, (ends.shape[0] // groups, 1, 1))
    decays = jnp.exp(spans * A[:, None])
    start = -1 if reverse else 0
    ends = ends.at[:, start].add(decays[:, start] * first)
    _, after = lax.associative_scan(compose, (decays, ends), axis=1, reverse=reverse)
    if reverse:
        return jnp.concatenate([after[:, 1:], first[:, None]], axis=1), after[:, 0]
    return jnp.concatenate([first[:, None], after[:, :-1]], axis=1), after[:, -1]
