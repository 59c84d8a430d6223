"""What a program of the Mosaic GPU kernels works on: a tile of 64 channels, and a chunk in steps of tokens.

The tile [64, N] lies in the registers of a warpgroup as the result of a tensor core instruction would; rows
[64] and columns [N] as its sums do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxmamba3d.ops.selective_scan.blocks import WARPGROUP_TILE as TILE
from jaxmamba3d.ops.selective_scan.blocks import MosaicGpuBlocks
from jaxmamba3d.ops.selective_scan.kernel_scan import KernelCall, KernelInputs, where_present
from jaxmamba3d.ops.selective_scan.recurrence import TileForm, Token

_TILE_LAYOUT = plgpu.Layout.WGMMA
_ROW_LAYOUT, _COLUMN_LAYOUT = _TILE_LAYOUT.reduce(1), _TILE_LAYOUT.reduce(0)


def channels_first(states: int) -> TileForm:
    """Tiles [64, N], rows [64], columns [N]."""
    shape = (TILE, states)
    return TileForm(
        from_row=lambda row: lax.broadcast_in_dim(row, shape, (0,)),
        from_column=lambda column: lax.broadcast_in_dim(column, shape, (1,)),
        over_states=lambda tile: jnp.sum(tile, axis=1),
        over_channels=lambda tile: jnp.sum(tile, axis=0),
    )


def read_tile(ref):
    """[64, N], as it is stored."""
    return plgpu.load(ref, layout=_TILE_LAYOUT, optimized=False)


def read_row(ref):
    """[64] float32; None stays None."""
    return None if ref is None else plgpu.load(ref, layout=_ROW_LAYOUT, optimized=False).astype(jnp.float32)


def read_column(ref):
    """[N] float32; None stays None."""
    if ref is None:
        return None
    return plgpu.load(ref, layout=_COLUMN_LAYOUT, optimized=False).astype(jnp.float32)


def zero_tile(states: int):
    """[64, N] float32."""
    return plgpu.layout_cast(jnp.zeros((TILE, states), jnp.float32), _TILE_LAYOUT)


def zero_row():
    """[64] float32."""
    return plgpu.layout_cast(jnp.zeros((TILE,), jnp.float32), _ROW_LAYOUT)


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), where log1p does not lower: log1p(e) = 2 atanh(e / (2 + e)), by its series."""
    e = jnp.exp(-jnp.abs(x))
    s = e / (2 + e)  # at most 1/3: the first term left out is below 1e-8 of the first
    squared, series = s * s, jnp.float32(1 / 15)
    for denominator in (13, 11, 9, 7, 5, 3, 1):
        series = series * squared + jnp.float32(1 / denominator)
    return jnp.maximum(x, 0.0) + 2 * s * series


def skip_and_gate_adjoint(y, u, D, z, g):
    """The gradients of y, u, D and z from that of `skip_and_gate`, None where there is none.

    By hand, because sums of cotangents do not lower.
    """
    g_z = None
    if z is not None:
        s = jax.nn.sigmoid(z)
        g_z = g * (y if D is None else y + D * u) * (s * (1 + z * (1 - s)))
        g = g * (z * s)
    return (g, None, None, g_z) if D is None else (g, g * D, g * u, g_z)


@dataclass(frozen=True)
class MosaicGpuCall(KernelCall):
    """`length` tokens are padded to whole chunks; the parameters are of `groups`."""

    blocks: MosaicGpuBlocks
    groups: int

    @property
    def steps(self) -> int:
        """In a chunk."""
        return self.blocks.chunk // self.blocks.step

    @property
    def grid(self) -> tuple[int, int, int]:
        """Sequences, chunks and tiles: one program each."""
        return self.batch, self.chunks, self.channels // TILE

    @property
    def form(self) -> TileForm:
        return channels_first(self.states)

    def order(self, *, backward: bool = False) -> range:
        """The tokens of a step, in scan order or against it."""
        step = self.blocks.step
        return range(step - 1, -1, -1) if self.descends(backward) else range(step)


