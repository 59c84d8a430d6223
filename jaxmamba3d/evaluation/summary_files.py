"""The files of an evaluation: `scores.csv`, `summary.json`, `summary.md` and `summary.tex`."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scoring import Score
from jaxmamba3d.evaluation.summary import Evaluation, summarize
from jaxmamba3d.evaluation.tables import Column, Number, Table, Words
from jaxmamba3d.files import load_json, without_nan, write_json, write_text

SUMMARY = "summary.json"
DIGITS = {"dice": 4, "nsd": 4, "hd95_mm": 2, "hd95_voxels": 2}


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes the four files, into a folder that is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.csv", _csv(evaluation))
    write_json(folder / SUMMARY, without_nan(dataclasses.asdict(evaluation)))
    table = _table(evaluation)
    title = f"Scores: protocol {evaluation.protocol.name}, {len(evaluation.cases)} cases"
    legend = (
        "Mean ± standard deviation over the cases; the last row is the mean over the structures. "
        + conventions_of(evaluation.protocol)
        + " NSD: left out where a structure is in neither, 0 where in only one."
    )
    write_text(folder / "summary.md", f"# {title}\n\n{table.markdown()}\n{legend}\n")
    write_text(folder / "summary.tex", table.latex(f"{title}. {legend}"))


def read_evaluation(folder: str | Path) -> Evaluation:
    """The evaluation that a folder's `summary.json` holds.

    Raises:
        FileNotFoundError: it has none.
        ValueError: the file holds something else.
    """
    path = Path(folder) / SUMMARY
    content = load_json(path, "the scores that `jaxmamba3d evaluate` writes")
    try:
        scores = [Score(**_with_nan(score, Score)) for score in content["scores"]]
        evaluation = summarize(scores, _protocol(content["protocol"]))
        found = {(score.case, score.structure) for score in scores}
        for place in itertools.product(evaluation.cases, evaluation.structures):
            if place not in found:
                raise KeyError("no score of {}'s {}".format(*place))
        return evaluation
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold scores that `jaxmamba3d evaluate` wrote, got {error!r}"
        ) from error


def hd95_columns(protocol: Protocol) -> dict[str, str]:
    """Metric -> title of the HD95 in each unit, the protocol's own first."""
    units = sorted(("mm", "voxels"), key=lambda unit: unit != protocol.hd95_unit)
    return {f"hd95_{unit}": f"HD95 ({unit})" for unit in units}


def conventions_of(protocol: Protocol) -> str:
    """What a protocol does with absent structures, in sentences."""
    return (
        f"A structure in neither segmentation: Dice {_words(protocol.dice_both_absent)}, "
        f"HD95 {_words(protocol.hd95_both_absent)}. "
        f"In only one: Dice 0, HD95 {_words(protocol.hd95_one_absent)}."
    )


def _csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    fields = [field.name for field in dataclasses.fields(Score)]
    rows = csv.DictWriter(text, fields, lineterminator="\n")
    rows.writeheader()
    for score in evaluation.scores:
        values = dataclasses.asdict(score)
        rows.writerow({name: "" if value != value else value for name, value in values.items()})
    return text.getvalue()


def _table(evaluation: Evaluation) -> Table:
    protocol = evaluation.protocol
    metrics = {"dice": "Dice", **hd95_columns(protocol), "nsd": f"NSD at {protocol.nsd_tolerance_mm:g} mm"}

    def cells(values: Mapping[str, tuple[float, float]]) -> list[Number]:
        return [Number(*values[metric], digits=DIGITS[metric]) for metric in metrics]

    rows: list[list[Words | Number]] = []
    for structure, statistics in evaluation.structures.items():
        values = {metric: (found.mean, found.sd) for metric, found in statistics.items()}
        rows.append([Words(structure), *cells(values), Words(str(statistics["dice"].cases))])
    means = {metric: (mean, math.nan) for metric, mean in evaluation.mean.items()}
    rows.append([Words("mean", bold=True), *cells(means), Words("")])
    return Table([Column(title) for title in ("structure", *metrics.values(), "cases")], rows)


def _words(convention: float | str) -> str:
    if isinstance(convention, str):
        return f"the image's {convention}"
    return "left out" if math.isnan(convention) else f"{convention:g}"


def _protocol(content: Mapping[str, Any]) -> Protocol:
    classes = {name: tuple(labels) for name, labels in content["classes"].items()}
    unscored = tuple(content["unscored_labels"])
    return Protocol(**{**_with_nan(content, Protocol), "classes": classes, "unscored_labels": unscored})


def _with_nan(content: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Null as NaN again, in the fields that are numbers."""
    numbers = {field.name for field in dataclasses.fields(cls) if "float" in str(field.type)}
    return {name: math.nan if value is None and name in numbers else value for name, value in content.items()}
