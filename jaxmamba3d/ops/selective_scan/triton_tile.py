"""The tile that a program of the Triton kernels holds: masked reads and writes of its channels and states."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from jaxmamba3d.ops.selective_scan.arguments import step_size
from jaxmamba3d.ops.selective_scan.blocks import WARP, TritonBlocks
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelCall
from jaxmamba3d.ops.selective_scan.recurrence import CHANNELS_LAST, TileForm


def _instruction(name: str, *operands: jax.Array) -> jax.Array:
    """One float32 instruction of NVIDIA GPUs, for every number of the operands."""
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))
    (result,) = plt.elementwise_inline_asm(
        f"{name} {', '.join(f'${i}' for i in range(len(operands) + 1))};",
        args=[jnp.broadcast_to(x, shape) for x in operands],
        constraints=", ".join(["=f", *["f"] * len(operands)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


# XLA compiles Triton's arithmetic to the letter: products and sums are rounded one by one, and results below
# the smallest normal number are kept, which takes an exponential three more instructions.
_INSTRUCTIONS = CHANNELS_LAST._replace(
    exp2=functools.partial(_instruction, "ex2.approx.ftz.f32"),
    multiply_add=functools.partial(_instruction, "fma.rn.f32"),
)


@dataclass(frozen=True)
class TritonCall(KernelCall):
    """A program's block is a chunk by a tile of channels, and in the gradient kernel `run` chunks by `groups`
    tiles; all states."""

    blocks: TritonBlocks

    @property
    def form(self) -> TileForm:
        """The interpreter knows no instructions."""
        return CHANNELS_LAST if self.options.interpret else _INSTRUCTIONS

    def once(self) -> jax.Array | int:
        """1, as the compiler cannot know: the grid's length along its first axis, or 1 if that is more."""
        if self.options.interpret:
            return 1
        numbers = jax.ShapeDtypeStruct((WARP,), jnp.int32)
        (length,) = plt.elementwise_inline_asm(
            "mov.u32 $0, %nctaid.x;",
            args=[jnp.zeros(numbers.shape, numbers.dtype)],
            constraints="=r,r",
            pack=1,
            result_shape_dtypes=[numbers],
        )
        return jnp.minimum(jnp.max(length), 1)

    @property
    def state_tile(self) -> int:
        return pl.next_power_of_2(self.states)

    def positions(self, s) -> list[jax.Array]:
        """Of the tokens of stride s in a chunk, in scan order."""
        chunk, stride = self.blocks.chunk, self.blocks.stride
        order = [s * stride + j for j in range(stride)]
        return [chunk - 1 - i for i in order] if self.descends() else order


