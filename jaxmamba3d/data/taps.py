"""Where new voxels of a resampled axis fall on the old: i at s (i + 0.5) - 0.5, s = old size / new size."""

from typing import NamedTuple

import numpy as np


class Taps(NamedTuple):
    """The old voxels that each new one is made of.

    Args:
        neighbours: [2, n], the old voxels at either side; at the ends of the axis both are the same.
        shares: [2, n] float64, of each in the new voxel.
        nearest: [n], the old voxel at the smaller distance, the upper one of equals.
    """

    neighbours: np.ndarray
    shares: np.ndarray
    nearest: np.ndarray


def taps_of(count: int, new_count: int) -> Taps:
    """The taps of an axis of `new_count` voxels on one of `count`, whose border is repeated."""
    centres = (np.arange(new_count) + 0.5) * (count / new_count) - 0.5
    below = np.floor(centres)
    shares = 1 - (centres - below)
    neighbours = np.stack([below, below + 1]).clip(0, count - 1).astype(np.intp)
    nearest = np.floor(centres + 0.5).clip(0, count - 1).astype(np.intp)
    return Taps(neighbours, np.stack([shares, 1 - shares]), nearest)