class Place(NamedTuple):
    """Where a program is; `group`: which parameters it has."""

    group: jax.Array | int
    sequence: jax.Array
    chunk: jax.Array
    tile: jax.Array

    @property
    def channels(self):
        return pl.ds(self.tile * TILE, TILE)

    @property
    def parameter(self):
        """Index of an array [G, D] or [G, D, N]."""
        return self.group, self.channels

    @property
    def state(self):
        """Index of an array [B, chunks, D, N]."""
        return self.sequence, self.chunk, self.channels


GRID = ("sequence", "chunk", "tile")


def place(call: MosaicGpuCall) -> Place:
    """Of the program that asks."""
    sequence, chunk, tile = (lax.axis_index(name) for name in GRID)
    return Place(0 if call.groups == 1 else lax.rem(sequence, jnp.int32(call.groups)), sequence, chunk, tile)


@dataclass(frozen=True)
class Step:
    """Some tokens of a chunk in shared memory: `refs`, [step, 64] and [step, N]; `first` in the sequence."""

    call: MosaicGpuCall
    refs: KernelInputs
    first: jax.Array
    delta_bias: jax.Array | None

    @property
    def tokens(self):
        """Of the sequence."""
        return pl.ds(self.first, self.call.blocks.step)

    def row(self, ref, j: int):
        """The channels of token j, [64] float32; None stays None."""
        return None if ref is None else read_row(ref.at[j])

    def size(self, j: int):
        """The step of the recurrence, 0 beyond the sequence."""
        delta = self._delta(j)
        return self._within(j, softplus(delta) if self.call.options.delta_softplus else delta)

    def slope(self, j: int, g):
        """The gradient of delta and of its bias, from that of the step."""
        return self._within(j, g * jax.nn.sigmoid(self._delta(j)) if self.call.options.delta_softplus else g)

    def _delta(self, j: int):
        delta = self.row(self.refs.delta, j)
        return delta if self.delta_bias is None else delta + self.delta_bias

    def _within(self, j: int, row):
        if self.call.length % self.call.blocks.chunk == 0:
            return row
        return row * (self.first + j < self.call.length).astype(jnp.float32)

    def token(self, j: int) -> Token:
        """None for what the kernel does not read."""
        B, C = (None if ref is None else read_column(ref.at[j]) for ref in (self.refs.B, self.refs.C))
        u, size = self.row(self.refs.u, j), self.size(j)
        return Token(None if u is None else size * u, size, B, C)


def walk(
    call: MosaicGpuCall,
    at: Place,
    refs: KernelInputs,
    delta_bias,
    body: Callable[[jax.Array, Step, Any], tuple[Any, list]],
    carry,
    *,
    backward: bool = False,
):
    """carry, copies = body(k, step, carry) for the steps of a chunk, read ahead by asynchronous copies.

    Step k is the k-th in scan order, or with `backward` against it. `copies` are pairs of what a step leaves
    in shared memory and where it goes; the next step must wait for them before it writes there again.
    """
    step, last = call.blocks.step, call.steps - 1

    def stored(k):
        """The step among all of the sequence."""
        return at.chunk * call.steps + (last - k if call.descends(backward) else k)

    row = plgpu.BlockSpec((step, TILE), lambda k: (stored(k), at.tile))
    column = plgpu.BlockSpec((step, call.states), lambda k: (stored(k), 0))
    sequences = refs._replace(A=None, D=None, delta_bias=None)
    specs = where_present(KernelInputs(row, row, None, column, column, None, row, None, row), sequences)
    tree = jax.tree.structure(sequences)

    def work(index, *blocks_and_carry):
        *blocks, carry = blocks_and_carry
        here = Step(call, jax.tree.unflatten(tree, blocks), stored(index[0]) * step, delta_bias)
        carry, copies = body(index[0], here, carry)
        plgpu.commit_smem()  # the step's own writes, and its reads before the next copy to where it read
        for source, target in copies:
            plgpu.copy_smem_to_gmem(source, target, commit_group=False)
        if copies:
            plgpu.commit_smem_to_gmem_group()
        return carry

    pipeline = plgpu.emit_pipeline(
        work,
        grid=(call.steps,),
        in_specs=[spec for spec in specs if spec is not None],
        max_concurrent_steps=min(2, call.steps),
        init_carry=carry,
    )
    return pipeline(*(ref.at[at.sequence] for ref in sequences if ref is not None))
