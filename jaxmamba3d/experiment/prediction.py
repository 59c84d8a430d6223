"""What trained folds predict."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.data import Case, cases_in_folds, check_images, find_images, is_dataset, read_dataset
from jaxmamba3d.evaluation import Postprocessing, apply_postprocessing
from jaxmamba3d.files import check_writable, folder_lock
from jaxmamba3d.inference import WindowPredictor, make_net_predictor, predict_cases
from jaxmamba3d.nets import abstract_net
from jaxmamba3d.run import Run
from jaxmamba3d.training import (
    compile_fitting,
    devices_for,
    is_imported,
    is_main_process,
    memory_limit,
    read_saved,
    restore_params,
)

logger = logging.getLogger(__name__)


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


def folds_to_predict(run: Run) -> tuple[int, ...]:
    """The folds that are fully trained, or imported; if there are none, the others, with a warning.

    Raises:
        ValueError: none has a checkpoint.
    """
    trained = run.trained_folds()
    check_that(bool(trained), f"run {run.folder}", "trained for at least one fold", "no checkpoints")
    epochs = run.config.train.epochs
    partly = {}
    for fold in trained:
        if is_imported(run.checkpoints(fold)):
            continue
        done = read_saved(run.checkpoints(fold)).position.epoch
        if done < epochs:
            partly[fold] = f"fold {fold}, trained for {done} of {epochs} epochs"
    if not partly:
        return trained
    what = ", ".join(partly.values())
    if whole := tuple(fold for fold in trained if fold not in partly):
        logger.warning("left out: %s (name it with --folds to take it)", what)
        return whole
    logger.warning("predicted by %s", what)
    return trained


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
    """Segments cases with the mean logits of trained folds, resuming where an earlier call stopped; see
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

    Raises:
        ValueError: images cannot be predicted, or files that are not predictions of this run or another would
            be overwritten; or another process predicts into the folder.
    """
    check_images(cases, run.net.in_channels, run.orientations())
    images = [path for case in cases for path in case.images]
    inputs = {folder for path in images for folder in (path.resolve().parent, path.parent.resolve())}
    apart = Path(output).resolve() not in inputs
    check_that(apart, "output", "another folder than the images', which would be overwritten", str(output))
    check_writable(output, "output")
    config, mirror_axes = run.config, mirror_axes_of(run, mirroring)
    weights = read_folds(run, folds, checkpoint)
    predictor = make_predictor(run, mirror_axes)
    steps = postprocessing.steps if postprocessing else ()
    if steps:
        names = ", ".join(trial.structure for trial in postprocessing.trials if trial.kept)
        logger.info("post-processing: only the largest component is kept of %s", names)

    def refuse():
        wanted = "a folder that no other process predicts into"
        check_that(False, "output", wanted, f"{output}, which is in use; wait for it, or name another")

    with folder_lock(Path(output), refuse) if is_main_process() else contextlib.nullcontext():
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


def check_window_batch(run: Run) -> None:
    """Refuses before a training what its devices could not predict with after it.

    A training step holds more than the prediction of as many windows, where every device has all parameters;
    else the prediction is compiled here, which shows what it needs, for devices that tell their memory.

    Raises:
        ValueError: a batch of windows needs more memory than a device has.
    """
    train, windows = run.config.train, run.config.predict.window_batch
    batch_size = run.configuration.batch_size
    devices = devices_for(batch_size, accumulate=train.accumulate, shard_parameters=train.shard_parameters)
    predictor = make_predictor(run, mirror_axes_of(run))
    as_many = windows * train.accumulate * len(devices) <= batch_size and train.shard_parameters == 1
    if as_many or memory_limit(predictor.mesh) is None:
        return
    lowered = predictor.lower(run.abstract_params(), run.net.in_channels)
    compile_fitting(
        lowered,
        predictor.mesh,
        step=f"prediction of {windows} windows at once",
        advice="lower predict.window_batch",
    )


def read_folds(run: Run, folds: Sequence[int], checkpoint: str) -> list[nnx.State]:
    """The parameters of trained folds.

    Args:
        run: the trained run.
        folds: which.
        checkpoint: latest | best.

    Raises:
        FileNotFoundError, ValueError: see `restore_params`.
    """
    check_choice("checkpoint", checkpoint, ("latest", "best"))
    template = run.abstract_params()
    return [restore_params(run.checkpoints(fold), template, checkpoint) for fold in folds]


def mirror_axes_of(run: Run, mirroring: bool | None = None) -> tuple[int, ...]:
    """Those that training mirrored, if prediction is to; None: as the config says."""
    mirroring = run.config.predict.mirroring if mirroring is None else mirroring
    return run.config.train.mirror_axes if mirroring else ()


def make_predictor(run: Run, mirror_axes: Sequence[int]) -> WindowPredictor:
    """Predicts windows with any of the run's folds; on all devices of this process."""
    return make_net_predictor(
        abstract_net(run.net),
        run.configuration.patch_size,
        run.net.num_classes,
        mirror_axes=mirror_axes,
        window_batch=run.config.predict.window_batch,
        devices=prediction_devices(copies=2 ** len(mirror_axes)),
    )


def prediction_devices(copies: int) -> list[jax.Device]:
    """Those of this process; of a CPU's cores as many as share out the copies of a window evenly, for volumes
    that are small enough for a CPU have few windows."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return devices
    counts = range(len(devices), 0, -1)
    return devices[: next(n for n in counts if n % copies == 0 or copies % n == 0)]
