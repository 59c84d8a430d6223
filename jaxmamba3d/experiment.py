"""An experiment from its data to its scores: prepare, train, validate."""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.data import (
    Case,
    Workspace,
    cases_in_folds,
    check_images,
    find_images,
    is_dataset,
    plan_workspace,
    read_dataset,
    read_label,
    read_volume,
    write_phantom_dataset,
)
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.evaluation import (
    Evaluation,
    OverlayCase,
    Pair,
    Postprocessing,
    Protocol,
    apply_postprocessing,
    choose_postprocessing,
    dataset_protocol,
    evaluate_pairs,
    overlay_figure,
    write_postprocessed,
)
from jaxmamba3d.files import check_writable, write_json
from jaxmamba3d.inference import make_net_predictor, predict_cases
from jaxmamba3d.run import POSTPROCESSING, Run, start_run
from jaxmamba3d.training import make_optimizer, restore_params, train_fold

logger = logging.getLogger(__name__)

OVERLAY_CASES = 6


def run_experiment(config: ExperimentConfig) -> Evaluation:
    """Prepares the data, trains the fold and scores its validation cases.

    Prepared data and finished epochs of an earlier call are kept.

    Args:
        config: the experiment.

    Returns:
        The scores of the fold's validation cases.

    Raises:
        FileNotFoundError, ValueError: data or settings are wrong; nearly all is found before training starts.
        FloatingPointError: the loss is no longer finite.
    """
    workspace = prepare(config)
    run = start_run(config, workspace)
    train(run, workspace)
    return validate(run, workspace)


def prepare(config: ExperimentConfig) -> Workspace:
    """Makes the phantoms if asked for, checks and plans the dataset, and preprocesses its cases."""
    data = config.data
    check_writable(config.output, "output")
    make_optimizer(config.optim, config.train)  # refuses schedules that do not fit the training
    check_that(bool(data.dataset), "data.dataset", "the folder of the dataset", "nothing")
    if data.phantoms is not None and not Path(data.dataset).exists():
        write_phantom_dataset(data.dataset, data.phantoms)
    if data.source is not None and not Path(data.dataset).is_dir():
        advice = f"name it with --data.dataset, or get it from {data.source}"
        raise FileNotFoundError(f"{data.dataset}: no such dataset folder; {advice}")
    work = Path(data.work or Path(config.output) / "work")
    workspace = plan_workspace(
        data.dataset,
        work,
        plans_file=data.plans,
        splits_file=data.splits,
        memory_gb=data.memory_gb,
        processes=data.processes,
    )
    workspace.split(data.fold)
    workspace.preprocess(data.configuration, processes=data.processes)
    return workspace


