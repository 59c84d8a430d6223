"""Scores of a folder of predictions: every case and structure, their summary, and the files of both."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxmamba3d.checks import check_choice, check_positive
from jaxmamba3d.data import is_dataset, read_dataset, read_labels
from jaxmamba3d.evaluation.protocols import PROTOCOLS, Protocol, dataset_protocol, get_protocol
from jaxmamba3d.evaluation.scoring import Score, score_case
from jaxmamba3d.evaluation.segmentations import (
    Pair,
    check_pairs,
    find_pairs,
    raise_problems,
    read_segmentation,
)
from jaxmamba3d.files import check_writable, write_text
from jaxmamba3d.machine import core_count

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
        scores: one entry a case and structure, sorted by case.
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

    Writes `scores.csv` (one row a case and structure), `summary.json` and `summary.md` to `output_dir`.

    Args:
        predictions_dir: folder of predicted segmentations.
        labels_dir: folder of reference segmentations, or a dataset folder (see `find_pairs`).
        output_dir: folder of the results, made if it is missing.
        protocol: a `Protocol`, the name of a published one (see `PROTOCOLS`), or "default": every foreground
            label that the dataset, or the dataset.json beside `labels_dir`, declares; without one, that the
            labels hold.
        cases: names of the cases to score, such as one fold's; None: all of both folders.
        threads: cases scored at once; the work is done outside Python's lock. None: one a processor, at
            most 8, because every case in work holds its volumes in memory.
        progress: show a progress bar.

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
        pairs: a prediction and its reference a case.
        output_dir, threads, progress: see `evaluate_folders`.
        protocol: how they are scored.

    Raises:
        ValueError: files differ in shape or geometry, cannot be read or hold undeclared labels; the message
            names them all, and nothing is written.
    """
    if threads is not None:
        check_positive("threads", threads)
    check_writable(output_dir, "output")
    check_pairs(pairs)

    def score_or_problem(pair: Pair) -> list[Score] | str:
        try:
            return score_case(pair, protocol)
        except ValueError as error:
            return f"{pair.case}: {error}"

    with ThreadPoolExecutor(threads or min(8, core_count())) as pool:
        results = pool.map(score_or_problem, pairs)
        outcomes = list(tqdm(results, total=len(pairs), desc="scoring", unit="case", disable=not progress))
    raise_problems([outcome for outcome in outcomes if isinstance(outcome, str)], len(pairs))
    evaluation = summarize([score for outcome in outcomes for score in outcome], protocol)
    _write(evaluation, Path(output_dir))
    return evaluation


def summarize(scores: Iterable[Score], protocol: Protocol) -> Evaluation:
    """Statistics over the cases for each structure, and their mean over the structures, NaN left out."""
    scores = tuple(scores)
    structures = {
        structure: {
            metric: _statistic([getattr(score, metric) for score in scores if score.structure == structure])
            for metric in METRICS
        }
        for structure in protocol.classes
    }
    mean = {
        metric: _statistic([stats[metric].mean for stats in structures.values()]).mean for metric in METRICS
    }
    return Evaluation(protocol, scores, structures, mean)


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


def _statistic(values: list[float]) -> Statistic:
    present = np.array([value for value in values if not math.isnan(value)])
    count = len(present)
    return Statistic(
        mean=float(present.mean()) if count else math.nan,
        sd=float(present.std(ddof=1)) if count > 1 else math.nan,
        cases=count,
    )


def _write(evaluation: Evaluation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("scores.csv", _csv(evaluation)),
        ("summary.json", _json(evaluation)),
        ("summary.md", _markdown(evaluation)),
    ):
        write_text(folder / name, text)


def _csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    fields = [field.name for field in dataclasses.fields(Score)]
    rows = csv.DictWriter(text, fields, lineterminator="\n")
    rows.writeheader()
    for score in evaluation.scores:
        values = dataclasses.asdict(score)
        rows.writerow({name: "" if value != value else value for name, value in values.items()})
    return text.getvalue()


def _json(evaluation: Evaluation) -> str:
    """NaN, which JSON does not know, as null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(plain(dataclasses.asdict(evaluation)), indent=2, allow_nan=False) + "\n"


def _markdown(evaluation: Evaluation) -> str:
    protocol = evaluation.protocol
    units = sorted(("mm", "voxels"), key=lambda unit: unit != protocol.hd95_unit)
    columns = {"dice": "Dice"}
    columns |= {f"hd95_{unit}": f"HD95 ({unit})" for unit in units}
    columns |= {"nsd": f"NSD at {protocol.nsd_tolerance_mm:g} mm"}
    digits = {"dice": 4, "nsd": 4, "hd95_mm": 2, "hd95_voxels": 2}

    def cell(metric: str, mean: float, sd: float = math.nan) -> str:
        numbers = [f"{value:.{digits[metric]}f}" for value in (mean, sd) if not math.isnan(value)]
        return " ± ".join(numbers) or "-"

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |\n"

    text = f"# Scores: protocol {protocol.name}, {len(evaluation.cases)} cases\n\n"
    text += row(["structure", *columns.values(), "cases"]) + row(["---", *["---:"] * (len(columns) + 1)])
    for structure, stats in evaluation.structures.items():
        cells = [cell(metric, stats[metric].mean, stats[metric].sd) for metric in columns]
        text += row([structure, *cells, str(stats["dice"].cases)])
    text += row(["**mean**", *(cell(metric, evaluation.mean[metric]) for metric in columns), ""])
    return text + (
        "\nMean ± standard deviation over the cases; the last row is the mean over the structures. "
        f"A structure in neither segmentation: Dice {_words(protocol.dice_both_absent)}, "
        f"HD95 {_words(protocol.hd95_both_absent)}. "
        f"In only one: Dice 0, HD95 {_words(protocol.hd95_one_absent)}.\n"
    )


def _words(convention: float | str) -> str:
    if isinstance(convention, str):
        return f"the image's {convention}"
    return "left out" if math.isnan(convention) else f"{convention:g}"
