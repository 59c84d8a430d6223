"""A fold's part of the page: how its training went, its cases, its pictures."""

import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

from jaxmamba3d.evaluation import (
    POSTPROCESSED,
    SCORES,
    SUMMARY,
    Column,
    Number,
    Postprocessing,
    ScoredModel,
    Table,
    Words,
    cases_table,
    quoted_metrics,
    read_model,
    structures_table,
)
from jaxmamba3d.experiment.epochs import Epochs
from jaxmamba3d.experiment.report import page
from jaxmamba3d.files import load_json
from jaxmamba3d.run import Run
from jaxmamba3d.training import is_imported
from jaxmamba3d.training.report import METRICS
from jaxmamba3d.wording import counted, duration, number

FINISHED = "finished"
SHOWN_CASES, SHOWN_EPOCHS = 12, 10
"""Rows of longer tables that are shown before they are unfolded; about how many epochs are."""
PICTURES = {
    "curves.png": "Loss, Dice on validation patches and learning rate by epoch",
    "patches.png": "Validation patches: image, truth, and the net's segmentation with the truth's outline",
    "overlays.png": "Validation cases: image, truth, and prediction with the truth's outline in white",
}


def fold_section(run: Run, fold: int, epochs: Epochs | None, model: ScoredModel | None) -> str:
    """A fold, finished or not.

    Args:
        run: its run.
        fold: its number.
        epochs: that are finished; None without any.
        model: its scores; None before it has any.
    """
    badge, missing = _state(run, fold, epochs, model)
    parts = [page.paragraph(missing, "missing")] if missing else []
    parts.append(page.facts(_facts(run, fold, epochs, going_on=badge != FINISHED)))
    parts += _training(run, fold, epochs)
    if model is not None:
        parts += _scores(run, fold, model)
        parts += _picture(run, fold, "overlays.png")
    elif epochs is not None:
        parts += _picture(run, fold, "patches.png")
    parts += _other_pictures(run, fold)
    return page.section(f"Fold {fold}", *parts, badge=badge, kind="good" if badge == FINISHED else "open")


def scores_of_folds(model: ScoredModel, folds: Mapping[int, ScoredModel]) -> str:
    """A table a metric of several folds, and one for all metrics of a single one, by structure.

    Args:
        model: all folds together.
        folds: by their number.
    """
    metrics = quoted_metrics(model.protocol)
    if len(folds) == 1:
        return page.table(structures_table({Column(title): (model, name) for name, title in metrics.items()}))
    return page.side_by_side(
        {
            title: page.table(
                structures_table(
                    {Column(f"fold {fold}"): (found, name) for fold, found in folds.items()}
                    | {Column("all folds"): (model, name)}
                )
            )
            for name, title in metrics.items()
        }
    )


def postprocessing_part(decision: Postprocessing) -> str:
    """What was tried, and what came of it."""
    kept = [trial.structure for trial in decision.trials if trial.kept]
    chosen = f"keeps only the largest component of: {', '.join(kept)}" if kept else "changes nothing"
    rows = [
        [
            Words(trial.structure, bold=trial.kept),
            Number(trial.dice_before),
            Number(trial.dice_after),
            Number(trial.removed_voxels, digits=0),
            Words("kept" if trial.kept else "dropped", bold=trial.kept),
        ]
        for trial in decision.trials
    ]
    titles = ("largest component of", "Dice before", "Dice after", "voxels removed", "decision")
    found = Table([Column(title) for title in titles], rows)
    return page.paragraph(f"Decided on {counted(decision.cases, 'case')}: it {chosen}.") + page.table(found)


def scores_without_and_with(folder: Path, model: ScoredModel) -> list[str]:
    """What post-processing does to the scores of a fold or a run; nothing where it changes nothing.

    Args:
        folder: of the fold or the run.
        model: its name and protocol.
    """
    processed = folder / f"{SCORES}{POSTPROCESSED}"
    if not (processed / SUMMARY).is_file():
        return []
    both = read_model(model.name, [folder / SCORES, processed])
    models = dict(zip(("as predicted", "post-processed"), both.folds, strict=True))
    metrics = quoted_metrics(model.protocol).items()
    columns = {
        Column(title, state): (found, metric)
        for (state, found), (metric, title) in itertools.product(models.items(), metrics)
    }
    return [page.heading("Scores without and with it"), page.table(structures_table(columns))]


