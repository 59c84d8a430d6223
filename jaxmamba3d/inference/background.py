"""Work in the background: a thread that reads ahead, and one that follows behind."""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(executor: Executor, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The function's results in order, each computed by the executor while the one before it is in use."""
    coming = executor.submit(function, items[0]) if items else None
    for following in range(1, len(items) + 1):
        result = coming.result()
        coming = executor.submit(function, items[following]) if following < len(items) else None
        yield result


class Backlog:
    """A thread that does what it is given in order; leaving its context waits until all is done.

    What follows a call that failed is not done.

    Args:
        length: calls that may wait; whoever gives more waits for the oldest.
    """

    def __init__(self, length: int):
        self._thread = ThreadPoolExecutor(1)
        self._length, self._failed = length, False
        self._waiting: collections.deque[Future] = collections.deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Appends a call; raises what an earlier one raised."""
        self._waiting.append(self._thread.submit(self._run, function, *arguments))
        while len(self._waiting) > self._length:
            self._waiting.popleft().result()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> "Backlog":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            while self._waiting:
                self._waiting.popleft().result()
