"""Scores of a folder of predictions: every case and structure, their summary, and the files of both."""

import contextlib
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from jaxmamba3d.checks import check_choice
from jaxmamba3d.data import is_dataset, read_dataset, read_labels
from jaxmamba3d.data.dataset import DESCRIPTION
from jaxmamba3d.evaluation.parallel import map_in_threads
from jaxmamba3d.evaluation.protocols import PROTOCOLS, Protocol, dataset_protocol, get_protocol
from jaxmamba3d.evaluation.scored_models import read_model
from jaxmamba3d.evaluation.scoring import Score, score_case
from jaxmamba3d.evaluation.segmentations import (
    Pair,
    check_pairs,
    find_pairs,
    raise_problems,
    read_segmentation,
)
from jaxmamba3d.evaluation.summary import Evaluation, summarize
from jaxmamba3d.evaluation.summary_files import write_evaluation
from jaxmamba3d.files import check_writable
from jaxmamba3d.labels import Labels
from jaxmamba3d.wording import enumerated

logger = logging.getLogger(__name__)


def evaluate_folders(
    predictions_dir: str | Path,
    labels_dir: str | Path,
    output_dir: str | Path,
    *,
    protocol: str | Protocol = "default",
    cases: Collection[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores every `CASE.nii.gz` or `CASE.nii` of a folder of predictions against that of a folder of labels.

    Writes `scores.csv` (one row per case and structure), `summary.json`, `summary.md` and `summary.tex` to
    `output_dir`. Warns of structures that no reference has, and of those that the dataset does not declare.

    Args:
        predictions_dir: folder of predicted segmentations.
        labels_dir: folder of reference segmentations, or a dataset folder (see `find_pairs`).
        output_dir: folder of the results, made if it is missing.
        protocol: a `Protocol`, the name of a published one (see `PROTOCOLS`), or "default": every foreground
            label that the dataset, or the dataset.json beside `labels_dir` or among the predictions,
            declares; without one, that the labels hold.
        cases: names of the cases to score, such as one fold's; None: all of both folders.
        threads, progress: see `map_in_threads`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: cases lack a file, differ in shape or geometry, cannot be read or hold undeclared labels;
            the message names them all, and nothing is written.
    """
    labels_dir = Path(labels_dir)
    pairs = find_pairs(predictions_dir, labels_dir, cases)
    if protocol == "default":
        check_pairs(pairs)
        protocol = _default_protocol(_source_of_labels(labels_dir, predictions_dir), pairs, progress)
    else:
        if isinstance(protocol, str):
            check_choice("protocol", protocol, ("default", *sorted(PROTOCOLS)))
            protocol = get_protocol(protocol)
        _warn_of_undeclared_values(protocol, _source_of_labels(labels_dir, predictions_dir))
    evaluation = evaluate_pairs(pairs, output_dir, protocol=protocol, threads=threads, progress=progress)
    _warn_of_absent_structures(evaluation)
    return evaluation


def evaluate_pairs(
    pairs: Sequence[Pair],
    output_dir: str | Path,
    *,
    protocol: Protocol,
    threads: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """As `evaluate_folders`, for files of any names.

    Args:
        pairs: a prediction and its reference per case.
        output_dir, threads, progress: see `evaluate_folders`.
        protocol: how they are scored.

    Raises:
        ValueError: files differ in shape or geometry, cannot be read or hold undeclared labels; the message
            names them all, and nothing is written.
    """
    check_writable(output_dir, "output")
    check_pairs(pairs)

    def score_or_problem(pair: Pair) -> list[Score] | str:
        try:
            return score_case(pair, protocol)
        except ValueError as error:
            return f"{pair.case}: {error}"

    outcomes = map_in_threads(
        score_or_problem, pairs, description="scoring", threads=threads, progress=progress
    )
    raise_problems([outcome for outcome in outcomes if isinstance(outcome, str)], len(pairs))
    evaluation = summarize([score for outcome in outcomes for score in outcome], protocol)
    write_evaluation(evaluation, Path(output_dir))
    return evaluation


def evaluate_together(folders: Sequence[str | Path], output_dir: str | Path) -> Evaluation:
    """Puts the scores of several folds together: statistics over the cases of all, in the same files.

    Args:
        folders: of the scores, as `evaluate_pairs` wrote them.
        output_dir: folder of the results, made if it is missing.

    Raises:
        FileNotFoundError: a folder has no summary.json.
        ValueError: they were scored under different protocols, or a summary.json is something else.
    """
    check_writable(output_dir, "output")
    model = read_model("all folds", [Path(folder) for folder in folders])
    scores = sorted(model.scores, key=lambda score: score.case)  # stable: structures stay in order
    evaluation = summarize(scores, model.protocol)
    write_evaluation(evaluation, Path(output_dir))
    return evaluation


def _default_protocol(source: Path, pairs: list[Pair], progress: bool) -> Protocol:
    declared = _declared_labels(source)
    if declared is not None:
        return dataset_protocol(declared)
    bar = tqdm(pairs, desc="labels", unit="case", disable=not progress)
    found = sorted({label for pair in bar for label in read_segmentation(pair.reference).boxes})
    if not found:
        folder = pairs[0].reference.parent
        raise ValueError(f"{folder}: no foreground in any label, and no {source}; name a protocol")
    return Protocol("default", {f"label {label}": (label,) for label in found})


def _source_of_labels(labels_dir: Path, predictions_dir: str | Path) -> Path:
    """The dataset.json of the dataset, beside the folder or among the predictions; or the folder of a dataset
    without one."""
    whole = is_dataset(labels_dir)
    description = (labels_dir if whole else labels_dir.resolve().parent) / DESCRIPTION
    if description.is_file():
        return description
    return labels_dir if whole else Path(predictions_dir) / DESCRIPTION


def _declared_labels(source: Path) -> Labels | None:
    """Of what `_source_of_labels` found; None if there is no such file."""
    if source.is_dir():
        return read_dataset(source).labels
    return read_labels(source) if source.is_file() else None


def _warn_of_undeclared_values(protocol: Protocol, source: Path) -> None:
    declared = None
    with contextlib.suppress(ValueError, OSError):  # it is needed for this warning alone
        declared = _declared_labels(source)
    if declared is None:
        return
    scored = {value for values in protocol.classes.values() for value in values}
    if missing := sorted(scored - declared.declared):
        logger.warning(
            "protocol %s scores label values that %s does not declare (%s); check `evaluate --protocol`",
            protocol.name,
            source,
            enumerated(missing),
        )


def _warn_of_absent_structures(evaluation: Evaluation) -> None:
    protocol = evaluation.protocol
    found = {score.structure for score in evaluation.scores if score.reference_voxels}
    absent = [structure for structure in protocol.classes if structure not in found]
    if not absent:
        return
    where = "where a prediction lacks them too"
    if math.isnan(protocol.dice_both_absent):
        fate = f"they are left out of the mean {where}"
    else:
        dice = f"their Dice is {protocol.dice_both_absent:g} {where}"
        fate = f"{dice}, and counts in the mean; check `evaluate --protocol`"
    logger.warning(
        "no reference has these structures of protocol %s: %s; %s", protocol.name, enumerated(absent), fate
    )
