"""Which structures keep only their largest component, chosen on validation cases by nnU-Net's rule.

Source: nnU-Net v2, `postprocessing/remove_connected_components.py`, `determine_postprocessing`.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.data import read_label, write_segmentation
from jaxmamba3d.data.cases import ENDINGS
from jaxmamba3d.evaluation.components import keep_largest
from jaxmamba3d.evaluation.parallel import map_in_threads
from jaxmamba3d.evaluation.removal_effects import Effects, effects_of, mean_dice
from jaxmamba3d.evaluation.segmentations import Pair, check_pairs
from jaxmamba3d.files import without_nan
from jaxmamba3d.labels import Labels
from jaxmamba3d.wording import counted

logger = logging.getLogger(__name__)

FOREGROUND = "foreground"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What keeping only the largest component of one structure does to the validation cases.

    Args:
        structure: its name; "foreground" is the union of all.
        labels: its label values.
        dice_before: its mean Dice on what the trials before left; of the foreground, the structures' mean.
        dice_after: the same without its smaller components.
        removed_voxels: how many voxels they have, in all cases together.
        kept: whether the rule keeps the step.
    """

    structure: str
    labels: tuple[int, ...]
    dice_before: float
    dice_after: float
    removed_voxels: int
    kept: bool


@dataclasses.dataclass(frozen=True)
class Postprocessing:
    """A decision: the trials in their order, of which those kept are applied.

    Args:
        trials: see `Trial`.
        cases: how many cases it was decided on.
    """

    trials: tuple[Trial, ...]
    cases: int

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Label values of each structure that keeps only its largest component, in order."""
        return tuple(trial.labels for trial in self.trials if trial.kept)

    def to_json(self) -> dict[str, Any]:
        """As plain content of a JSON file."""
        return without_nan(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Postprocessing":
        """What `to_json` made.

        Raises:
            ValueError: it is something else.
        """

        def trial(entry):
            dice = {name: _number(entry[name]) for name in ("dice_before", "dice_after")}
            return Trial(**{**entry, **dice, "labels": tuple(entry["labels"])})

        try:
            return cls(tuple(trial(entry) for entry in content["trials"]), content["cases"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a post-processing must be trials and cases, got {content}") from error


def apply_postprocessing(segmentation: np.ndarray, decision: Postprocessing) -> np.ndarray:
    """Sets the smaller components of each structure that was decided on to 0, in order.

    Args:
        segmentation: labels [X, Y, Z], whole numbers.
        decision: from `choose_postprocessing`.

    Returns:
        [X, Y, Z] of the same dtype; the argument is left as it is.
    """
    return keep_largest(segmentation, decision.steps)


def write_postprocessed(
    pairs: Sequence[Pair], decision: Postprocessing, folder: Path, *, progress: bool = True
) -> list[Pair]:
    """Writes each prediction post-processed as FOLDER/CASE.nii.gz.

    Returns:
        The new predictions with their references.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(pair: Pair) -> Pair:
        segmentation, geometry = read_label(pair.prediction)
        path = folder / f"{pair.case}{ENDINGS[0]}"
        write_segmentation(path, apply_postprocessing(segmentation, decision), geometry)
        return dataclasses.replace(pair, prediction=path)

    return map_in_threads(write, pairs, description="removing components", progress=progress)


def choose_postprocessing(
    pairs: Sequence[Pair], labels: Labels, *, threads: int | None = None, progress: bool = True
) -> Postprocessing:
    """Decides by nnU-Net's rule, on the mean Dice of each structure over the cases.

    First the whole foreground keeps only its largest component, if the structures' mean Dice rises and none
    falls; then each class or region in turn, on what is best so far, if its own Dice rises. Dice is
    2 TP / (2 TP + FP + FN), left out where a case has none of the three; ignored voxels do not count. The
    cases are read once for the foreground and once for every group of structures that do not overlap, so
    twice without regions; only those in work are in memory.

    Args:
        pairs: a prediction and its reference per case.
        labels: of the dataset.
        threads, progress: see `map_in_threads`.

    Raises:
        ValueError: no cases, files that differ in shape or geometry or cannot be read, or undeclared labels.
    """
    check_that(bool(pairs), "pairs", "at least one case", "none")
    check_pairs(pairs)
    values = tuple(value for value in labels.values if value)
    trials: list[Trial] = []

    def effects(candidates: Sequence[tuple[int, ...]]) -> Effects:
        steps = tuple(trial.labels for trial in trials if trial.kept)
        return effects_of(candidates, steps, pairs, labels, threads=threads, progress=progress)

    structures = labels.structures
    found = effects([values])
    before = np.array([mean_dice(found.before, wanted) for wanted in structures.values()])
    after = np.array([mean_dice(found.after[:, 0], wanted) for wanted in structures.values()])
    # Means, not nanmeans, and NaN compares false: as in nnU-Net, a class that never occurs decides.
    rises = after.mean() > before.mean() and not (after < before).any()
    trials.append(
        Trial(FOREGROUND, values, float(before.mean()), float(after.mean()), found.removed[0], bool(rises))
    )
    for group in _disjoint_groups(structures.items()) if len(structures) > 1 else ():
        found = effects([wanted for _, wanted in group])
        for number, (name, wanted) in enumerate(group):
            before = mean_dice(found.before, wanted)
            after = mean_dice(found.after[:, number], wanted)
            trials.append(Trial(name, wanted, before, after, found.removed[number], after > before))
    decision = Postprocessing(tuple(trials), len(pairs))
    _log(decision)
    return decision


def _disjoint_groups(
    structures: Iterable[tuple[str, tuple[int, ...]]],
) -> Iterable[list[tuple[str, tuple[int, ...]]]]:
    """Neighbours in the order whose decisions do not depend on each other, as they share no label value."""
    group: list[tuple[str, tuple[int, ...]]] = []
    for name, values in structures:
        taken = set(itertools.chain.from_iterable(values for _, values in group))
        if taken & set(values):
            yield group
            group = []
        group.append((name, values))
    if group:
        yield group


def _log(decision: Postprocessing) -> None:
    for trial in decision.trials:
        if trial.kept:
            logger.info(
                "post-processing keeps the largest component of %s: Dice %.4f -> %.4f on %s, %d voxels less",
                trial.structure,
                trial.dice_before,
                trial.dice_after,
                counted(decision.cases, "case"),
                trial.removed_voxels,
            )
    if not decision.steps:
        cases = counted(decision.cases, "case")
        logger.info("post-processing changes nothing: no removal raises Dice on %s", cases)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
