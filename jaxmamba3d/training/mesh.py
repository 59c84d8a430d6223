"""The device mesh: batches are shared out over all of it, parameters over its second axis."""

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.checks import check_that
from jaxmamba3d.machine import core_count
from jaxmamba3d.ops.backend import BATCH_AXES, PARAMETER_AXIS, batch_axes

logger = logging.getLogger(__name__)

SMALLEST_SHARED = 2**14
"""Numbers of a parameter below which every device keeps it whole: it would be sent more than it saves."""


def use_all_cores() -> None:
    """Makes each core of the CPU a device, so that the cores share a batch; without effect on GPUs and TPUs.

    JAX_NUM_CPU_DEVICES and XLA_FLAGS in the environment have precedence.

    Raises:
        RuntimeError: JAX has run something already.
    """
    in_flags = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < 0 and not in_flags:
        jax.config.update("jax_num_cpu_devices", core_count())


def devices_for(batch_size: int, *, accumulate: int = 1, shard_parameters: int = 1) -> list[jax.Device]:
    """As many of the devices as divide the global batch.

    Args:
        batch_size: samples of the global batch B.
        accumulate: parts of the batch that are computed one after the other.
        shard_parameters: devices that share out parameters, the length of the second axis.

    Raises:
        ValueError: the batch does not divide by the parts, or in no way over such a mesh; with several
            processes, not over all their devices.
    """
    divides = batch_size % accumulate == 0
    check_that(divides, "train.accumulate", f"a divisor of the batch size {batch_size}", accumulate)
    at_once = batch_size // accumulate
    devices = jax.devices()
    counts = range(shard_parameters, len(devices) + 1, shard_parameters)
    used = max((count for count in counts if at_once % count == 0), default=0)
    wanted = f"a number of the {len(devices)} devices, of which some multiple divides {at_once} patches"
    check_that(used > 0, "train.shard_parameters", wanted, shard_parameters)
    if jax.process_count() > 1:
        _check_axis(devices, shard_parameters)
        wanted = f"a multiple of train.accumulate times the {len(devices)} devices of all processes"
        check_that(used == len(devices), "data.batch_size", wanted, batch_size)
    return devices[:used]


def make_mesh(batch_size: int, *, accumulate: int = 1, shard_parameters: int = 1) -> Mesh:
    """A mesh of the axes `data` and `parameters` over `devices_for` a batch.

    Args, Raises: see `devices_for`.
    """
    devices = devices_for(batch_size, accumulate=accumulate, shard_parameters=shard_parameters)
    used, there = len(devices), len(jax.devices())
    if used < there and devices[0].platform != "cpu":
        what = "%d of %d devices are used: the batch size %d does not divide by more; raise data.batch_size"
        logger.warning(what, used, there, batch_size)
    return mesh_over(devices, shard_parameters)


def mesh_over(devices: Sequence[jax.Device], shard_parameters: int = 1) -> Mesh:
    """A mesh of the axes `data` and `parameters`, the second one `shard_parameters` long, over all of them.

    Raises:
        ValueError: they do not divide by that.
    """
    _check_axis(devices, shard_parameters)
    # `jax.make_mesh` would sort TPUs, but a process's samples are a contiguous part of the batch.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(-1, shard_parameters)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def _check_axis(devices: Sequence[jax.Device], shard_parameters: int) -> None:
    divides = len(devices) % shard_parameters == 0
    wanted = f"a divisor of the {len(devices)} devices"
    check_that(divides, "train.shard_parameters", wanted, shard_parameters)


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """For each array of a pytree how a mesh holds it: shared out by `parameter_spec`, or whole everywhere."""
    parts = mesh.shape[PARAMETER_AXIS]
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, parts)), tree)


def place_state(mesh: Mesh, tree: Any) -> Any:
    """The arrays of a pytree on the mesh; see `state_shardings`."""
    return jax.device_put(tree, state_shardings(mesh, tree))


def constrain_state(tree: Any) -> Any:
    """Keeps the arrays of a pytree, inside a jit-ed function, where `place_state` puts them."""
    mesh = jax.sharding.get_abstract_mesh()
    if PARAMETER_AXIS not in mesh.axis_names:
        return tree
    parts = mesh.shape[PARAMETER_AXIS]
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, parameter_spec(x.shape, parts)), tree)


def whole_everywhere(tree: Any) -> Any:
    """The arrays of a pytree, inside a jit-ed function, whole on every device if there is a mesh."""
    if not batch_axes():
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def split_by_sample(array: jax.Array, axis: int = 0) -> jax.Array:
    """An array, inside a jit-ed function, split along the axis of its samples over the mesh, if any."""
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, axes)) if axes else array


def parameter_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Along which axis an array of a state is shared out: the longest one that divides by `parts`.

    Args:
        shape: of the array; small ones stay whole, as do those that have no such axis.
        parts: devices along the mesh's axis `parameters`.
    """
    if parts == 1 or math.prod(shape) < SMALLEST_SHARED:
        return PartitionSpec()
    length, axis = max((length * (length % parts == 0), -i) for i, length in enumerate(shape))
    return PartitionSpec(*[None] * -axis, PARAMETER_AXIS) if length else PartitionSpec()


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A process's part of a batch as global arrays, split along the first axis over the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return {name: jax.make_array_from_process_local_data(sharding, part) for name, part in batch.items()}
