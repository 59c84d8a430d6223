"""The one place where test tolerances come from: dtype, and the length of the sums behind a number."""

import numpy as np

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def relative_error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} is not {expected.shape}"
    assert np.isfinite(actual).all(), "not all values are finite"
    return float(np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-30))


def rounding(dtype: str, length: int) -> float:
    """Relative rounding of a sum of `length` terms: 4 epsilon, growing with the root of the length."""
    return 4 * EPSILON[dtype] * max(1.0, np.sqrt(length))


def assert_close(actual, expected, tolerance: float, what: str = "") -> None:
    """Asserts relative_error <= tolerance."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g} above {tolerance:.3g}"
