"""The training loop of one fold: epochs, validation, metrics, checkpoints."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmamba3d.checks import InterruptedTraining, check_that
from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.training.checkpoint import Checkpoints
from jaxmamba3d.training.checkpoint_folder import CHECKPOINTS, Position, read_saved
from jaxmamba3d.training.compilation import compile_fitting, lower_train_step, lower_validation_step
from jaxmamba3d.training.epoch import EpochProgress, device_memory_gib, train_epoch, validation_epoch
from jaxmamba3d.training.interruption import Interruption
from jaxmamba3d.training.mesh import make_mesh
from jaxmamba3d.training.optimizer import learning_rate_at, make_optimizer
from jaxmamba3d.training.processes import is_main_process, main_process_first, wait_for_all_processes
from jaxmamba3d.training.report import EpochMetrics, MetricsLog, moving_score, overlays_of
from jaxmamba3d.training.steps import abstract_state, init_state
from jaxmamba3d.training.task import Task
from jaxmamba3d.wording import duration

logger = logging.getLogger(__name__)

Batches = Iterator[dict[str, np.ndarray]]


def train_fold(
    net: nnx.Module,
    config: ExperimentConfig,
    task: Task,
    *,
    draw_params: Callable[[], nnx.State],
    training_batches: Batches,
    validation_batches: Callable[[], Batches],
    training_cases: Sequence[str],
    validation_cases: Sequence[str],
    spacing: tuple[float, float, float],
    upside_down: bool,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Trains a net until `config.train.epochs`, resuming from the folder's latest checkpoint if it has one.

    Args:
        net: to train; shapes in place of parameters suffice.
        config: the experiment.
        task: what it learns.
        draw_params: gives the parameters that a training starts from.
        training_batches: a Grain iterator over {image [B, X, Y, Z, C], label [B, X, Y, Z], case [B]}, the
            patches of the augmentation's `initial_patch_size`.
        validation_batches: starts the same sequence of validation batches again, each epoch.
        training_cases, validation_cases: names, by the numbers that the batches give.
        spacing: voxel size of the patches (mm), for pictures.
        upside_down: whether these must be turned over along Y.
        folder: of this fold; gets metrics.csv, curves.png, patches.png, tensorboard/ and checkpoints/.
        identity: JSON-able description of net, data and settings that a checkpoint to resume from must share.

    Raises:
        ValueError: the folder's checkpoint is of another net, data or settings, a step does not fit into the
            device's memory, or the disk has no room for checkpoints.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint was made before.
        InterruptedTraining: SIGTERM came; the state is saved.
        OSError: the disk is full; the last checkpoint was made before.
    """
    optimizer = make_optimizer(config.optim, config.train)
    train = config.train
    mesh = make_mesh(task.batch_size, accumulate=train.accumulate, shard_parameters=train.shard_parameters)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        interruption = stack.enter_context(Interruption())
        checkpoints = Checkpoints(
            folder / CHECKPOINTS,
            keep=train.keep_checkpoints,
            identity=identity,
            allow_changed_settings=train.allow_changed_settings,
        )
        stack.enter_context(checkpoints)
        position = Position(epoch=0, iterator={}, best_score=-math.inf)
        if restored := checkpoints.restore(abstract_state(net, optimizer, mesh)):
            state, position = restored
            _check_schedule(config, int(state.step), position)
            training_batches.set_state(position.iterator)
            logger.info("resuming after epoch %d of %d", position.epoch, train.epochs)
        else:
            state = init_state(draw_params(), optimizer, mesh)
        log = None
        if is_main_process():
            log = MetricsLog(folder, task.labels, start_epoch=position.epoch)
            stack.callback(log.close)

        train_step = validation_step = None
        if position.epoch < train.epochs:
            with main_process_first():
                if is_main_process():
                    checkpoints.check_room(state)
            train_step = compile_fitting(lower_train_step(net, optimizer, train, task, state, mesh), mesh)
            lowered = lower_validation_step(net, train, task, state.params, mesh)
            validation_step = compile_fitting(lowered, mesh, step="validation step")
            wait_for_all_processes()  # the first collective gives up after half a minute
        interruption.begun = True
        begun = time.perf_counter()
        while position.epoch < train.epochs:
            so_far = position.so_far
            seconds_before = so_far.seconds
            state, stopped = train_epoch(
                state,
                train_step,
                training_batches,
                mesh,
                train,
                epoch=position.epoch,
                so_far=so_far,
                case_names=training_cases,
                should_stop=interruption.has_come,
            )
            position = dataclasses.replace(position, iterator=training_batches.get_state())
            if stopped:
                checkpoints.save(state, position)
                raise InterruptedTraining(_words(position))
            validation = validation_epoch(
                state, validation_step, validation_batches(), mesh, train, validation_cases
            )
            ended = time.perf_counter()
            metrics = EpochMetrics(
                epoch=position.epoch,
                learning_rate=float(learning_rate_at(config.optim, train, int(state.step) - 1)),
                gradient_norm=so_far.largest_norm(),
                train_loss=so_far.mean_loss(),
                validation_loss=validation.loss,
                skipped_steps=so_far.finite.count(False),
                pseudo_dice=validation.dice,
                seconds=seconds_before + ended - begun,
                patches_per_second=len(so_far.losses) * task.batch_size / so_far.seconds,
                input_wait=so_far.waited / so_far.seconds,
                memory_gib=device_memory_gib(),
            )
            begun = ended
            score = moving_score(position.moving_score, metrics.mean_pseudo_dice)
            is_best = score > position.best_score
            if log is not None:
                log.append(metrics)
                if log.wants_a_picture(train.epochs):
                    sample = validation.sample
                    log.show(overlays_of(sample, validation_cases, spacing, task.labels, upside_down))
                _say(metrics, log, train.epochs, is_best)
            position = dataclasses.replace(
                position,
                epoch=position.epoch + 1,
                best_score=max(score, position.best_score),
                moving_score=score,
                best_step=int(state.step) if is_best else position.best_step,
                so_far=EpochProgress(),
            )
            checkpoints.save(state, position)
            if interruption.received:
                break
    if interruption.received:  # maybe while the last checkpoint was written
        raise InterruptedTraining(_words(position))