def _state(run: Run, fold: int, epochs: Epochs | None, model: ScoredModel | None) -> tuple[str, str]:
    """A badge, and a sentence on what is not there yet; none where nothing is missing."""
    if epochs is None:
        if fold not in run.trained_folds():
            return "just begun", "No epoch is finished yet."
        if is_imported(run.checkpoints(fold)):
            badge, why = "imported", "It was imported: there is no record of the training here"
        else:
            badge, why = "no record", f"{METRICS} is missing: there is no record of the training"
        return badge, f"{why}." if model else f"{why}, and it is not scored."
    if model is None:
        planned = run.config.train.epochs
        if epochs.done < planned:
            return "unfinished", f"{epochs.done} of {planned} epochs are trained; scores follow the last."
        return "not scored", f"All {counted(epochs.done, 'epoch')} are trained; the scores are not there yet."
    scored_after = _stored(run, fold, "training", "epochs")
    if scored_after not in (None, epochs.done):
        return (
            "scores outdated",
            f"The scores are those after epoch {scored_after}; {epochs.done} are trained now.",
        )
    return FINISHED, ""


def _facts(run: Run, fold: int, epochs: Epochs | None, *, going_on: bool) -> dict[str, str]:
    facts = {}
    if epochs is not None:
        left = run.config.train.epochs - epochs.done if going_on else 0
        facts["Epochs"] = f"{epochs.done} of {epochs.done + left}" if left > 0 else f"{epochs.done}"
        facts["Time"] = duration(epochs.seconds)
        seconds = [row["seconds"] for row in epochs.rows.values() if "seconds" in row]
        if seconds:
            pace = statistics.median(seconds[-20:])
            facts["Time an epoch"] = f"{pace:.1f} s" if pace < 60 else duration(pace)
            if left > 0:
                facts["Time left at this pace"] = duration(pace * left)
        if epochs.best is not None:
            facts["Best epoch"] = f"{epochs.best}, mean pseudo-Dice {epochs.best_score:.4f}"
        last = epochs.rows[epochs.done]
        for column in ("train_loss", "validation_loss"):
            if column in last:
                facts[f"Last {_title(column)}"] = number(last[column])
    splits = run.splits()
    if fold < len(splits):
        split = splits[fold]
        facts["Cases"] = f"{len(split['train'])} to train on, {len(split['val'])} to validate"
    if (devices := _stored(run, fold, "devices")) is not None:
        facts["Devices"] = str(devices)
    return facts


def _training(run: Run, fold: int, epochs: Epochs | None) -> list[str]:
    if epochs is None:
        return []
    return [
        page.heading("Training"),
        *_picture(run, fold, "curves.png"),
        page.folded("Epochs in numbers", page.table(_epochs_table(epochs))),
    ]


def _epochs_table(epochs: Epochs) -> Table:
    """Some epochs evenly, the best and the last among them, with all columns there are."""
    numbers = sorted(epochs.rows)
    step = -(-len(numbers) // SHOWN_EPOCHS)
    shown = sorted({*numbers[::step], epochs.done, *([epochs.best] if epochs.best else [])})
    rows = []
    for epoch in shown:
        is_best = epoch == epochs.best
        words = [number(epochs.rows[epoch][column]) for column in epochs.columns]
        name = f"{epoch} (best)" if is_best else f"{epoch}"
        rows.append([Words(name, bold=is_best), *(Words(word, bold=is_best) for word in words)])
    return Table([Column("epoch"), *(Column(_title(column)) for column in epochs.columns)], rows)


def _scores(run: Run, fold: int, model: ScoredModel) -> list[str]:
    parts = [page.heading("Cases, worst first")]
    cases = cases_table(model)
    if len(cases.rows) <= SHOWN_CASES:
        parts.append(page.table(cases))
    else:
        parts.append(page.table(Table(cases.columns, cases.rows[:SHOWN_CASES])))
        rest = Table(cases.columns, cases.rows[SHOWN_CASES:])
        parts.append(page.folded(f"The other {len(rest.rows)} cases", page.table(rest)))
    if decision := run.postprocessing(fold):
        parts += [page.heading("Post-processing, decided on this fold"), postprocessing_part(decision)]
    return parts + scores_without_and_with(run.fold_folder(fold), model)


def _picture(run: Run, fold: int, name: str) -> list[str]:
    path = run.fold_folder(fold) / name
    if not path.is_file():
        return [page.paragraph(f"{name} is not there.", "missing")]
    return [page.picture(path, PICTURES[name], "chart" if name == "curves.png" else "overlays")]


def _other_pictures(run: Run, fold: int) -> list[str]:
    paths = sorted(run.fold_folder(fold).glob("*.png"))
    return [
        page.picture(path, path.stem.replace("_", " "))
        for path in paths
        if path.name not in PICTURES and not path.name.startswith(".")
    ]


def _stored(run: Run, fold: int, *keys: str) -> object:
    """An entry of the fold's summary.json; None if it has none."""
    path = run.fold_folder(fold) / SUMMARY
    found = load_json(path, "a fold's summary") if path.is_file() else None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _title(column: str) -> str:
    return column.replace("pseudo_dice", "pseudo-Dice").replace("_", " ")
