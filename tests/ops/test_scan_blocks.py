"""The sizes of the kernels' blocks: results do not depend on them, and impossible ones are refused."""

import contextlib

import pytest
from scan_contract import assert_like_reference, random_arguments
from tolerances import rounding

from jaxmamba3d.ops.selective_scan import blocks, selective_scan
from jaxmamba3d.ops.selective_scan.blocks import override_blocks


@pytest.mark.parametrize(
    ("channels", "states", "chunk", "tokens"),
    [
        (64, 32, 256, 1),
        (128, 64, 256, 2),
        (256, 128, 256, 4),
        (512, 256, 256, 8),
        (512, 256, 4, 4),
        (8, 1, 64, 4),
    ],
)
def test_rows_give_every_thread_a_number(channels, states, chunk, tokens):
    found = blocks.triton_blocks(2, 4096, channels, states, chunk)
    assert found.row_tokens == tokens
    assert tokens == chunk or tokens * found.forward_tile >= 32 * found.forward_warps


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "channels"), [(300, 40), (256, 48), (97, 5)])
def test_programs_that_work_off_several_chunks_and_tiles(reverse, length, channels):
    """As for long sequences, whose gradient kernel has fewer programs than there are chunks."""
    arguments = random_arguments(2, length, channels, 3)
    with override_blocks(chunk=32, run=3, groups=2):
        tolerance = rounding("float32", length)
        assert_like_reference(arguments, "pallas_triton", tolerance, delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize(
    ("stride", "reverse", "shape"),
    [(1, True, (1, 21, 12, 100)), (8, False, (1, 21, 12, 100)), (4, True, (1, 21, 70, 3))],
)
def test_fewer_and_more_tokens_are_unrolled(stride, reverse, shape):
    """Than have their steps computed at once: 4 with 100 states, 1 with 3."""
    arguments = random_arguments(*shape)
    with override_blocks(chunk=8, stride=stride):
        tolerance = rounding("float32", 21)
        assert_like_reference(arguments, "pallas_triton", tolerance, delta_softplus=True, reverse=reverse)


def test_sizes_set_inside_of_others_join_them():
    expected = blocks.block_overrides()
    with override_blocks(chunk=64, stride=4), override_blocks(stride=8):
        found = blocks.triton_blocks(1, 4096, 64, 16, blocks.triton_chunk(1, 4096, 64))
        assert (found.chunk, found.stride) == (64, 8)
    with contextlib.suppress(KeyError), override_blocks(chunk=64):
        raise KeyError
    assert blocks.block_overrides() == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"chunk": 48}, "chunk must be a power of two for the Triton kernels, got 48"),
        ({"stride": 16, "chunk": 8}, "stride must be at most the chunk's 8 tokens, got 16"),
        ({"chunk": 0}, "chunk must be greater than 0, got 0"),
        ({"chunks": 32}, "the name of a block's size must be one of chunk, .*, got 'chunks'"),
    ],
)
def test_impossible_blocks_are_refused(sizes, message):
    """They would leave tokens out."""
    with pytest.raises(ValueError, match=message), override_blocks(**sizes):
        selective_scan(**random_arguments(1, 50, 3, 2), implementation="pallas_triton")


def test_a_chunk_of_broken_steps_is_refused():
    with (
        pytest.raises(ValueError, match="chunk must be a multiple of the step of 8, got 4"),
        override_blocks(chunk=4),
    ):
        blocks.mosaic_gpu_blocks(100, 16)
