"""Scores of a folder of predictions: every case and structure, their summary, and the files of both."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from jaxmamba3d.checks import check_choice
from jaxmamba3d.data import is_dataset, read_dataset, read_labels
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
    `output_dir`.

    Args:
        predictions_dir: folder of predicted segmentations.
        labels_dir: folder of reference segmentations, or a dataset folder (see `find_pairs`).
        output_dir: folder of the results, made if it is missing.
        protocol: a `Protocol`, the name of a published one (see `PROTOCOLS`), or "default": every foreground
            label that the dataset, or the dataset.json beside `labels_dir`, declares; without one, that the
            labels hold.
        cases: names of the cases to score, such as one fold's; None: all of both folders.
        threads, progress: see `map_in_threads`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: cases lack a file, differ in shape or geometry, cannot be read or hold undeclared labels;
            the message names them all, and nothing is written.
    """
    pairs = find_pairs(predictions_dir, labels_dir, cases)
    if protocol == "default":
        check_pairs(pairs)
        protocol = _default_protocol(Path(labels_dir), pairs, progress)
    elif isinstance(protocol, str):
        check_choice("protocol", protocol, ("default", *sorted(PROTOCOLS)))
        protocol = get_protocol(protocol)
    return evaluate_pairs(pairs, output_dir, protocol=protocol, threads=threads, progress=progress)


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


def _default_protocol(labels_dir: Path, pairs: list[Pair], progress: bool) -> Protocol:
    if is_dataset(labels_dir):
        return dataset_protocol(read_dataset(labels_dir).labels)
    dataset_json = labels_dir.resolve().parent / "dataset.json"
    if dataset_json.is_file():
        return dataset_protocol(read_labels(dataset_json))
    bar = tqdm(pairs, desc="labels", unit="case", disable=not progress)
    found = sorted({label for pair in bar for label in read_segmentation(pair.reference).boxes})
    if not found:
        raise ValueError(f"{labels_dir}: no foreground in any label, and no {dataset_json}; name a protocol")
    return Protocol("default", {f"label {label}": (label,) for label in found})
