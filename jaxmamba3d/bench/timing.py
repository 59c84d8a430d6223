"""Timing of compiled programs."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmamba3d.checks import check_count


class Timing(NamedTuple):
    """Seconds a call: the median, and the distance of the quartiles."""

    median: float
    spread: float


def time_calls(
    call: Callable[[], Any], *, repeats: int, wait: Callable[[Any], Any] = jax.block_until_ready
) -> Timing:
    """Times a call that was compiled and has run before.

    Args:
        call: what is timed.
        repeats: how often, at least 1.
        wait: called with the result; returns when it is there.

    Raises:
        ValueError: repeats is below 1.
    """
    check_count("repeats", repeats)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        wait(call())
        seconds.append(time.perf_counter() - start)
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return Timing(float(median), float(high - low))
