"""Linear resampling of a volume that arrives plane by plane, so that it is never whole in memory.

The rules are those of `resampling`: linear interpolation between voxel centres with the border repeated, or
the nearest plane along an axis across distant slices.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxmamba3d.data.taps import taps_of


class PlaneResampler:
    """Takes the planes of a volume [X, Y, Z, K] along X in order, and gives those of the resampled one.

    Args:
        shape: X, Y, Z of the volume.
        new_shape: wanted.
        separate_axis: the axis that takes nearest planes, see `resampling.separate_axis`; None for none.

    Numerics: float64 inside, then rounded to the planes' dtype; planes of an equal shape are untouched.
    """

    def __init__(self, shape: Sequence[int], new_shape: Sequence[int], separate_axis: int | None):
        self.shape, self.new_shape = tuple(shape), tuple(new_shape)
        self._axes = [
            _Neighbours(n, new, nearest=axis == separate_axis)
            for axis, (n, new) in enumerate(zip(shape, new_shape, strict=True))
        ]
        self._previous: np.ndarray | None = None
        self._added = self._given = 0

    def add(self, plane: np.ndarray) -> Iterator[np.ndarray]:
        """The next plane [Y, Z, K]; yields the resampled planes [Y', Z', K] that it completes."""
        across = self._axes[0]
        self._added += 1
        while self._given < len(across.high) and across.high[self._given] < self._added:
            low, weight = across.low[self._given], across.weight[self._given]
            self._given += 1
            mixed = plane if low == self._added - 1 else self._previous
            if weight:
                mixed = mixed * (1 - weight) + plane * np.float64(weight)
            for axis, neighbours in enumerate(self._axes[1:]):
                mixed = neighbours.interpolate(mixed, axis)
            yield mixed.astype(plane.dtype, copy=False)
        self._previous = plane


class _Neighbours:
    """For each new index the two old ones that it lies between, and how near it is to the higher one."""

    def __init__(self, count: int, new_count: int, *, nearest: bool):
        self.unchanged = count == new_count
        taps = taps_of(count, new_count)
        if nearest or self.unchanged:
            self.low = self.high = taps.nearest
            self.weight = np.zeros(new_count)
        else:
            self.low, self.high = taps.neighbours
            # At the ends both neighbours are one voxel, which needs no mixing.
            self.weight = np.where(self.low < self.high, taps.shares[1], 0)

    def interpolate(self, array: np.ndarray, axis: int) -> np.ndarray:
        if self.unchanged:
            return array
        lower = array.take(self.low, axis)
        if not self.weight.any():
            return lower
        weight = np.expand_dims(self.weight, tuple(a for a in range(array.ndim) if a != axis))
        interpolated = array.take(self.high, axis) * weight
        interpolated += lower * (1 - weight)
        return interpolated
