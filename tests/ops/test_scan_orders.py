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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_tokens(VOLUME, "XXZ"), "order must be one of XYZ, XZY, YXZ, ZXY, got 'XXZ'"),
        (lambda: to_volume(jnp.zeros((2, 60, 2)), (3, 4, 5), "XXZ"), "order must be one of XYZ, .*'XXZ'"),
        (lambda: to_tokens(VOLUME[0]), r"volume must be \[B, X, Y, Z, C\], got shape \[3, 4, 5, 2\]"),
        (
            lambda: to_volume(jnp.zeros((2, 59, 2)), (3, 4, 5)),
            r"tokens must have shape \[B, L, C\] = \[any, 60, any\], got \[2, 59, 2\]",
        ),
        (
            lambda: to_volume(jnp.zeros((2, 60, 2)), (60,)),
            r"shape must be the sizes along X, Y and Z, got \(60,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_volume_is_no_sequence():
    assert to_tokens(VOLUME[:0]).shape == (0, 60, 2)
