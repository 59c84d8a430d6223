"""Programs compiled before the first batch is read, which shows whether the device can hold them."""

import logging
import os
import platform
import re
import time
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxmamba3d.checks import MEMORY_ADVICE
from jaxmamba3d.config import TrainConfig
from jaxmamba3d.training.steps import TrainState, make_train_step, make_validation_step
from jaxmamba3d.training.task import Task
from jaxmamba3d.wording import memory

COMPILED = "compiled"
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}

logger = logging.getLogger(__name__)


class StepTooLarge(ValueError):
    """A step needs more memory than a device has.

    Args:
        step: what it is of, such as `training step`.
        limit: bytes of a device, None if not known.
        needed: bytes of the step, None if not known.
        found: what was found, in words.
        advice: what can be done.
    """

    def __init__(self, step: str, limit: int | None, needed: int | None, found: str, advice: str):
        room = "memory" if limit is None else memory(limit)
        super().__init__(f"a {step} must fit into the device's {room}, got {found}; {advice}")
        self.needed = needed


def keep_compiled_programs(run_folder: Path) -> None:
    """Has JAX keep in a run's folder what it compiles, for the run's other folds and its next start.

    To be called before anything is compiled. It does nothing where the user has named a folder, where this
    one cannot be written to, and in one of several processes, which compile together or not at all. Programs
    for CPUs are each machine's own, for they use whatever instructions it has.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None
    read_only = run_folder.exists() and not os.access(run_folder, os.W_OK)
    if chosen or read_only or jax.process_count() > 1:
        return
    backend = jax.default_backend()
    folder = f"cpu-{platform.node()}" if backend == "cpu" else backend
    jax.config.update("jax_compilation_cache_dir", str(run_folder.resolve() / COMPILED / folder))


def lower_train_step(
    net: nnx.Module,
    optimizer: optax.GradientTransformation,
    train: TrainConfig,
    task: Task,
    state: TrainState,
    mesh: Mesh,
) -> jax.stages.Lowered:
    """The step of a training, ready to be compiled for its batches.

    Args:
        net, optimizer: see `make_train_step`.
        train: the training's seed and parts of a batch.
        task: what it learns.
        state: as the first step gets it, or its shapes and shardings.
        mesh: of the devices; to be set by `jax.set_mesh`.
    """
    step = make_train_step(
        net,
        optimizer,
        labels=task.labels,
        batch_dice=task.batch_dice,
        augmentation=task.augmentation,
        seed=train.seed,
        accumulate=train.accumulate,
    )
    return step.lower(state, task.training_batch(mesh))


def lower_validation_step(
    net: nnx.Module, train: TrainConfig, task: Task, params: nnx.State, mesh: Mesh
) -> jax.stages.Lowered:
    """The step of a validation, ready to be compiled for its batches; see `lower_train_step`."""
    step = make_validation_step(
        net, labels=task.labels, batch_dice=task.batch_dice, accumulate=train.accumulate
    )
    return step.lower(params, task.validation_batch(mesh))


def compile_fitting(
    lowered: jax.stages.Lowered,
    mesh: Mesh,
    *,
    step: str = "training step",
    advice: str = MEMORY_ADVICE,
    limit: int | None = None,
) -> jax.stages.Compiled:
    """Compiles a step; to be called instead of the step, which would compile again.

    Args:
        lowered: see `lower_train_step` and `lower_validation_step`.
        mesh: of the devices.
        step: what it is, in words.
        advice: what can be done where it is too large.
        limit: bytes of a device; None: as its devices say.

    Raises:
        StepTooLarge: the step needs more memory than a device has; the message says what can be done.
    """
    started = time.perf_counter()
    limit = memory_limit(mesh) if limit is None else limit
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = str(error).splitlines()[0]
        raise StepTooLarge(step, limit, _bytes_in(str(error)), found, advice) from error
    seconds = time.perf_counter() - started
    needed = memory_needed(compiled)
    if needed is None or limit is None:
        logger.info("%s compiled in %.0f s", step, seconds)
        return compiled
    if needed > limit:
        raise StepTooLarge(step, limit, needed, f"a need of {memory(needed)}", advice)
    what = "%s compiled in %.0f s; it takes %s of the %s of a device"
    logger.info(what, step, seconds, memory(needed), memory(limit))
    return compiled


def memory_needed(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of one device that a compiled function holds at once: arguments, results and what lies between;
    None where the backend does not say."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return kept + sizes.temp_size_in_bytes


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that JAX may use of the smallest of a mesh's devices that this process has; None where it does
    not know: CPUs, and chips that are not here."""
    here = [device.memory_stats() or {} for device in jax.local_devices() if device in mesh.devices]
    return min((stats["bytes_limit"] for stats in here if "bytes_limit" in stats), default=None)


def _bytes_in(message: str) -> int | None:
    """What XLA's compiler for TPUs says that a program needs, such as (18.36G) exceeds."""
    found = re.search(r"\(([\d.]+)([MGT])\) exceeds", message)
    return found and int(float(found[1]) * UNITS[found[2]])
