"""Sums of overlapping windows that march along X, kept for as many planes as a window has."""

from collections.abc import Iterator, Sequence

import numpy as np


class RollingSums:
    """Weighted logits and their weights, in a ring of planes.

    Args:
        size: X, Y, Z of the volume.
        weights: of a window's voxels, [x, y, z] float32.
        num_classes: of the logits.
    """

    def __init__(self, size: Sequence[int], weights: np.ndarray, num_classes: int):
        self._weights = weights
        self._weight_sum = np.zeros((len(weights), *size[1:]), np.float32)
        self._logits = np.zeros((*self._weight_sum.shape, num_classes), np.float32)
        self._first = 0

    def add(self, corner: Sequence[int], weighted: np.ndarray) -> None:
        """Adds a window of weighted logits [x, y, z, K], none of whose planes was given out yet."""
        across = tuple(
            slice(start, start + n) for start, n in zip(corner[1:], weighted.shape[1:3], strict=True)
        )
        for x, (values, weights) in enumerate(zip(weighted, self._weights, strict=True), start=corner[0]):
            row = x % len(self._weights)
            self._logits[row, *across] += values
            self._weight_sum[row, *across] += weights

    def planes_before(self, x: int) -> Iterator[tuple[int, np.ndarray]]:
        """Number and mean logits [Y, Z, K] of the planes before x that were not given out yet."""
        for number in range(self._first, x):
            row = number % len(self._weights)
            yield number, self._logits[row] / self._weight_sum[row, ..., None]
            self._logits[row] = 0
            self._weight_sum[row] = 0
        self._first = max(self._first, x)
