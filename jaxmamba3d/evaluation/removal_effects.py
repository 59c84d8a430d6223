"""What removing smaller components changes in the counts that Dice is made of."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.evaluation.components import boxes_of, keep_largest, smaller_components
from jaxmamba3d.evaluation.parallel import map_in_threads
from jaxmamba3d.evaluation.segmentations import Box, Pair, joint_box, read_segmentation
from jaxmamba3d.labels import Labels


class Effects(NamedTuple):
    """Counts of voxels by predicted and true value over the cases, and what each candidate makes of them.

    Voxels that are background in both are left out.

    Args:
        before: [cases, values, values].
        after: [cases, candidates, values, values].
        removed: voxels of each candidate's smaller components in all cases.
    """

    before: np.ndarray
    after: np.ndarray
    removed: list[int]


def effects_of(
    candidates: Sequence[tuple[int, ...]],
    steps: Sequence[tuple[int, ...]],
    pairs: Sequence[Pair],
    labels: Labels,
    *,
    threads: int | None = None,
    progress: bool = True,
) -> Effects:
    """What each of several structures that keep only their largest component does to the cases.

    Args:
        candidates: label values of each structure that is tried, on its own.
        steps: of the structures that keep only their largest component before that.
        pairs: a prediction and its reference per case.
        labels: of the dataset.
        threads, progress: see `map_in_threads`.

    Raises:
        ValueError: a file cannot be read or holds undeclared labels.
    """
    of_case = functools.partial(_effects_on_case, candidates=candidates, steps=steps, labels=labels)
    cases = map_in_threads(of_case, pairs, description="post-processing", threads=threads, progress=progress)
    before, after, removed = zip(*cases, strict=True)
    return Effects(np.stack(before), np.stack(after), np.sum(removed, axis=0).tolist())


def _effects_on_case(
    pair: Pair, *, candidates: Sequence[tuple[int, ...]], steps: Sequence[tuple[int, ...]], labels: Labels
) -> Effects:
    prediction, reference = read_segmentation(pair.prediction), read_segmentation(pair.reference)
    for path, found in ((pair.prediction, prediction), (pair.reference, reference)):
        undeclared = sorted(set(found.boxes) - labels.declared)
        check_that(not undeclared, str(path), f"of the labels {sorted(labels.declared)}", undeclared)
    boxes = [seg.boxes[v] for seg in (prediction, reference) for v in labels.values if v in seg.boxes]
    # What is background in both counts for no Dice.
    box = joint_box(boxes) or (slice(0),) * 3
    ours, theirs = keep_largest(prediction.labels[box], steps), reference.labels[box]
    size = max(labels.declared) + 1

    def counts(where: np.ndarray, box: Box) -> np.ndarray:
        both = ours[box][where].astype(np.int64) * size + theirs[box][where]
        return np.bincount(both, minlength=size**2).reshape(size, size)

    counted = (ours > 0) | (theirs > 0)
    if labels.ignore is not None:
        counted &= theirs != labels.ignore
    before, after, removed = counts(counted, (...,)), [], []
    for candidate, part in zip(candidates, boxes_of(ours, candidates), strict=True):
        smaller = smaller_components(np.isin(ours[part], candidate))
        moved = counts(smaller & counted[part], part)
        without = before - moved
        without[0] += moved.sum(axis=0)
        after.append(without)
        removed.append(int(np.count_nonzero(smaller)))
    return Effects(before, np.stack(after), removed)


def mean_dice(counts: np.ndarray, values: tuple[int, ...]) -> float:
    """Over the cases that have the structure in either segmentation; NaN without any.

    Args:
        counts: [cases, values, values], predicted and true.
        values: of the structure.
    """
    true_positive = counts[:, values][:, :, values].sum(axis=(1, 2))
    in_either = counts[:, values].sum(axis=(1, 2)) + counts[:, :, values].sum(axis=(1, 2))
    present = in_either > 0
    return float(np.mean(2 * true_positive[present] / in_either[present])) if present.any() else np.nan
