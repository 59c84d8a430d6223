"""What runs beside prediction keeps its order, its bounds and its errors."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxmamba3d.inference.background import Backlog, ahead


def test_the_next_result_is_computed_while_one_is_in_use():
    started = [threading.Event() for _ in range(3)]

    def work(n):
        started[n].set()
        return n * n

    with ThreadPoolExecutor(1) as reader:
        results = ahead(reader, work, range(3))
        assert next(results) == 0
        assert started[1].wait(10)
        assert not started[2].is_set()
        assert list(results) == [1, 4]
        assert list(ahead(reader, work, [])) == []


def test_an_item_that_fails_spares_those_before_it():
    with ThreadPoolExecutor(1) as reader:
        results = ahead(reader, lambda n: 6 // n, [3, 2, 0, 1])
        assert [next(results), next(results)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_calls_are_done_in_order_before_the_context_ends():
    done = []
    with Backlog(2) as backlog:
        for n in range(20):
            backlog.submit(done.append, n)
    assert done == list(range(20))


def test_a_full_backlog_makes_wait():
    gate, done = threading.Event(), []
    with Backlog(1) as backlog:
        backlog.submit(gate.wait, 10)
        threading.Timer(0.2, gate.set).start()
        backlog.submit(done.append, "second")
        assert gate.is_set()
    assert done == ["second"]


def test_errors_reach_whoever_submits_or_leaves():
    with pytest.raises(ZeroDivisionError), Backlog(0) as backlog:
        backlog.submit(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError), Backlog(5) as backlog:
        backlog.submit(divmod, 1, 0)


def test_what_follows_a_failed_call_is_not_done():
    """As a file that would lack what the call was to add."""
    done = []

    def fails():
        with Backlog(5) as backlog:
            backlog.submit(done.append, "before")
            backlog.submit(divmod, 1, 0)
            backlog.submit(done.append, "after")

    with pytest.raises(ZeroDivisionError):
        fails()
    assert done == ["before"]


def test_an_error_of_the_main_thread_comes_first():
    def fails():
        with Backlog(5) as backlog:
            backlog.submit(divmod, 1, 0)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
