"""Schedulers that want the machine back, and users who have seen enough."""

import itertools
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from jaxmamba3d.checks import InterruptedTraining

# By that service a step is a number that only rises; those of a run's folds start again. All processes ask
# equally often.
_asked = itertools.count(1)


class Interruption:
    """Notices SIGTERM, by which schedulers announce that they will end a process; a context manager.

    Until `begun`, while programs are compiled, it ends the training at once. Several processes agree on one
    step to stop after, by JAX's own preemption service.

    Ctrl-C interrupts at once, and again after the step: in some places, such as JAX's own callback of the
    garbage collection, Python prints the exception and goes on; here it is not even printed.

    Attributes:
        received: whether SIGTERM came, as all processes know it.
        begun: whether there are steps to save; to be set by the training.
    """

    def __init__(self):
        self.received = self.begun = False
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # which alone may set handlers
            if callable(signal.getsignal(signal.SIGINT)):
                self._handlers[signal.SIGINT] = self._interrupt
            if jax.process_count() == 1:  # else JAX's service has its own
                self._handlers[signal.SIGTERM] = self._receive
        self._interrupted = False

    def __enter__(self) -> "Interruption":
        self._former = {number: signal.signal(number, handler) for number, handler in self._handlers.items()}
        self._former_hook, sys.unraisablehook = sys.unraisablehook, self._discard
        return self

    def __exit__(self, *_) -> None:
        sys.unraisablehook = self._former_hook
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def has_come(self) -> bool:
        """Whether to stop now; to be asked by every process after every step.

        Raises:
            KeyboardInterrupt: Ctrl-C came, and went unheard.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_asked)):
            self.received = True
        return self.received

    def _receive(self, *_) -> None:
        self.received = True
        if not self.begun:
            raise InterruptedTraining("stopped by SIGTERM before a step; the same command starts again")

    def _discard(self, unraisable) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._former_hook(unraisable)

    def _interrupt(self, *signal_and_frame) -> None:
        self._interrupted = True
        self._former[signal.SIGINT](*signal_and_frame)
