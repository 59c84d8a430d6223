"""Schedulers that want the machine back."""

import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

# By that service a step is a number that only rises; those of a run's folds start again. All processes ask
# equally often.
_asked = itertools.count(1)


class Interruption:
    """Notices SIGTERM, by which schedulers announce that they will end a process; a context manager.

    Several processes agree on one step to stop after, by JAX's own preemption service.

    Attributes:
        received: whether SIGTERM came, as all processes know it.
    """

    def __init__(self):
        self.received = False
        # Handlers may be set in the main thread alone, and JAX's service has one of its own.
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._handles = in_main_thread and jax.process_count() == 1

    def __enter__(self) -> "Interruption":
        if self._handles:
            self._former = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._former)

    def has_come(self) -> bool:
        """Whether to stop now; to be asked by every process after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_asked)):
            self.received = True
        return self.received

    def _receive(self, *_) -> None:
        self.received = True
