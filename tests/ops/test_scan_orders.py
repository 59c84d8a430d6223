"""The axis orders: which voxel comes after which, and that the way back is exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmamba3d.ops.scan_orders import SCAN_ORDERS, to_tokens, to_volume

VOLUME = jnp.arange(2 * 3 * 4 * 5 * 2).reshape(2, 3, 4, 5, 2)
STEPS = {"XYZ": (0, 0, 1), "XZY": (0, 1, 0), "YXZ": (0, 0, 1), "ZXY": (0, 1, 0)}


@pytest.mark.parametrize("order", SCAN_ORDERS)
def test_last_named_axis_runs_fastest(order):
    tokens = to_tokens(VOLUME, order)
    assert tokens.shape == (2, 60, 2)
    np.testing.assert_array_equal(tokens[:, 0], VOLUME[:, 0, 0, 0])
    np.testing.assert_array_equal(tokens[:, 1], VOLUME[:, *STEPS[order]])
    sizes = dict(zip("XYZ", VOLUME.shape[1:4], strict=True))
    # The first token after a whole run of the two faster axes is one step along the slowest.
    run = sizes[order[1]] * sizes[order[2]]
    step = tuple(int(axis == order[0]) for axis in "XYZ")
    np.testing.assert_array_equal(tokens[:, run], VOLUME[:, *step])


@pytest.mark.parametrize("order", SCAN_ORDERS)
def test_the_way_back_is_exact(order):
    np.testing.assert_array_equal(to_volume(to_tokens(VOLUME, order), (3, 4, 5), order), VOLUME)


def test_unknown_orders_are_named():
    with pytest.raises(ValueError, match="order must be one of XYZ, XZY, YXZ, ZXY, got 'XXZ'"):
        to_tokens(VOLUME, "XXZ")


def test_tokens_that_do_not_fill_the_volume_are_refused():
    with pytest.raises(
        ValueError, match=r"tokens must have shape \[B, L, C\] = \[any, 60, any\], got \[2, 59, 2\]"
    ):
        to_volume(jnp.zeros((2, 59, 2)), (3, 4, 5))
    with pytest.raises(ValueError, match=r"shape must be the sizes along X, Y and Z, got \(60,\)"):
        to_volume(jnp.zeros((2, 60, 2)), (60,))


def test_no_volume_is_no_sequence():
    assert to_tokens(VOLUME[:0]).shape == (0, 60, 2)