@dataclass(frozen=True)
class Tile:
    """Where a program is: a tile of channels in its block, some of the states, and masks where arrays end
    inside of blocks.

    The states come in parts of `part`: tiles are tuples of [part, width], columns of [part].
    """

    call: TritonCall
    width: int
    first_channel: jax.Array  # in the block
    channel_offset: jax.Array  # of the block in the array
    token_offset: jax.Array
    first_state: jax.Array
    states: int
    part: int

    @property
    def channels(self):
        return pl.ds(self.first_channel, self.width)

    @property
    def parts(self) -> list[int]:
        """The first state of each, counted from `first_state`."""
        return list(range(0, self.states, self.part))

    def states_of(self, first: int):
        return pl.ds(self.first_state + first, self.part)

    def row_mask(self, valid: jax.Array | None = None, count: int = 1) -> jax.Array | None:
        """[count, width], or [1, width] where all tokens have the same."""
        mask = None
        if self.call.channels % self.width:
            channel = (
                self.channel_offset + self.first_channel + lax.broadcasted_iota(jnp.int32, (1, self.width), 1)
            )
            mask = channel < self.call.channels
        return _both(mask, valid, (count, self.width))

    def column_mask(self, first: int, valid: jax.Array | None = None) -> jax.Array | None:
        """[part]."""
        shape, mask = (self.part,), None
        if self.call.states % self.states:
            mask = self.first_state + first + lax.broadcasted_iota(jnp.int32, shape, 0) < self.call.states
        return _both(mask, valid, shape)

    def tile_mask(self, first: int) -> jax.Array | None:
        """[part, width]."""
        row, column = self.row_mask(), self.column_mask(first)
        if row is None:
            return None if column is None else jnp.broadcast_to(column[:, None], (self.part, self.width))
        if column is None:
            return jnp.broadcast_to(row, (self.part, self.width))
        return row & column[:, None]

    def valid(self, t: jax.Array, count: int = 1) -> jax.Array | None:
        """Whether tokens from t on in the block are of the sequence, [] or [count, 1]; None: all are."""
        if self.call.length % self.call.blocks.chunk == 0:
            return None
        if count > 1:
            t = t + lax.broadcasted_iota(jnp.int32, (count, 1), 0)
        return self.token_offset + t < self.call.length

    def row(self, ref, t, count: int = 1):
        """Channels of `count` tokens from t on, [count, width] float32; None stays None."""
        if ref is None:
            return None
        mask = self.row_mask(self.valid(t, count), count)
        return _load(ref.at[pl.ds(t, count), self.channels], mask).astype(jnp.float32)

    def parameter(self, ref):
        """A row of the tile's channels, [1, width]; None stays None."""
        return None if ref is None else _load(ref.at[pl.ds(0, 1), self.channels], self.row_mask())

    def column(self, ref, t):
        """States of a token, a tuple of [part] float32; None stays None."""
        if ref is None:
            return None
        valid = self.valid(t)
        return tuple(
            _load(ref.at[t, self.states_of(k)], self.column_mask(k, valid)).astype(jnp.float32)
            for k in self.parts
        )

    def state(self, ref, *chunk):
        """A tile, of a chunk where the block holds several."""
        return tuple(
            _load(ref.at[*chunk, self.states_of(k), self.channels], self.tile_mask(k)) for k in self.parts
        )

    def step(self, t, delta, delta_bias):
        """The steps of the tokens from t on from the delta given, [count, width], 0 beyond the sequence."""
        step = step_size(delta, delta_bias, self.call.options.delta_softplus)
        valid = self.valid(t, delta.shape[0])
        return step if valid is None else jnp.where(valid, step, 0.0)

    def store_row(self, ref, t, value):
        """[count, width], of the tokens from t on."""
        if ref is not None:
            count = value.shape[0]
            mask = self.row_mask(self.valid(t, count), count)
            plt.store(ref.at[pl.ds(t, count), self.channels], value.astype(ref.dtype), mask=mask)

    def kept_column(self, ref, i):
        """Row i of a program's own memory, a tuple of [part]; None stays None."""
        return None if ref is None else tuple(plt.load(ref.at[i, self.states_of(k)]) for k in self.parts)

    def keep_column(self, ref, i, column):
        """A tuple of [part], as row i of a program's own memory."""
        for k, value in zip(self.parts, column, strict=True):
            plt.store(ref.at[i, self.states_of(k)], value)

    def store_column(self, ref, t, column):
        """A tuple of [part], as token t."""
        valid = self.valid(t)
        for k, value in zip(self.parts, column, strict=True):
            plt.store(ref.at[t, self.states_of(k)], value.astype(ref.dtype), mask=self.column_mask(k, valid))

    def store_columns(self, ref, t, values):
        """All states of the tokens from t on, [count, padded states]."""
        mask, shape = self.valid(t, values.shape[0]), values.shape
        if self.call.states < self.call.state_tile:
            state = lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)
            mask = _both(state < self.call.states, mask, shape)
        mask = None if mask is None else jnp.broadcast_to(mask, shape)
        plt.store(ref.at[pl.ds(t, shape[0]), :], values.astype(ref.dtype), mask=mask)

    def store_state(self, ref, tile, add=False):
        """Stores a tile, added to what is there where `add` is."""
        for k, value in zip(self.parts, tile, strict=True):
            place, mask = ref.at[self.states_of(k), self.channels], self.tile_mask(k)
            plt.store(place, begun(place, mask, add) + value, mask=mask)

    def store_parameter(self, ref, value, add=False):
        """Stores a row [1, width], added to what is there where `add` is."""
        if ref is not None:
            place, mask = ref.at[pl.ds(0, 1), self.channels], self.row_mask()
            plt.store(place, begun(place, mask, add) + value, mask=mask)


def spread(column):
    """Columns [part] -> [part, 1], which multiply tiles; None stays None."""
    return jax.tree.map(lambda x: x[:, None], column)


def reading_ahead(count: int, read, body, carry, first=None, once=1):
    """carry = body(i, read(i), carry) for i from 0 to `count`; read(i + 1) comes before body(i).

    Few programs fit on a processor, too few to hide how long memory takes to answer. `first` is read(0),
    where that has been read already. ptxas puts reads off until registers are free, which is late in a long
    body. It moves none over a branch: with `TritonCall.once` the body is a loop, of one turn.
    """
    zero = lax.full((), 0, jnp.int32)
    first = read(zero) if first is None else first
    if count == 1:
        return body(zero, first, carry)

    def step(i, carry_and_read):
        carry, current = carry_and_read
        following = read(jnp.minimum(i + 1, count - 1))
        return lax.fori_loop(0, once, lambda _, carry: body(i, current, carry), carry), following

    return lax.fori_loop(0, count, step, (carry, first))[0]


def _both(mask, valid, shape):
    if valid is None:
        return mask
    return jnp.full(shape, valid) if mask is None else mask & valid


def _load(place, mask):
    return plt.load(place, mask=mask, other=None if mask is None else 0)


def begun(place, mask, add):
    """What is stored there, or 0 where `add` is False and there is nothing yet."""
    return 0.0 if add is False else jnp.where(add, _load(place, mask), 0.0)
