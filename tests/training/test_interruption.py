"""Signals that come while a training takes its steps."""

import signal

import pytest

from jaxmamba3d.training.interruption import Interruption


def test_sigterm_is_noticed_and_the_former_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as interruption:
        assert not interruption.has_come()
        signal.raise_signal(signal.SIGTERM)
        assert interruption.has_come()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_ctrl_c_that_went_unheard_is_heard_after_the_step():
    """As within a callback of the garbage collection, whose exceptions Python prints and forgets."""
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interruption.has_come()
