"""Several processes that train together: each with its own devices, one program over all of them."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

ONE_WEEK = 7 * 24 * 3600

PROCESSES_A_MACHINE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
"""Variables that say so, such as 8 or, for two machines, 8(x2); what Open MPI starts may see both."""

PROCESSES = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "JAX_NUM_PROCESSES")
"""Those that say how many processes there are in all."""

_waits = itertools.count()


def join_processes() -> None:
    """Connects this process with the others, before JAX has run anything.

    `jax.distributed` finds them by itself under SLURM, Open MPI, Kubernetes and on TPU pods; elsewhere each
    process is told by JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ValueError: the other processes cannot be found.
    """
    variables = (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID"))
    try:
        told = {argument: int(os.environ[name]) for argument, name in variables if name in os.environ}
        jax.distributed.initialize(**told, local_device_ids=_all_visible_devices())
    except ValueError as error:
        raise ValueError(
            "train.distributed must be left out, or the processes started by SLURM (srun, inside of salloc, "
            "too), Open MPI, Kubernetes or a TPU pod, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID in the environment, got {error}"
        ) from error


def _all_visible_devices() -> list[int] | None:
    """The GPUs of a process that sees one, or is alone on its machine; None: JAX's choice, or the user's.

    Under SLURM and Open MPI that is the one GPU of the process's number on the machine, of all of its GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible or visible.startswith("-") or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    count = len(visible.split(","))
    processes = next((os.environ[name] for name in PROCESSES_A_MACHINE if name in os.environ), "")
    alone = re.fullmatch(r"1(\(x\d+\))?", processes)
    return list(range(count)) if alone or count == 1 else None


def are_apart() -> bool:
    """Whether several processes were started together, and this one has not joined the others."""
    counts = [os.environ.get(name, "") for name in PROCESSES]
    return jax.process_count() == 1 and any(count.isdecimal() and int(count) > 1 for count in counts)


def is_main_process() -> bool:
    """Whether this process is the one that writes tables and pictures."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Runs a block in the first process, and then in the others, which find on disk what it left.

    Raises:
        ValueError: in the others, if the block failed in the first.
    """
    if jax.process_count() == 1:
        yield
    elif is_main_process():
        try:
            yield
        except BaseException:
            main_process_says(False)
            raise
        main_process_says(True)
    else:
        if not main_process_says(False):
            raise ValueError("the first process failed; its output says why")
        yield


def wait_for_all_processes() -> None:
    """Returns as soon as every process is here, however long that takes.

    The devices' own collectives would give up: after half a minute on CPUs.
    """
    multihost.get_barrier_sync_fn()(key=f"all processes {next(_waits)}", timeout_ms=ONE_WEEK * 1000)


@contextlib.contextmanager
def all_leave_together() -> Iterator[None]:
    """Lets no process go on from a block before all have come to its end, be it by an error.

    Processes that ended while another still works would give up waiting for it after minutes, and kill it.
    """
    wait_for_all_processes()
    try:
        yield
    finally:
        wait_for_all_processes()


def main_process_says(yes: bool) -> bool:
    """What the main process says, whatever the others say; to be asked by all."""
    if jax.process_count() == 1:
        return yes
    wait_for_all_processes()
    return bool(multihost_utils.broadcast_one_to_all(np.array(yes)))