def check_can_go_on(folder: Path, config: ExperimentConfig) -> None:
    """Raises ValueError if a training cannot resume from the latest checkpoint in a folder of checkpoints.

    It is damaged, imported, of more epochs than are wanted, or of such that the config's schedule would count
    otherwise.
    """
    if saved := read_saved(folder):
        _check_schedule(config, saved.step, saved.position)
        trained = saved.position.epoch
        wanted = f"at least the {trained} that are trained (or choose another output)"
        check_that(config.train.epochs >= trained, "train.epochs", wanted, config.train.epochs)


def _check_schedule(config: ExperimentConfig, step: int, position: Position) -> None:
    """Refuses epochs of another length for a schedule that tells them by the step."""
    moves = config.optim.schedule != "constant" and config.optim.schedule_unit == "epoch"
    begun = len(position.so_far.losses)
    steps = config.train.steps_per_epoch
    same = begun <= steps and step == position.epoch * steps + begun
    taken = f"{step - begun} steps in finished epochs (of which there are {position.epoch})"
    wanted = f"as before, {taken} and {begun} in the next: optim.schedule counts epochs by it"
    check_that(same or not moves, "train.steps_per_epoch", wanted, steps)


def _say(metrics: EpochMetrics, log: MetricsLog, epochs: int, is_best: bool) -> None:
    left = log.seconds_left(epochs)
    logger.info(
        "epoch %d/%d: loss %.3f, validation %.3f, Dice %.3f%s; %s, %.1f patches/s; %s left",
        metrics.epoch + 1,
        epochs,
        metrics.train_loss,
        metrics.validation_loss,
        metrics.mean_pseudo_dice,
        " (best)" if is_best else "",
        duration(metrics.seconds),
        metrics.patches_per_second,
        duration(left),
    )


def _words(position: Position) -> str:
    steps = len(position.so_far.losses)
    where = f"step {steps} of epoch {position.epoch + 1}" if steps else f"epoch {position.epoch}"
    return f"stopped by SIGTERM after {where}; the same command resumes from there"
