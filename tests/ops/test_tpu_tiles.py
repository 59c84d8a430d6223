"""Columns are repeated bit for bit, and sums over channels and states are those of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_contract import assert_like_reference, random_arguments

from jaxmamba3d.ops.selective_scan import tpu_block
from jaxmamba3d.ops.selective_scan.blocks import override_blocks, tpu_blocks
from jaxmamba3d.ops.selective_scan.tpu_columns import in_three_parts, permuted_rows, repeated
from jaxmamba3d.ops.selective_scan.tpu_sums import line_sums, line_tokens, one_register, row_sums

SHAPES = [(8, 4), (16, 2), (32, 1), (8, 1), (24, 1), (8, 3)]
"""Of a tile: its height, and the parts of its lanes."""


@pytest.mark.parametrize("all_multiplied", [True, False])
@pytest.mark.parametrize(("height", "fold"), SHAPES)
def test_numbers_are_repeated_bit_for_bit(height, fold, all_multiplied):
    random = np.random.default_rng(0)
    exponents = random.uniform(-30, 38, (height * fold, 5))
    columns = (random.choice([-1, 1], exponents.shape) * 10**exponents).astype(np.float32)
    columns[0] = [0, 1, np.float32(1) / 3, -(2.0**-20), 1 + 2.0**-23]
    order, lanes = [3, 4, 0, 2, 1], fold * 24

    @jax.jit
    def tiles_of(x):
        return repeated(in_three_parts(x), None if all_multiplied else x, height, fold, lanes, order)

    tiles = tiles_of(columns)
    assert sorted(tiles) == [0, 1, 2, 3, 4]
    for token, tile in tiles.items():
        parts = columns[:, token].reshape(fold, height)
        expected = np.concatenate([np.tile(part[:, None], 24) for part in parts], axis=1)
        np.testing.assert_array_equal(tile, expected)


@pytest.mark.parametrize(
    ("height", "fold", "expected"),
    [(32, 1, 24), (24, 1, 16), (16, 1, 16), (8, 1, 8), (16, 2, 8), (8, 2, 0), (8, 4, 0)],
)
def test_permuted_rows_are_whole_registers_of_one_tile(height, fold, expected):
    assert permuted_rows(height, fold) == expected


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("height", [8, 24])
def test_rows_hold_the_sums_over_states(count, height):
    tiles = np.random.default_rng(0).normal(size=(count, height, 12)).astype(np.float32)
    found = jax.jit(lambda x: row_sums([one_register(tile) for tile in x]))(tiles)
    expected = tiles.astype(np.float64).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "fold"), SHAPES)
def test_lines_hold_the_sums_of_the_parts_of_the_lanes(height, fold):
    tiles = np.random.default_rng(0).normal(size=(8, height, fold * 24)).astype(np.float32)
    lines = line_sums([jnp.asarray(tile) for tile in tiles], fold)
    tokens = line_tokens(height)
    assert len(lines) == 8 // tokens
    found = np.array(lines).reshape(-1, fold, tokens, height).swapaxes(1, 2).reshape(8, fold, height)
    expected = tiles.astype(np.float64).reshape(8, height, fold, 24).sum(-1).swapaxes(1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "states", "expected"),
    [
        (64, 32, (2, 16, 1)),
        (32, 32, (4, 8, 1)),
        (24, 64, (4, 8, 2)),
        (16, 8, (1, 8, 1)),
        (33, 32, (1, 32, 1)),
        (128, 64, (1, 32, 2)),
        (640, 256, (1, 32, 8)),
        (128, 40, (1, 32, 2)),
        (1, 1, (1, 8, 1)),
    ],
)
def test_tiles_fill_four_registers(channels, states, expected):
    blocks = tpu_blocks(1000, channels, states, old=False)
    assert (blocks.fold, blocks.height, blocks.state_tiles(states)) == expected
    assert blocks.fold * blocks.tile <= 128
    assert blocks.chunk == 256
    assert tpu_blocks(1000, channels, states, old=True).chunk == 128


def test_groups_of_several_registers_give_what_those_of_one_do(monkeypatch):
    """Whole groups, and a rest that fills no register."""
    arguments = random_arguments(1, 37, 8, 16)
    monkeypatch.setattr(tpu_block, "INTERPRETED_GROUP", 16)
    jax.clear_caches()
    assert_like_reference(arguments, "pallas_mosaic_tpu", 1e-5)
    jax.clear_caches()


@pytest.mark.parametrize("sizes", [{"fold": 1}, {"height": 8}])
def test_other_tiles_give_the_same(sizes):
    with override_blocks(**sizes):
        assert_like_reference(random_arguments(1, 20, 8, 40), "pallas_mosaic_tpu", 1e-5)
