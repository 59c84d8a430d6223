"""Scores of many cases, and their statistics."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scoring import Score

METRICS = ("dice", "hd95_mm", "hd95_voxels", "nsd")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A metric of one structure over the cases.

    Args:
        mean: mean of the cases that have a value; NaN without any.
        sd: their standard deviation (n - 1); NaN for fewer than two.
        cases: how many have a value.
    """

    mean: float
    sd: float
    cases: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate_folders` found.

    Args:
        protocol: how the cases were scored.
        scores: one entry per case and structure, sorted by case.
        structures: structure -> metric (dice, hd95_mm, hd95_voxels, nsd) -> its statistic over the cases.
        mean: metric -> mean over the structures' means.
    """

    protocol: Protocol
    scores: tuple[Score, ...]
    structures: dict[str, dict[str, Statistic]]
    mean: dict[str, float]

    @property
    def cases(self) -> tuple[str, ...]:
        """The scored cases' names, sorted."""
        return tuple(dict.fromkeys(score.case for score in self.scores))


def summarize(scores: Iterable[Score], protocol: Protocol) -> Evaluation:
    """Statistics over the cases for each structure, and their mean over the structures, NaN left out."""
    scores = tuple(scores)
    structures = {
        structure: {
            metric: statistic([getattr(score, metric) for score in scores if score.structure == structure])
            for metric in METRICS
        }
        for structure in protocol.classes
    }
    mean = {
        metric: statistic([stats[metric].mean for stats in structures.values()]).mean for metric in METRICS
    }
    return Evaluation(protocol, scores, structures, mean)


def statistic(values: Iterable[float]) -> Statistic:
    """Mean and standard deviation of the values that are not NaN."""
    present = np.array([value for value in values if not math.isnan(value)])
    count = len(present)
    return Statistic(
        mean=float(present.mean()) if count else math.nan,
        sd=float(present.std(ddof=1)) if count > 1 else math.nan,
        cases=count,
    )
