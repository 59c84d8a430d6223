"""One epoch: its training steps and its validation, with progress, health and speed."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmamba3d.config import TrainConfig
from jaxmamba3d.losses import pseudo_dice
from jaxmamba3d.training.mesh import shard_batch
from jaxmamba3d.training.processes import is_main_process
from jaxmamba3d.training.steps import TrainState
from jaxmamba3d.wording import first_few

logger = logging.getLogger(__name__)

CASE = "case"
"""Of a batch: the number of each sample's case."""


@dataclasses.dataclass
class EpochProgress:
    """What the finished training steps of an epoch have given; part of a checkpoint within the epoch.

    Args:
        losses, norms: of each step; the global norm of the gradient is that before clipping.
        finite: of each step, whether it changed the parameters.
        seconds: that the steps took.
        waited: seconds of these in which the next batch was not there yet.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    finite: list[bool] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0

    def mean_loss(self) -> float:
        """Over the steps that were finite."""
        return float(np.mean(np.array(self.losses)[self.finite]))

    def largest_norm(self) -> float:
        """Over the steps that were finite."""
        return float(np.max(np.array(self.norms)[self.finite]))


def train_epoch(
    state: TrainState,
    train_step: Callable,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    config: TrainConfig,
    *,
    epoch: int,
    so_far: EpochProgress,
    case_names: Sequence[str],
    should_stop: Callable[[], bool],
) -> tuple[TrainState, bool]:
    """Takes the steps that are left of an epoch, or as many as `should_stop` lets it, and notes them.

    An epoch whose last step is taken is not stopped: its validation is still to come.

    Args:
        state: before the steps.
        train_step: see `make_train_step`.
        batches: see `training_batches`.
        mesh: of the devices.
        config: how many steps, and what happens if one is not finite.
        epoch: counted from 0, for messages.
        so_far: the finished steps; gets those taken here.
        case_names: by number, for messages.
        should_stop: whether to stop now; asked after every step.

    Returns:
        The state after the steps, and whether they were stopped.

    Raises:
        FloatingPointError: a step was not finite and the config says stop, or none of the epoch was.
    """
    done = len(so_far.losses)
    progress = tqdm(
        initial=done,
        total=config.steps_per_epoch,
        desc=f"epoch {epoch + 1}/{config.epochs}",
        unit="step",
        leave=False,
        disable=None if is_main_process() else True,
    )
    pending, stopped = None, False
    started = time.perf_counter()
    with progress:
        for step in range(done, config.steps_per_epoch):
            asked = time.perf_counter()
            batch = dict(next(batches))
            so_far.waited += time.perf_counter() - asked
            cases = batch.pop(CASE)
            state, metrics = train_step(state, shard_batch(mesh, batch))
            # One step behind, so that the device never waits for this.
            if pending is not None:
                _note(pending, so_far, config, epoch, case_names)
                progress.set_postfix(loss=f"{so_far.losses[-1]:.3f}")
            pending = metrics, cases
            progress.update()
            stopped = should_stop() and step + 1 < config.steps_per_epoch
            if stopped:
                break
        if pending is not None:
            _note(pending, so_far, config, epoch, case_names)
    so_far.seconds += time.perf_counter() - started
    if not stopped and not any(so_far.finite):
        raise FloatingPointError(f"no step of epoch {epoch + 1} was finite; {_advice(config)}")
    return state, stopped


def _note(pending, so_far, config, epoch, case_names) -> None:
    metrics, cases = pending
    metrics = jax.device_get(metrics)
    so_far.losses.append(float(metrics["loss"]))
    so_far.norms.append(float(metrics["gradient_norm"]))
    so_far.finite.append(bool(metrics["finite"]))
    if so_far.finite[-1]:
        return
    names = ", ".join(sorted({case_names[number] for number in cases}))
    what = (
        f"step {len(so_far.losses)} of epoch {epoch + 1} is not finite, on patches of {names}: loss "
        f"{so_far.losses[-1]:g}, gradient norm {so_far.norms[-1]:g}"
    )
    if config.non_finite == "stop":
        raise FloatingPointError(f"{what}; {_advice(config)}")
    logger.warning("%s: skipped", what)


def _advice(config: TrainConfig) -> str:
    skip = ", or set train.non_finite to skip" if config.non_finite == "stop" else ""
    return (
        "what was saved before is kept: lower optim.learning_rate (with train.allow_changed_settings), set "
        f"net.dtype to float32 unless it is{skip}"
    )


class Sample(NamedTuple):
    """Patches of one validation batch and what the net makes of them.

    Args:
        image: [B, X, Y, Z, C].
        label, segmentation: [B, X, Y, Z].
        case: number of each one's case.
    """

    image: np.ndarray
    label: np.ndarray
    segmentation: np.ndarray
    case: np.ndarray


class Validation(NamedTuple):
    """The mean loss, the pseudo-Dice of each foreground class, and some patches to look at."""

    loss: float
    dice: tuple[float, ...]
    sample: Sample


def validation_epoch(
    state: TrainState,
    validation_step: Callable,
    batches: Iterator[dict[str, np.ndarray]],
    mesh: Mesh,
    config: TrainConfig,
    case_names: Sequence[str],
) -> Validation:
    """Validates on the epoch's batches, which are the same every epoch; warns of cases with no finite loss.

    Args:
        state: to validate.
        validation_step: see `make_validation_step`, compiled or not.
        batches: see `training_batches`.
        mesh: of the devices.
        config: how many batches.
        case_names: of the validation cases, by number.
    """
    results, numbers, sample = [], [], None
    quiet = None if is_main_process() else True
    steps = islice(batches, config.validation_steps)
    for batch in tqdm(steps, "validation", config.validation_steps, leave=False, disable=quiet):
        arrays = {name: array for name, array in batch.items() if name != CASE}
        *result, segmentation = validation_step(state.params, shard_batch(mesh, arrays))
        if len(results) > 1:
            jax.block_until_ready(results[-2])  # or else all batches would wait on the device at once
        results.append(result)
        numbers.append(batch[CASE])
        if sample is None:
            # Of several processes the first device's part, which is that of the process's first samples.
            whole = segmentation.is_fully_addressable
            segmentation = np.asarray(segmentation if whole else segmentation.addressable_data(0))
            part = slice(len(segmentation))
            sample = Sample(arrays["image"][part], arrays["label"][part], segmentation, batch[CASE][part])
    losses, counts = zip(*jax.device_get(results), strict=True)
    if not np.isfinite(losses).all():
        cases = np.concatenate([n for n, loss in zip(numbers, losses, strict=True) if not np.isfinite(loss)])
        names = first_few(sorted({case_names[number] for number in cases}))
        logger.warning("the validation loss is not finite, on patches of %s", names)
    dice = pseudo_dice(jax.tree.map(lambda *parts: np.sum(parts, 0), *counts))
    return Validation(float(np.mean(losses)), tuple(map(float, dice)), sample)


def device_memory_gib() -> float:
    """The most memory that one device of this process has held, GiB; NaN where JAX does not know (CPUs)."""
    peaks = [
        statistics["peak_bytes_in_use"] / 2**30
        for device in jax.local_devices()
        if (statistics := device.memory_stats()) and "peak_bytes_in_use" in statistics
    ]
    return max(peaks, default=math.nan)
