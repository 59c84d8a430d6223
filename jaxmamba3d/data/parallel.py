"""Many cases at once, in processes of their own."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from jaxmamba3d.checks import check_count
from jaxmamba3d.machine import core_count

ALGEBRA_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that the libraries behind NumPy read when they are loaded."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int | None, description: str
) -> list[Result]:
    """The function's result for each item, in order, with a progress bar.

    Args:
        function: of a module, or a `functools.partial` of one; imports no jax.
        items: what it is called with.
        processes: worker processes; None: one for each core, 1: this process does the work itself.
        description: of the progress bar.

    Raises:
        ChildProcessError: a worker process was killed.
        Exception: what the function raised; items not begun then are given up.
    """
    if processes is not None:
        check_count("processes", processes)
    bar = tqdm(total=len(items), desc=description, unit="case")
    workers = min(processes or core_count(), len(items))
    with bar:
        if workers <= 1:
            return [_counted(bar, function(item)) for item in items]
        # Spawned, not forked: the parent may run jax's threads, which a fork leaves in an unknown state.
        context, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_end_with_parent
        )
        try:
            with _without_main_module(), _single_threaded_algebra():
                jobs = [pool.submit(function, item) for item in items]
            for job in concurrent.futures.as_completed(jobs):
                _counted(bar, job.result())
            return [job.result() for job in jobs]
        except concurrent.futures.process.BrokenProcessPool as error:
            wanted = f"start again with fewer than {workers} processes"
            raise ChildProcessError(
                f"{description}: a worker process died, probably for lack of memory; {wanted}"
            ) from error
        except KeyboardInterrupt:
            # Cases at work may take long, and are begun anew.
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
            # One of them may have sent half a result; without this end the pool would wait for the rest.
            pool._result_queue._writer.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets a worker end as soon as its parent is gone; else it would wait for work for ever.

    Not before, when a scheduler sends SIGTERM to all processes of a job, or a terminal SIGINT: the parent
    decides.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _counted(bar: tqdm, result: Result) -> Result:
    bar.update()
    return result


@contextlib.contextmanager
def _single_threaded_algebra() -> Iterator[None]:
    """Workers that start inside multiply matrices in one thread each, unless the user says otherwise."""
    said = any(name in os.environ for name in ALGEBRA_THREADS)
    added = {} if said else dict.fromkeys(ALGEBRA_THREADS, "1")
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Workers that start inside do not import the program again that started them.

    They need none of it, it may import jax, and without an `if __name__ == "__main__"` it would start
    workers of its own.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
