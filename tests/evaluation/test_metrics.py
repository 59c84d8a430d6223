"""Metrics against every pair of surface voxels, and against numbers worked out by hand."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from tolerances import assert_close, rounding

from jaxmamba3d.evaluation.metrics import (
    dice,
    hausdorff95,
    normalized_surface_distance,
    surface,
    surface_distances,
)

ANISOTROPIC = (3.0, 0.7, 1.25)


def random_mask(seed, density=0.02, shape=(7, 11, 9)):
    seeds = np.random.default_rng(seed).random(shape) < density
    seeds[tuple(np.random.default_rng(seed).integers(shape))] = True
    return binary_dilation(seeds, iterations=2)


def naive_surface(mask):
    """Coordinates of the voxels whose six neighbours are not all in the mask."""
    steps = [step for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
    inside = {tuple(voxel) for voxel in np.argwhere(mask)}
    return np.array([v for v in sorted(inside) if any(tuple(np.add(v, s)) not in inside for s in steps)])


def naive_distances(ours, theirs, spacing):
    """All pairs: medpy's definition without its distance transforms."""
    ours, theirs = naive_surface(ours) * spacing, naive_surface(theirs) * spacing
    pairs = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    return np.concatenate([pairs.min(1), pairs.min(0)])


def naive_percentile(values, share):
    """Linear between the two nearest ranks."""
    values = sorted(values)
    rank = share * (len(values) - 1)
    low = int(rank)
    high = min(low + 1, len(values) - 1)
    return values[low] + (rank - low) * (values[high] - values[low])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1, 1, 1), ANISOTROPIC])
def test_surface_metrics_are_those_of_all_pairs(seed, spacing):
    ours, theirs = random_mask(seed), random_mask(seed + 100)
    expected = naive_distances(ours, theirs, spacing)
    assert_close(surface_distances(ours, theirs, spacing), expected, rounding("float64", 3))
    wanted = naive_percentile(expected, 0.95)
    assert wanted > 0
    assert hausdorff95(ours, theirs, spacing) == pytest.approx(wanted, rel=1e-12)
    for tolerance in (0.5, 1.0, 2.0):
        share = np.mean(expected <= tolerance + 1e-6)
        assert normalized_surface_distance(ours, theirs, spacing, tolerance) == pytest.approx(
            share, rel=1e-12
        )


def test_surface_counts_the_edge_of_the_volume_as_outside():
    assert np.count_nonzero(~surface(np.ones((5, 4, 6), bool))) == 3 * 2 * 4
    # A voxel open only along a diagonal is interior: connectivity is by faces.
    mask = np.ones((5, 5, 5), bool)
    mask[1, 1, 2] = False
    assert not surface(mask)[2, 2, 2]
    assert surface(mask)[1, 2, 2]


def test_hausdorff95_pools_both_directions():
    ours, theirs = np.zeros((1, 1, 40), bool), np.zeros((1, 1, 40), bool)
    ours[..., :10] = True
    theirs[..., 0] = True
    # Distances 0..9 from the prediction, 0 from the reference: rank 0.95 * 10 of eleven, halfway from 8 to 9.
    assert hausdorff95(ours, theirs) == pytest.approx(8.5)
    assert hausdorff95(theirs, ours) == pytest.approx(8.5)
    assert hausdorff95(ours, theirs, (1, 1, 2)) == pytest.approx(17)


def test_nsd_tolerance_includes_spacing_rounded_to_float32():
    ours, theirs = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)
    ours[..., 0] = theirs[..., 5] = True
    spacing = (1, 1, float(np.float32(0.4)))
    assert 5 * spacing[2] > 2.0
    assert normalized_surface_distance(ours, theirs, spacing, 2.0) == 1
    assert normalized_surface_distance(ours, theirs, spacing, 1.999) == 0


def test_dice():
    ours, theirs = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    ours[:2] = True
    theirs[1:] = True
    assert dice(ours, theirs) == pytest.approx(2 * 16 / (32 + 48))
    assert dice(ours, ours) == 1
    assert dice(ours, ~ours) == 0


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert np.isnan(dice(empty, empty))
    assert np.isnan(hausdorff95(empty, empty))
    assert np.isnan(normalized_surface_distance(empty, empty, (1, 1, 1), 2))
    for ours, theirs in ((empty, full), (full, empty)):
        assert dice(ours, theirs) == 0
        assert hausdorff95(ours, theirs) == np.inf
        assert normalized_surface_distance(ours, theirs, (1, 1, 1), 2) == 0


def test_errors_name_the_argument():
    mask = np.ones((3, 4, 5), bool)
    with pytest.raises(ValueError, match=r"reference must have shape .*\[3, 4, 5\], got \[3, 4, 4\]"):
        dice(mask, mask[..., :4])
    with pytest.raises(ValueError, match="prediction must be a bool mask, got int64"):
        dice(mask.astype(np.int64), mask)
    with pytest.raises(ValueError, match="spacing must be three positive sizes"):
        hausdorff95(mask, mask, (1, 1))
