"""Overlap and surface metrics of two binary masks.

A mask's surface is its voxels with at least one of the six face neighbours outside the mask; beyond the array
is outside. Source: medpy 0.5, `medpy/metric/binary.py` (`dc`, `hd95`), whose numbers these functions give.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

from jaxmamba3d.checks import check_shape, check_that


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity: 2 |P and R| / (|P| + |R|).

    Args:
        prediction: mask P [X, Y, Z], bool.
        reference: mask R [X, Y, Z], bool.

    Returns:
        From 0 to 1; NaN where both masks are empty (nnU-Net's convention).
    """
    _check_masks(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return 2 * np.count_nonzero(prediction & reference) / total if total else np.nan


def hausdorff95(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> float:
    """95th percentile of the distances of each mask's surface to the other's, both directions pooled.

    Args:
        prediction: mask [X, Y, Z], bool.
        reference: mask [X, Y, Z], bool.
        spacing: voxel size of each axis in mm; 1 for a distance in voxels.

    Returns:
        In the unit of `spacing`; NaN where both masks are empty, infinity where one is.
    """
    return hausdorff95_of(surface_distances(prediction, reference, spacing))


def normalized_surface_distance(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> float:
    """Share of the surface voxels of both masks that lie within a tolerance of the other's surface.

    Surface voxels count alike, as in MONAI's `compute_surface_dice`; DeepMind's `surface-distance` weighs
    surface elements by their area instead.

    Args:
        prediction: mask [X, Y, Z], bool.
        reference: mask [X, Y, Z], bool.
        spacing: voxel size of each axis in mm.
        tolerance_mm: distance up to which a surface voxel counts as right.

    Returns:
        From 0 to 1; NaN where both masks are empty, 0 where one is.
    """
    return surface_share_within(surface_distances(prediction, reference, spacing), tolerance_mm)


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Distance of every surface voxel of each mask to the nearest one of the other mask.

    Args:
        prediction: mask [X, Y, Z], bool.
        reference: mask [X, Y, Z], bool.
        spacing: voxel size of each axis in mm; 1 for distances in voxels.

    Returns:
        Distances [surface voxels of both], float64, in the unit of `spacing`, the prediction's first;
        infinite where the other mask is empty.
    """
    _check_masks(prediction, reference)
    valid = len(spacing) == 3 and min(spacing) > 0
    check_that(valid, "spacing", "three positive sizes", tuple(spacing))
    ours, theirs = (np.argwhere(surface(mask)) * np.float64(spacing) for mask in (prediction, reference))
    if not (len(ours) and len(theirs)):
        return np.full(len(ours) + len(theirs), np.inf)
    # Surfaces are thin: of good predictions, trees of their points are faster than distance transforms.
    # Balanced ones take longer on a grid, where many points have the same coordinate.
    our_tree, their_tree = (KDTree(x, compact_nodes=False, balanced_tree=False) for x in (ours, theirs))
    return np.concatenate([their_tree.query(ours)[0], our_tree.query(theirs)[0]])


def hausdorff95_of(distances: np.ndarray) -> float:
    """`hausdorff95` from what `surface_distances` returned."""
    if not len(distances):
        return np.nan
    return float(np.percentile(distances, 95)) if np.isfinite(distances[0]) else np.inf


def surface_share_within(distances: np.ndarray, tolerance: float) -> float:
    """`normalized_surface_distance` from what `surface_distances` returned."""
    # Headers hold spacing in float32: five voxels of 0.4 mm are 2.00000003 mm, and within 2 mm.
    return float(np.mean(distances <= tolerance * (1 + 1e-6))) if len(distances) else np.nan


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask [X, Y, Z] with a face neighbour outside it or outside the array, bool."""
    padded = np.pad(mask, 1)
    inside = (slice(1, -1),) * 3
    interior = mask.copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            interior &= padded[*inside[:axis], side, *inside[axis + 1 :]]
    return mask & ~interior


def _check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    check_shape("prediction", prediction, "[X, Y, Z]", (None,) * 3)
    check_shape("reference", reference, "[X, Y, Z] of the prediction", prediction.shape)
    for name, mask in (("prediction", prediction), ("reference", reference)):
        check_that(mask.dtype == bool, name, "a bool mask", mask.dtype)
