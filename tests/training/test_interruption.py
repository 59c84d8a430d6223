"""Signals that come while a training takes its steps."""

import gc
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from jaxmamba3d.checks import InterruptedTraining
from jaxmamba3d.training.interruption import Interruption


def test_sigterm_is_noticed_and_the_former_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as interruption:
        interruption.begun = True
        assert not interruption.has_come()
        signal.raise_signal(signal.SIGTERM)
        assert interruption.has_come()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def set_sigint():
    """Sets what Ctrl-C does, which may be nothing where the tests run."""
    former = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, former)


def test_ctrl_c_that_went_unheard_is_heard_after_the_step(set_sigint):
    """As within a callback of the garbage collection, whose exceptions Python prints and forgets."""
    set_sigint(signal.default_int_handler)
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interruption.has_come()


def test_ctrl_c_that_went_unheard_is_not_printed(set_sigint, capsys):
    set_sigint(signal.default_int_handler)

    def callback(phase, _):
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    with Interruption() as interruption:
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        with pytest.raises(KeyboardInterrupt):
            interruption.has_come()
    assert "Traceback" not in capsys.readouterr().err


def test_an_ignored_ctrl_c_stays_ignored(set_sigint):
    """As of programs that a shell runs in the background."""
    set_sigint(signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert not interruption.has_come()


def test_other_exceptions_that_went_unheard_are_printed_and_the_former_hook_comes_back(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    former = sys.unraisablehook
    with Interruption():
        for kind in (ValueError, KeyboardInterrupt):
            sys.unraisablehook(SimpleNamespace(exc_type=kind))
    assert [unraisable.exc_type for unraisable in printed] == [ValueError]
    assert sys.unraisablehook is former


def test_other_threads_leave_signals_alone():
    """Which Python lets the main thread alone handle."""
    before = signal.getsignal(signal.SIGTERM)

    def run():
        with Interruption() as interruption:
            assert not interruption.has_come()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_before_the_steps_ends_the_training_at_once():
    """As while the programs are compiled: JAX lets Python's handlers run in between."""
    with Interruption(), pytest.raises(InterruptedTraining, match="stopped by SIGTERM before a step"):
        signal.raise_signal(signal.SIGTERM)
