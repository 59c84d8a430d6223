"""summary.json: a fold in numbers, for scripts."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxmamba3d.evaluation import POSTPROCESSED, SCORES, SUMMARY, read_evaluation
from jaxmamba3d.experiment.epochs import Epochs, read_epochs
from jaxmamba3d.files import without_nan, write_json
from jaxmamba3d.run import Run


def write_summary(run: Run, fold: int) -> None:
    """Writes `fold_K/summary.json` from what the fold's folder holds; see `fold_summary`."""
    write_json(run.fold_folder(fold) / SUMMARY, fold_summary(run, fold))


def fold_summary(run: Run, fold: int) -> dict[str, Any]:
    """What a script wants to know of a fold, as plain content of strict JSON: what is no number is None.

    Returns:
        `net` {name, parameters}, `dataset`, `fold`, `configuration`, `patch_size` and `spacing_mm` (X, Y, Z),
        `batch_size`; `training`, None without metrics.csv {epochs, planned_epochs, seconds, best_epoch,
        best_mean_pseudo_dice, last: the last epoch's columns of metrics.csv}, epochs counted from 1;
        `validation` and `validation_postprocessed`, None where not scored {protocol, cases, mean: metric ->
        number, structures: structure -> metric -> {mean, sd, cases}}; `versions`, `devices`.
    """
    folder = run.fold_folder(fold)
    content = {
        "net": {"name": run.net.name, "parameters": run.parameter_count()},
        "dataset": run.plans.dataset_name,
        "fold": fold,
        "configuration": run.config.data.configuration,
        "patch_size": run.configuration.patch_size,
        "spacing_mm": run.configuration.spacing,
        "batch_size": run.configuration.batch_size,
        "training": _training(read_epochs(folder), run.config.train.epochs),
        "validation": _validation(folder / SCORES),
        "validation_postprocessed": _validation(folder / f"{SCORES}{POSTPROCESSED}"),
        "versions": run.versions(),
        "devices": run.devices(),
    }
    return without_nan(content)


def _training(epochs: Epochs | None, planned: int) -> dict[str, Any] | None:
    if epochs is None:
        return None
    return {
        "epochs": epochs.done,
        "planned_epochs": planned,
        "seconds": epochs.seconds,
        "best_epoch": epochs.best,
        "best_mean_pseudo_dice": epochs.best_score,
        "last": dict(epochs.rows[epochs.done]),
    }


def _validation(scores: Path) -> dict[str, Any] | None:
    if not (scores / SUMMARY).is_file():
        return None
    evaluation = read_evaluation(scores)
    return {
        "protocol": evaluation.protocol.name,
        "cases": len(evaluation.cases),
        "mean": evaluation.mean,
        "structures": {
            structure: {metric: dataclasses.asdict(found) for metric, found in statistics.items()}
            for structure, statistics in evaluation.structures.items()
        },
    }
