"""Models side by side: one table, as Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scored_models import ScoredModel, comparable
from jaxmamba3d.evaluation.summary import statistic, summarize
from jaxmamba3d.evaluation.summary_files import DIGITS, conventions_of, hd95_columns
from jaxmamba3d.evaluation.tables import Column, Number, Table, Words
from jaxmamba3d.files import check_writable, write_text

MEAN = "mean"


Row = dict[tuple[str, str], Number]
"""(structure or "mean", metric) -> mean and standard deviation (n - 1) over the cases of all folds, and over
the folds' means, NaN with fewer than two folds; for "mean", of the means over the structures."""


def compare_models(models: Sequence[ScoredModel], output: str | Path) -> dict[str, Row]:
    """Writes `comparison.md`, `comparison.csv` and `comparison.tex`: a row per model.

    Columns are Dice and HD95, in the protocol's unit first, for each structure and their mean. The best of
    several models is bold in each column.

    Args:
        models: from `find_models`.
        output: folder; made if missing.

    Returns:
        model -> its row.

    Raises:
        ValueError: the models cannot be compared; see `comparable`.
    """
    models = comparable(models)
    check_writable(output, "output")
    protocol = models[0].protocol
    metrics = {"dice": "Dice", **hd95_columns(protocol)}
    rows = {model.name: row_of(model, metrics) for model in models}
    table = _table(rows, metrics, protocol)
    title = f"Models: protocol {protocol.name}, {len(models[0].cases)} cases"
    legend = "Mean ± standard deviation over the cases"
    if max(len(model.evaluations) for model in models) > 1:
        legend += " of all folds (± over the means of the folds)"
    legend += f"; the last columns are means over the structures. {conventions_of(protocol)}"
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "comparison.md", f"# {title}\n\n{table.markdown()}\n{legend}\n")
    write_text(output / "comparison.tex", table.latex(f"{title}. {legend}"))
    write_text(output / "comparison.csv", _csv(rows, models))
    return rows


def row_of(model: ScoredModel, metrics: Iterable[str]) -> Row:
    """A model's numbers for each structure and their mean."""
    together = summarize(model.scores, model.protocol)
    by_fold = [summarize(evaluation.scores, model.protocol) for evaluation in model.evaluations]
    row: Row = {}
    for structure, statistics in together.structures.items():
        for metric in metrics:
            found = statistics[metric]
            folds = statistic(fold.structures[structure][metric].mean for fold in by_fold)
            row[structure, metric] = Number(found.mean, found.sd, folds.sd, DIGITS[metric])
    for metric in metrics:
        cases = [
            statistic(getattr(score, metric) for score in evaluation.scores if score.case == case).mean
            for evaluation in model.evaluations
            for case in evaluation.cases
        ]
        folds = statistic(fold.mean[metric] for fold in by_fold)
        row[MEAN, metric] = Number(together.mean[metric], statistic(cases).sd, folds.sd, DIGITS[metric])
    return row


def _table(rows: dict[str, Row], metrics: dict[str, str], protocol: Protocol) -> Table:
    rows = {model: dict(row) for model, row in rows.items()}
    keys = [(structure, metric) for structure in (*protocol.classes, MEAN) for metric in metrics]
    if len(rows) > 1:
        for key in keys:
            # What reads the same is equally good.
            shown = [float(row[key].text) for row in rows.values() if not math.isnan(row[key].mean)]
            best = (max if key[1] == "dice" else min)(shown, default=math.nan)
            for row in rows.values():
                row[key] = dataclasses.replace(row[key], bold=float(row[key].text) == best)
    columns = [Column("model"), *(Column(metrics[metric], structure) for structure, metric in keys)]
    return Table(columns, [[Words(model), *(row[key] for key in keys)] for model, row in rows.items()])


def _csv(rows: dict[str, Row], models: Sequence[ScoredModel]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(next(iter(rows.values())))
    parts = ("mean", "sd", "fold_sd")
    titles = [f"{structure} {metric} {part}" for structure, metric in keys for part in parts]
    writer.writerow(["model", "cases", "folds", *titles])
    for model in models:
        values = [getattr(rows[model.name][key], part) for key in keys for part in parts]
        numbers = ["" if math.isnan(value) else value for value in values]
        writer.writerow([model.name, len(model.cases), len(model.evaluations), *numbers])
    return text.getvalue()
