"""Sizes of the kernels' blocks, from the shapes of a call.

Those of the Triton kernels were chosen by what an H100 took for the scans of the paper's networks; the others
are derived from registers and memory.

Triton: a program is one or a few warps. In the forward kernels a thread holds 32 numbers of a tile, so that
state and decay rates take 64 registers; in the gradient kernel it holds 16, because `STRIDE` + 1 states,
their gradient, the decay rates and their gradient are alive at once, beside what is read ahead (255
registers; with a stride of 4 some go to memory). That kernel gets about as many programs as an H100 holds at
once, but at least one per sequence, for each has memory of its own for the states that it recomputes.

Mosaic GPU: a program is a warpgroup with 64 channels, N / 2 numbers of the tile a thread. The gradient kernel
holds the states of a step in registers, at most 128 of them, and one state a step in 64 kB of shared memory,
so that two programs share a processor.

TPU: blocks of time are whole lanes, 128 tokens or twice that. A tile of states is at most 32 states of 128
channels, or, with fewer channels, as many as fill the same registers: more would not stay in them. The state,
B and C of each token of a chunk, for one such tile, are the largest part of VMEM, 12 MB. Of all states VMEM
holds, for all of a sequence, the running state's gradient, and, twice, for they are outputs, the gradients of
A and h0.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

from jaxmamba3d.checks import check_choice, check_count, check_that
from jaxmamba3d.ops.backend import LANES, SUBLANES

WARP = 32
FORWARD_NUMBERS, GRADIENT_NUMBERS = 32, 16
GRADIENT_TILE = 16
MAX_GRADIENT_STATES, FEW_GRADIENT_STATES = 128, 32
PARALLEL_TILES = 2048
"""Chunks times tiles of `GRADIENT_TILE` channels: 16 for each of 132 processors, or nearly."""
GRADIENT_WARPS = 1024
"""What 132 processors with 8 warps of 255 registers hold at once."""
LONGEST_CHUNK, SHORTEST_CHUNK = 256, 32
STRIDE = 2
WARPGROUP_TILE = 64
"""What the layout of the registers wants."""
LONGEST_STEP, STEP_STATES = 8, 256
KEPT_STATE_BYTES = 64 * 2**10
TPU_WORKING_BYTES, TPU_VMEM_BYTES = 16 * 2**20, 60 * 2**20
"""For all else, and what a core has from v5 on, a little of it left to the compiler."""
OLD_TPU_STATE_BYTES = 11 * 2**20
"""What states may take before v5, where a core has 16 MB."""
TILES_A_TOKEN, WHOLE_STATES = 3, 5
"""What VMEM holds of each token, and of all states."""
MOST_FOLDS, TILE_STATES = 4, 32
"""Of a tile at most; three numbers for each of its states fit into the lanes of a register."""

_overrides: contextvars.ContextVar[dict[str, int]] = contextvars.ContextVar("overrides", default={})  # noqa: B039


@dataclasses.dataclass(frozen=True)
class TritonBlocks:
    """How the Triton kernels cut a call; all powers of two but `run` and `groups`.

    Args:
        chunk: tokens of a chunk.
        stride: tokens unrolled in every loop, and between two states that the gradient kernel stores.
        forward_tile, gradient_tile: channels of a tile in the forward kernels and in the gradient kernel.
        forward_warps, gradient_warps: warps of a program, of 32 threads each.
        gradient_states: states that the gradient kernel works on at once.
        gradient_part: their parts: a column of fewer numbers than a program has threads is read by those that
            need it, a longer one is handed from thread to thread.
        run: chunks that one program of the gradient kernel works off, one after another.
        groups: tiles that it works off for each chunk.
    """

    chunk: int
    stride: int
    forward_tile: int
    gradient_tile: int
    forward_warps: int
    gradient_warps: int
    gradient_states: int
    gradient_part: int
    run: int
    groups: int

    @property
    def row_tokens(self) -> int:
        """Tokens whose rows give every thread of a forward kernel a number."""
        return min(self.chunk, max(1, WARP * self.forward_warps // self.forward_tile))


def triton_chunk(batch: int, length: int, channels: int) -> int:
    """Tokens of a chunk for a call of [B, L, D]: as many as leave `PARALLEL_TILES`."""
    chunk = _power_of_two(batch * length * math.ceil(channels / GRADIENT_TILE) // PARALLEL_TILES)
    chunk = min(LONGEST_CHUNK, max(SHORTEST_CHUNK, chunk), max(STRIDE, _power_of_two(length)))
    return _overrides.get().get("chunk", chunk)


def triton_blocks(batch: int, length: int, channels: int, states: int, chunk: int) -> TritonBlocks:
    """The sizes for a call of [B, L, D] with N states, in chunks of so many tokens.

    The gradient kernel keeps all channels of a chunk in one program where there are chunks enough, and then
    writes the gradients of B and C once; where there are not, each part of the channels writes its own,
    summed afterwards.
    """
    states = _power_of_two(states)
    tiles = math.ceil(channels / GRADIENT_TILE)
    forward_tile = max(8, min(_power_of_two(channels), FORWARD_NUMBERS * WARP // states))
    forward_warps = max(1, states * forward_tile // (FORWARD_NUMBERS * WARP))
    states = states if states <= MAX_GRADIENT_STATES else FEW_GRADIENT_STATES
    chunks = batch * math.ceil(length / chunk)
    warps = max(1, states * GRADIENT_TILE // (GRADIENT_NUMBERS * WARP))
    programs = GRADIENT_WARPS // warps
    splits = min(tiles, math.ceil(programs / chunks))
    blocks = TritonBlocks(
        chunk=chunk,
        stride=STRIDE,
        forward_tile=forward_tile,
        gradient_tile=GRADIENT_TILE,
        forward_warps=forward_warps,
        gradient_warps=warps,
        gradient_states=states,
        gradient_part=min(states, warps * WARP // 2),
        run=max(1, chunks // programs),
        groups=math.ceil(tiles / splits),
    )
    blocks = dataclasses.replace(_overridden(blocks), chunk=chunk)
    for name, size in dataclasses.asdict(blocks).items():
        free = name in ("run", "groups")
        check_that(free or size == _power_of_two(size), name, "a power of two for the Triton kernels", size)
    check_that(blocks.stride <= chunk, "stride", f"at most the chunk's {chunk} tokens", blocks.stride)
    return blocks


def leaves_gpu_idle(batch: int, length: int, channels: int) -> bool:
    """Whether a call of [B, L, D] has no more than `PARALLEL_TILES` of the shortest chunks."""
    return batch * length * math.ceil(channels / GRADIENT_TILE) <= PARALLEL_TILES * SHORTEST_CHUNK


@dataclasses.dataclass(frozen=True)
class MosaicGpuBlocks:
    """How the Mosaic GPU kernels cut a call.

    Args:
        chunk: tokens of a chunk, a multiple of `step`.
        step: tokens that are copied to shared memory at once, and unrolled.
    """

    chunk: int
    step: int


def mosaic_gpu_blocks(length: int, states: int) -> MosaicGpuBlocks:
    """The sizes for a call of [B, L, D] with N states."""
    step = min(LONGEST_STEP, _power_of_two(STEP_STATES // states + 1) // 2)
    kept = KEPT_STATE_BYTES // (4 * WARPGROUP_TILE * states)
    chunk = step * max(1, min(kept, math.ceil(length / step)))
    blocks = _overridden(MosaicGpuBlocks(chunk, step))
    wanted = f"a multiple of the step of {blocks.step}"
    check_that(blocks.chunk % blocks.step == 0, "chunk", wanted, blocks.chunk)
    return blocks


@dataclasses.dataclass(frozen=True)
class TpuBlocks:
    """How the TPU kernels cut a call.

    Args:
        chunk: tokens of a block: a multiple of 128, or all.
        tile: channels of a block: 128, or all.
        fold: parts of a tile's states that lie side by side in registers, where channels leave lanes empty.
        height: states of such a part, whole registers.
    """

    chunk: int
    tile: int
    fold: int
    height: int

    def state_tiles(self, states: int) -> int:
        """Tiles of `fold` times `height` states that all states make."""
        return math.ceil(states / (self.fold * self.height))

    def state_bytes(self, channels: int, states: int) -> int:
        """VMEM that states take."""
        whole = WHOLE_STATES * self.state_tiles(states) * math.ceil(channels / LANES)
        return 4 * LANES * self.height * (TILES_A_TOKEN * self.chunk + whole)


def tpu_blocks(length: int, channels: int, states: int, *, old: bool) -> TpuBlocks:
    """The sizes for a call of [B, L, D] with N states, on a TPU before v5 or a newer one."""
    chunk, tile = min(length, LANES if old else 2 * LANES), min(channels, LANES)
    side_by_side = min(LANES // channels, states // SUBLANES, MOST_FOLDS)
    fold = max(1, side_by_side) if channels % SUBLANES == 0 else 1
    registers = math.ceil(states / (fold * SUBLANES))
    height = SUBLANES * min(registers, TILE_STATES // (fold * SUBLANES))
    return _overridden(TpuBlocks(chunk, tile, fold, height))


BLOCKS = {
    "pallas_triton": TritonBlocks,
    "pallas_mosaic_gpu": MosaicGpuBlocks,
    "pallas_mosaic_tpu": TpuBlocks,
}
"""Of each implementation that has some."""


def block_sizes(implementation: str) -> set[str]:
    """The names of the sizes of an implementation's blocks; none if it has no blocks."""
    blocks = BLOCKS.get(implementation)
    return {field.name for field in dataclasses.fields(blocks)} if blocks else set()


Overrides = tuple[tuple[str, int], ...]


def override_blocks(**fields: int) -> contextlib.AbstractContextManager[None]:
    """Sets those of the fields that a kernel's blocks have, for all calls inside and their gradients.

    A function that `jax.jit` has compiled keeps the blocks of its first call.

    Raises:
        ValueError: no kernel's blocks have such a field, or a value is no whole number above 0.
    """
    known = sorted(set().union(*map(block_sizes, BLOCKS)))
    for name, value in fields.items():
        check_choice("the name of a block's size", name, known)
        check_count(name, value)
    return overriding(tuple((_overrides.get() | fields).items()))


def block_overrides() -> Overrides:
    """What is set where this is asked: with the shapes it decides the blocks."""
    return tuple(_overrides.get().items())


@contextlib.contextmanager
def overriding(overrides: Overrides) -> Iterator[None]:
    """Sets these overrides and no others."""
    token = _overrides.set(dict(overrides))
    try:
        yield
    finally:
        _overrides.reset(token)


def _overridden(blocks):
    fields = {field.name for field in dataclasses.fields(blocks)}
    return dataclasses.replace(blocks, **{k: v for k, v in _overrides.get().items() if k in fields})


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(0, number - 1).bit_length()
