"""The page of a run: what it is, its scores, each fold, its settings."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.config_json import to_json
from jaxmamba3d.evaluation import (
    SCORES,
    SUMMARY,
    Number,
    ScoredModel,
    conventions_of,
    quoted_metrics,
    read_model,
    row_of,
)
from jaxmamba3d.experiment.epochs import Epochs, read_epochs
from jaxmamba3d.experiment.report import page
from jaxmamba3d.experiment.report.fold_section import (
    fold_section,
    postprocessing_part,
    scores_of_folds,
    scores_without_and_with,
)
from jaxmamba3d.files import check_writable, replacing
from jaxmamba3d.run import Run
from jaxmamba3d.wording import counted, duration, enumerated, sizes

logger = logging.getLogger(__name__)

REPORT = "report.html"


def write_report(run: Run, output: str | Path | None = None) -> Path:
    """Writes one HTML file that needs no other: settings, scores and pictures of a run, finished or not.

    No device is touched, so it may be written beside a training.

    Args:
        run: the run; what its folds do not have yet is noted in the page.
        output: the file, in a folder that is made if missing; None: report.html in the run folder.

    Returns:
        The file.

    Raises:
        ValueError: the output cannot be written, a file of the run is damaged, or its folds were scored under
            different protocols.
    """
    output = run.folder / REPORT if output is None else Path(output)
    check_that(not output.is_dir(), "output", "a file", f"the folder {output}")
    check_writable(output.parent, "the folder of the output")
    text = report_page(run)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    logger.info("report written to %s", output)
    return output


def report_page(run: Run) -> str:
    """The HTML that `write_report` writes."""
    epochs = {fold: read_epochs(run.fold_folder(fold)) for fold in run.folds()}
    scored = [fold for fold in epochs if (run.fold_folder(fold) / SCORES / SUMMARY).is_file()]
    folders = [run.fold_folder(fold) / SCORES for fold in scored]
    model = read_model(run.net.name, folders) if scored else None
    models = dict(zip(scored, model.folds, strict=True)) if model else {}
    name = run.folder.resolve().name
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return page.page(
        f"{run.net.name} on {run.plans.dataset_name}",
        f"Run {name}, as it was on {now}",
        [
            page.tiles(_tiles(run, model, epochs)),
            page.section("Overview", page.facts(_overview(run)), *_lists(run)),
            page.section("Scores", *_scores(run, model, models)),
            *(fold_section(run, fold, epochs[fold], models.get(fold)) for fold in epochs),
            page.section("Settings", *_settings(run)),
        ],
    )


def _tiles(run: Run, model: ScoredModel | None, epochs: Mapping[int, Epochs | None]) -> dict[str, str]:
    """The scores, or before there are any, how far the training has come."""
    trained = [found for found in epochs.values() if found]
    values = {}
    if model is not None:
        for metric, title in quoted_metrics(model.protocol).items():
            found = row_of(model, (metric,))["mean", metric]
            values[f"mean {title}"] = dataclasses.replace(found, sd=math.nan, fold_sd=math.nan).markdown()
        values["cases scored"] = f"{len(model.cases):,}"
    elif trained:
        best = [found.best_score for found in trained if found.best]
        values["best mean pseudo-Dice"] = Number(max(best, default=math.nan)).markdown()
        values["epochs done"] = enumerated(found.done for found in trained)
    folds = len(run.splits())
    values["folds scored"] = f"{len(model.evaluations) if model else 0}" + (f" of {folds}" if folds else "")
    if trained:
        values["time of training"] = duration(sum(found.seconds for found in trained))
    return values


def _overview(run: Run) -> dict[str, str]:
    config, plan = run.config, run.configuration
    facts = {
        "Network": run.net.name,
        "Parameters": f"{run.parameter_count():,}",
        "Features of the stages": enumerated(run.net.features),
        "Computed in": run.net.dtype,
        "Dataset": run.plans.dataset_name,
        "Image channels": str(run.net.in_channels),
        "Configuration": config.data.configuration,
        "Spacing": f"{sizes(plan.spacing)} mm",
        "Patch": f"{sizes(plan.patch_size)} voxels",
        "Batch size": str(plan.batch_size),
    }
    if run.splits():  # of imported weights the config does not know it
        steps = counted(config.train.steps_per_epoch, "step")
        facts["Epochs"] = f"{config.train.epochs}, each of {steps}"
        facts["Optimizer"] = config.optim.optimizer
        facts["Learning rate"] = _schedule(config)
    return facts | {"Devices": run.devices() or "unknown"}


def _lists(run: Run) -> list[str]:
    packages = (f"{name} {version}" for name, version in run.versions().items())
    lists = {"Structures": enumerated(run.labels.structures), "Versions": enumerated(packages, "unknown")}
    return [page.paragraph(f"{name}: {content}") for name, content in lists.items()]


def _schedule(config: ExperimentConfig) -> str:
    optim = config.optim
    if optim.schedule == "constant":
        return f"{optim.learning_rate:g}, constant"
    period = f", period {counted(optim.cosine_period, 'epoch')}" if optim.schedule == "cosine" else ""
    return f"{optim.schedule} up to {optim.learning_rate:g}{period}, by {optim.schedule_unit}"


def _scores(run: Run, model: ScoredModel | None, models: Mapping[int, ScoredModel]) -> list[str]:
    """All folds together, and each."""
    if not run.folds():
        return [page.paragraph("No fold has begun yet.", "missing")]
    if model is None:
        return [page.paragraph("No fold has been scored yet: that follows a fold's last epoch.", "missing")]
    parts = []
    missing = [fold for fold in range(len(run.splits())) if fold not in models]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        folds = "Fold" if len(missing) == 1 else "Folds"
        parts.append(page.paragraph(f"{folds} {enumerated(missing)} {verb} not scored yet."))
    parts.append(scores_of_folds(model, models))
    spread = "Mean ± standard deviation over the cases"
    if len(models) > 1:
        spread += ", those of all folds together in the last column (± over the means of the folds)"
    means = "the last row is the mean over the structures, ± over the cases' means."
    parts.append(page.paragraph(f"{spread}; {means} {conventions_of(model.protocol)}"))
    if len(models) > 1 and (decision := run.postprocessing()):
        parts.append(page.heading("Post-processing that predictions are given"))
        parts.append(postprocessing_part(decision))
        parts += scores_without_and_with(run.folder, model)
    return parts


def _settings(run: Run) -> list[str]:
    return [
        page.folded("Config: everything that the run depends on", page.code(to_json(run.config))),
        page.folded("Net: with what the plans decided", page.code(to_json(run.net))),
    ]
