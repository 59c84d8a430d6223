"""What a trained fold is worth: its validation cases predicted, scored and drawn."""

import logging
import math
import shutil
from pathlib import Path

from jaxmamba3d.data import Case, Workspace, read_label, read_volume
from jaxmamba3d.data.nifti import upright
from jaxmamba3d.evaluation import (
    POSTPROCESSED,
    SCORES,
    VALIDATION,
    Evaluation,
    OverlayCase,
    Pair,
    Protocol,
    choose_postprocessing,
    dataset_protocol,
    evaluate_pairs,
    overlay_figure,
    write_postprocessed,
)
from jaxmamba3d.experiment.prediction import predict
from jaxmamba3d.experiment.summary import write_summary
from jaxmamba3d.files import write_json
from jaxmamba3d.inference.predict import SEGMENTATION
from jaxmamba3d.labels import Labels
from jaxmamba3d.run import POSTPROCESSING, Run

logger = logging.getLogger(__name__)

OVERLAY_CASES = 6


def predict_validation_cases(run: Run, workspace: Workspace, fold: int) -> None:
    """Predicts a fold's validation cases, of which several processes predict a share each."""
    cases = _validation_cases(workspace, fold)
    predict(run, cases, run.fold_folder(fold) / VALIDATION, folds=[fold])


def score_validation_cases(run: Run, workspace: Workspace, fold: int) -> Evaluation:
    """Scores a fold's predicted validation cases, draws overlays and decides on post-processing.

    Ends with the fold's summary.json. The scores are those of the predictions as they are; those of the post-
    processed ones lie beside them.
    """
    folder = run.fold_folder(fold)
    cases = _validation_cases(workspace, fold)
    protocol = dataset_protocol(run.labels)
    pairs = validation_pairs(run, workspace, fold)
    scores = evaluate_pairs(pairs, folder / SCORES, protocol=protocol)
    overlays = (_overlay(case, folder / VALIDATION, run.labels) for case in cases[:OVERLAY_CASES])
    overlay_figure(overlays, folder / "overlays.png", class_names=protocol.names)
    log_scores(scores)
    logger.info("mean Dice %.3f; scores, curves and overlays are in %s", scores.mean["dice"], folder)
    decide_on_postprocessing(pairs, run.labels, folder, protocol)
    write_summary(run, fold)
    return scores


def log_scores(scores: Evaluation) -> None:
    """Says each structure's Dice and distance."""
    for structure, statistics in scores.structures.items():
        dice, distance = statistics["dice"], statistics["hd95_mm"]
        spread = "" if math.isnan(dice.sd) else f" ± {dice.sd:.3f}"
        logger.info("%s: Dice %.3f%s, HD95 %.2f mm", structure, dice.mean, spread, distance.mean)


def validation_pairs(run: Run, workspace: Workspace, fold: int) -> list[Pair]:
    """Prediction and truth of each of a fold's validation cases."""
    folder = run.fold_folder(fold) / VALIDATION
    return [
        Pair(case.name, _prediction_file(folder, case), case.label)
        for case in _validation_cases(workspace, fold)
    ]


def decide_on_postprocessing(pairs: list[Pair], labels: Labels, folder: Path, protocol: Protocol) -> None:
    """Writes the decision on validation cases to the folder of a fold or a run.

    Where it changes anything, post-processed predictions and their scores are put beside it.
    """
    decision = choose_postprocessing(pairs, labels)
    write_json(folder / POSTPROCESSING, decision.to_json())
    processed, scores = (folder / f"{name}{POSTPROCESSED}" for name in (VALIDATION, SCORES))
    for outdated in (processed, scores):
        shutil.rmtree(outdated, ignore_errors=True)
    if decision.steps:
        pairs = write_postprocessed(pairs, decision, processed)
        found = evaluate_pairs(pairs, scores, protocol=protocol)
        logger.info("mean Dice %.3f after post-processing; scores in %s", found.mean["dice"], scores)


def _validation_cases(workspace: Workspace, fold: int) -> list[Case]:
    names = set(workspace.split(fold)["val"])
    return [case for case in workspace.dataset.cases if case.name in names]


def _prediction_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}{SEGMENTATION}"


def _overlay(case: Case, predictions: Path, labels: Labels) -> OverlayCase:
    image = read_volume(case.images)
    truth, _ = read_label(case.label)
    prediction, _ = read_label(_prediction_file(predictions, case))
    return OverlayCase(
        case.name,
        *(upright(array, image.geometry) for array in (image.array[0], truth, prediction)),
        spacing=image.spacing,
        ignore_label=labels.ignore,
        structures=[*labels.structures.values()],
    )
