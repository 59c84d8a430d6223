"""Label maps at another shape: every label is interpolated linearly, and voxels go to the largest share.

Source: nnU-Net, preprocessing/resampling/default_resampling.py, which calls skimage.transform.resize for each
label; the arithmetic, to the last bit because ties decide borders, is that of `scipy.ndimage.zoom(order=1,
mode="nearest", grid_mode=True)`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxmamba3d.data.taps import Taps, taps_of

VOXELS_AT_ONCE = 2**19


def vote(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A label map of another shape; each voxel gets the label with the largest linearly interpolated share.

    An exact tie goes to the nearest-neighbour label if that is among the tied, else to the smallest.

    Args:
        label: [X, Y, Z] or [Y, Z], any integer dtype.
        shape: the new shape.

    Returns:
        an array of the new shape in the label's dtype.
    """
    if label.ndim == 2:
        return vote(label[None], (1, *shape))[0]
    taps = [taps_of(old, new) for old, new in zip(label.shape, shape, strict=True)]
    winner = np.empty(shape, label.dtype)
    step = max(1, VOXELS_AT_ONCE // winner[0].size)
    for start in range(0, shape[0], step):
        first = Taps(*(part[..., start : start + step] for part in taps[0]))
        _vote_slab(label, (first, *taps[1:]), winner[start : start + step])
    return winner


def _vote_slab(label: np.ndarray, taps: Sequence[Taps], winner: np.ndarray) -> None:
    """Fills new slices [x, Y, Z]: only where the eight old voxels around are not alike is there a vote."""
    _take(label, [axis.nearest for axis in taps], out=winner)
    sides = list(itertools.product((0, 1), repeat=3))
    corners = np.empty((len(sides), *winner.shape), label.dtype)
    for corner, side in zip(corners, sides, strict=True):
        _take(label, [axis.neighbours[n] for axis, n in zip(taps, side, strict=True)], out=corner)
    border = np.nonzero((corners[1:] != corners[0]).any(axis=0))
    if not border[0].size:
        return
    corners = corners[:, *border]
    x, y, z = (axis.shares[:, voxels] for axis, voxels in zip(taps, border, strict=True))
    weights = [x[i] * y[j] * z[k] for i, j, k in sides]
    nearest = winner[border]
    best, chosen = np.full(nearest.shape, -1.0), nearest.copy()
    for value in np.unique(corners):
        # One after the other, because the last bit of a sum follows its order.
        votes = sum(np.where(corner == value, w, 0.0) for corner, w in zip(corners, weights, strict=True))
        wins = (votes > best) | ((votes == best) & (nearest == value))
        chosen[wins], best[wins] = value, votes[wins]
    winner[border] = chosen


def _take(volume: np.ndarray, indices: Sequence[np.ndarray], out: np.ndarray) -> None:
    """`volume[np.ix_(*indices)]`, faster."""
    part = volume[indices[0]][:, indices[1]]
    np.take(part, indices[2], axis=2, out=out, mode="clip")