def train(run: Run, workspace: Workspace) -> None:
    """Trains the config's fold, or goes on where it stopped."""
    data, train_config = run.config.data, run.config.train
    split = workspace.split(data.fold)

    def batches(names: Sequence[str], seed: int):
        return training_batches(
            workspace.cases_folder(data.configuration),
            names,
            patch_size=run.configuration.patch_size,
            batch_size=run.configuration.batch_size,
            foreground_fraction=data.foreground_fraction,
            seed=seed,
            threads=data.read_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    identity = {
        "net": run.net.architecture(),
        **run.labels.to_json(),
        "patch_size": run.configuration.patch_size,
        "batch_size": run.configuration.batch_size,
        "training cases": sorted(split["train"]),
    }
    train_fold(
        run.build_net(),
        run.config,
        batch_size=run.configuration.batch_size,
        labels=run.labels,
        batch_dice=run.configuration.batch_dice,
        training_batches=batches(split["train"], train_config.seed),
        validation_batches=lambda: batches(split["val"], train_config.seed + 1),
        folder=run.fold_folder(data.fold),
        identity=identity,
    )


def cases_to_predict(run: Run, folder: str | Path) -> Sequence[Case]:
    """The cases of a folder of images; of a dataset those in none of the run's folds, or all if all are.

    Args:
        run: the trained run.
        folder: images alone, see `find_images`, or a dataset, see `read_dataset`.

    Raises:
        FileNotFoundError, ValueError: see `find_images` and `read_dataset`.
    """
    if not is_dataset(folder):
        return find_images(folder, run.net.in_channels)
    cases = read_dataset(folder).cases
    in_folds = cases_in_folds(run.splits())
    unseen = [case for case in cases if case.name not in in_folds]
    if not unseen:
        logger.info("all %d cases of %s are in the run's folds; all are predicted", len(cases), folder)
        return cases
    if len(unseen) < len(cases):
        what = "are in none of the run's folds; only these are predicted"
        logger.info("%d of %d cases of %s %s", len(unseen), len(cases), folder, what)
    return unseen


def predict(
    run: Run,
    cases: Sequence[Case],
    output: str | Path,
    *,
    folds: Sequence[int],
    checkpoint: str = "latest",
    mirroring: bool | None = None,
    probabilities: bool = False,
    postprocessing: Postprocessing | None = None,
) -> None:
    """Segments cases with the mean logits of trained folds, going on where an earlier call stopped; see
    `predict_cases`.

    Args:
        run: the trained run.
        cases: image files.
        output: folder of the segmentations.
        folds: which folds to average.
        checkpoint: latest | best.
        mirroring: average over mirrored copies; None: as the config says.
        probabilities: also write CASE.npz with the probabilities of all classes.
        postprocessing: which structures keep only their largest component, as `run.postprocessing()` has it.
    """
    check_choice("checkpoint", checkpoint, ("latest", "best"))
    check_images(cases, run.net.in_channels)
    inputs = {path.resolve().parent for case in cases for path in case.images}
    apart = Path(output).resolve() not in inputs
    check_that(apart, "output", "another folder than the images', which would be overwritten", str(output))
    check_writable(output, "output")
    net = run.abstract_net()
    template = nnx.state(net, nnx.Param)
    weights = [restore_params(run.fold_folder(fold) / "checkpoints", template, checkpoint) for fold in folds]
    config = run.config
    mirroring = config.predict.mirroring if mirroring is None else mirroring
    mirror_axes = config.train.mirror_axes if mirroring else ()
    predictor = make_net_predictor(
        net,
        run.configuration.patch_size,
        run.net.num_classes,
        mirror_axes=mirror_axes,
        window_batch=config.predict.window_batch,
    )
    steps = postprocessing.steps if postprocessing else ()
    if steps:
        names = ", ".join(trial.structure for trial in postprocessing.trials if trial.kept)
        logger.info("post-processing: only the largest component is kept of %s", names)
    predict_cases(
        predictor,
        weights,
        cases,
        run.plans,
        Path(output),
        labels=run.labels,
        configuration=config.data.configuration,
        tile_step=config.predict.tile_step,
        probabilities=probabilities,
        postprocess=functools.partial(apply_postprocessing, decision=postprocessing) if steps else None,
        settings={
            "net": dataclasses.asdict(run.net),
            "mirror_axes": mirror_axes,
            "postprocessing": steps,
        },
    )


def validate(run: Run, workspace: Workspace) -> Evaluation:
    """Predicts the fold's validation cases, scores them, draws overlays and decides on post-processing.

    The scores are those of the predictions as they are; those of the post-processed ones lie beside them.
    """
    fold = run.config.data.fold
    folder = run.fold_folder(fold)
    cases = _validation_cases(workspace, fold)
    predict(run, cases, folder / "validation", folds=[fold])
    protocol = dataset_protocol(run.labels)
    pairs = _validation_pairs(run, workspace, fold)
    scores = evaluate_pairs(pairs, folder / "scores", protocol=protocol)
    overlays = [
        _overlay(case, folder / "validation", protocol.ignore_label) for case in cases[:OVERLAY_CASES]
    ]
    overlay_figure(overlays, folder / "overlays.png", class_names=run.labels.names)
    for structure, statistics in scores.structures.items():
        dice, distance = statistics["dice"], statistics["hd95_mm"]
        logger.info("%s: Dice %.3f ± %.3f, HD95 %.2f mm", structure, dice.mean, dice.sd, distance.mean)
    logger.info("mean Dice %.3f; scores, curves and overlays are in %s", scores.mean["dice"], folder)
    _decide_on_postprocessing(run, workspace, protocol)
    return scores


def _decide_on_postprocessing(run: Run, workspace: Workspace, protocol: Protocol) -> None:
    """For the fold, whose post-processed predictions are scored, and for the run, on all validated folds."""
    fold = run.config.data.fold
    folder = run.fold_folder(fold)
    pairs = _validation_pairs(run, workspace, fold)
    decision = choose_postprocessing(pairs, run.labels)
    write_json(folder / POSTPROCESSING, decision.to_json())
    processed, scores = folder / "validation_postprocessed", folder / "scores_postprocessed"
    for outdated in (processed, scores):
        shutil.rmtree(outdated, ignore_errors=True)
    if decision.steps:
        pairs = write_postprocessed(pairs, decision, processed)
        found = evaluate_pairs(pairs, scores, protocol=protocol)
        logger.info("mean Dice %.3f after post-processing; scores in %s", found.mean["dice"], scores)

    validated = [n for n in run.trained_folds() if (run.fold_folder(n) / POSTPROCESSING).is_file()]
    if validated != [fold]:
        pairs = [pair for number in validated for pair in _validation_pairs(run, workspace, number)]
        decision = choose_postprocessing(pairs, run.labels)
    write_json(run.folder / POSTPROCESSING, decision.to_json())


def _validation_cases(workspace: Workspace, fold: int) -> list[Case]:
    names = set(workspace.split(fold)["val"])
    return [case for case in workspace.dataset.cases if case.name in names]


def _validation_pairs(run: Run, workspace: Workspace, fold: int) -> list[Pair]:
    folder = run.fold_folder(fold) / "validation"
    return [
        Pair(case.name, _prediction_file(folder, case), case.label)
        for case in _validation_cases(workspace, fold)
    ]


def _prediction_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.nii.gz"


def _overlay(case: Case, predictions: Path, ignore_label: int | None) -> OverlayCase:
    image = read_volume(case.images)
    truth, _ = read_label(case.label)
    prediction, _ = read_label(_prediction_file(predictions, case))
    return OverlayCase(
        case.name,
        image.array[0],
        truth,
        prediction,
        spacing=image.spacing,
        ignore_label=ignore_label,
    )
