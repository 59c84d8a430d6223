"""The training loop of one fold: epochs, validation, metrics, checkpoints."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.labels import Labels
from jaxmamba3d.losses import pseudo_dice
from jaxmamba3d.training.checkpoint import Checkpoints
from jaxmamba3d.training.mesh import make_mesh, replicate, shard_batch
from jaxmamba3d.training.optimizer import learning_rate_at, make_optimizer
from jaxmamba3d.training.report import EpochMetrics, MetricsLog
from jaxmamba3d.training.steps import init_state, make_train_step, make_validation_step

logger = logging.getLogger(__name__)


def train_fold(
    net: nnx.Module,
    config: ExperimentConfig,
    *,
    batch_size: int,
    labels: Labels,
    batch_dice: bool,
    training_batches: Iterator[dict[str, np.ndarray]],
    validation_batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Trains a net until `config.train.epochs`, going on from the folder's latest checkpoint if it has one.

    Args:
        net: freshly built; its parameters are changed in place.
        config: the experiment.
        batch_size: samples of the global batch.
        labels: what label values mean.
        batch_dice: see `segmentation_loss`.
        training_batches: a Grain iterator over {image [B, X, Y, Z, C], label [B, X, Y, Z]}.
        validation_batches: starts the same sequence of validation batches anew, each epoch.
        folder: of this fold; gets metrics.csv, curves.png, tensorboard/ and checkpoints/.
        identity: JSON-able description of net and data that a checkpoint to go on from must share.

    Raises:
        ValueError: the folder's checkpoint is of another net or data.
        FloatingPointError: a loss is no longer finite; the last checkpoint was made before.
    """
    optimizer = make_optimizer(config.optim, config.train)
    mesh = make_mesh(batch_size)
    state = replicate(mesh, init_state(net, optimizer))
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        keep = config.train.keep_checkpoints
        checkpoints = Checkpoints(folder / "checkpoints", keep=keep, identity=identity)
        stack.callback(checkpoints.close)
        first_epoch, best_score = 0, -math.inf
        if restored := checkpoints.restore(state):
            state, meta = restored
            first_epoch, best_score = meta["epoch"], meta["best_score"]
            training_batches.set_state(meta["iterator"])
            logger.info("going on after epoch %d of %d", first_epoch, config.train.epochs)
        log = MetricsLog(folder, tuple(labels.structures), start_epoch=first_epoch)
        stack.callback(log.close)

        train_step = make_train_step(
            net,
            optimizer,
            labels=labels,
            batch_dice=batch_dice,
            mirror_axes=config.train.mirror_axes,
            seed=config.train.seed,
        )
        validation_step = make_validation_step(net, labels=labels, batch_dice=batch_dice)
        for epoch in range(first_epoch, config.train.epochs):
            started = time.perf_counter()
            state, train_loss, gradient_norm = _train_epoch(
                state, train_step, training_batches, mesh, config.train, epoch
            )
            validation_loss, dice = _validate(
                state, validation_step, validation_batches(), mesh, config.train, epoch
            )
            metrics = EpochMetrics(
                epoch=epoch,
                seconds=time.perf_counter() - started,
                learning_rate=float(learning_rate_at(config.optim, config.train, int(state.step) - 1)),
                gradient_norm=gradient_norm,
                train_loss=train_loss,
                validation_loss=validation_loss,
                pseudo_dice=dice,
            )
            log.append(metrics)
            score = np.nan_to_num(metrics.mean_pseudo_dice)  # no class present: nothing gained
            is_best = score > best_score
            best_score = max(float(score), best_score)
            checkpoints.save(
                state,
                epoch=epoch + 1,
                iterator=training_batches.get_state(),
                best_score=best_score,
                is_best=is_best,
            )
    nnx.update(net, state.params)


def _train_epoch(state, train_step, batches, mesh, train, epoch):
    """The state, the mean loss and the largest gradient norm after one epoch."""
    losses, norms = [], []
    steps = itertools.islice(batches, train.steps_per_epoch)
    with tqdm(steps, f"epoch {epoch + 1}/{train.epochs}", train.steps_per_epoch) as bar:
        for batch in bar:
            state, metrics = train_step(state, shard_batch(mesh, batch))
            losses.append(metrics["loss"])
            norms.append(metrics["gradient_norm"])
            # One step behind, so that the device never waits for the terminal.
            if len(losses) > 1:
                bar.set_postfix(loss=f"{float(losses[-2]):.3f}")
    losses, norms = jax.device_get((losses, norms))
    _check_finite(losses, "training", epoch)
    return state, float(np.mean(losses)), float(np.max(norms))


def _validate(state, validation_step, batches, mesh, train, epoch):
    """The mean loss and the pseudo-Dice of each foreground class."""
    steps = itertools.islice(batches, train.validation_steps)
    results = [
        validation_step(state.params, shard_batch(mesh, batch))
        for batch in tqdm(steps, "validation", train.validation_steps, leave=False)
    ]
    losses, counts = zip(*jax.device_get(results), strict=True)
    # Catches an epoch whose very last update spoilt the parameters, before they become a checkpoint.
    _check_finite(losses, "validation", epoch)
    dice = pseudo_dice(jax.tree.map(lambda *parts: np.sum(parts, 0), *counts))
    return float(np.mean(losses)), tuple(map(float, dice))


def _check_finite(losses, name, epoch):
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses))) + 1
        raise FloatingPointError(
            f"the {name} loss is not finite at step {step} of epoch {epoch + 1}; the checkpoint of the epoch "
            "before, if there is one, is kept: lower optim.learning_rate, or set net.dtype to float32"
        )
