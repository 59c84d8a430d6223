"""The training step, compiled before the first batch is read, which shows whether the device can hold it."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.checks import MEMORY_ADVICE
from jaxmamba3d.ops.backend import BATCH_AXES
from jaxmamba3d.training.steps import TrainState

GIB = 2**30

logger = logging.getLogger(__name__)


def compile_train_step(
    train_step: Any,
    state: TrainState,
    mesh: Mesh,
    *,
    batch_size: int,
    patch_size: Sequence[int],
    in_channels: int,
) -> jax.stages.Compiled:
    """Compiles a step for batches of one shape; to be called instead of the step, which would compile again.

    Args:
        train_step: see `make_train_step`.
        state: as the first step gets it.
        mesh: of the devices; to be set by `jax.set_mesh`.
        batch_size: samples of the global batch.
        patch_size: voxels of a patch before it is augmented.
        in_channels: of the images.

    Raises:
        ValueError: the step needs more memory than a device has; what can be done is said.
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    shape = (batch_size, *patch_size)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, in_channels), jnp.float32, sharding=sharding),
        "label": jax.ShapeDtypeStruct(shape, jnp.int16, sharding=sharding),
    }
    started = time.perf_counter()
    limit = memory_limit(mesh)
    try:
        compiled = train_step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _too_large(limit, str(error).splitlines()[0]) from error
    seconds = time.perf_counter() - started
    needed = memory_needed(compiled)
    if needed is None or limit is None:
        logger.info("training step compiled in %.0f s", seconds)
        return compiled
    amount = f"{needed / GIB:.1f}"
    if needed > limit:
        raise _too_large(limit, f"a need of {amount} GiB")
    what = "training step compiled in %.0f s; it takes %s of the %.1f GiB of a device"
    logger.info(what, seconds, amount, limit / GIB)
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
    """Bytes that JAX may use of the smallest device of this process; None where it does not know (CPUs)."""
    known = [device.memory_stats() or {} for device in mesh.local_devices]
    return min((stats["bytes_limit"] for stats in known if "bytes_limit" in stats), default=None)


def _too_large(limit: int | None, found: str) -> ValueError:
    memory = "memory" if limit is None else f"{limit / GIB:.1f} GiB"
    return ValueError(f"a training step must fit into the device's {memory}, got {found}; {MEMORY_ADVICE}")
