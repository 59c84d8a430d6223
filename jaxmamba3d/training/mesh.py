"""The device mesh, over which each batch is shared out."""

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.machine import core_count
from jaxmamba3d.ops.backend import DATA_AXIS

logger = logging.getLogger(__name__)


def use_all_cores() -> None:
    """Makes each core of the CPU a device, so that the cores share a batch; without effect on GPUs and TPUs.

    Raises:
        RuntimeError: JAX has run something already.
    """
    jax.config.update("jax_num_cpu_devices", core_count())


def make_mesh(batch_size: int) -> Mesh:
    """A mesh of one axis, `data`, over as many of the devices as divide the global batch.

    Args:
        batch_size: samples of the global batch B.
    """
    devices = jax.devices()
    used = max(count for count in range(1, len(devices) + 1) if batch_size % count == 0)
    if used < len(devices) and devices[0].platform != "cpu":
        logger.warning(
            "%d of %d devices are used: the batch size %d does not divide by more; raise data.batch_size",
            used,
            len(devices),
            batch_size,
        )
    return Mesh(np.array(devices[:used]), (DATA_AXIS,))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The arrays of a pytree, whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A process's part of a batch as global arrays, split along the first axis over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()}
