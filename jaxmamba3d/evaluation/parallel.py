"""Many cases at once, in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from jaxmamba3d.checks import check_count
from jaxmamba3d.machine import core_count

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    description: str,
    threads: int | None = None,
    progress: bool = True,
) -> list[Result]:
    """The function's result for each item, in order, with a progress bar.

    Args:
        function: does its work outside Python's lock, as numpy and scipy do.
        items: what it is called with.
        description: of the progress bar.
        threads: items at once; None: one a processor, at most 8, because every case in work holds its
            volumes in memory.
        progress: show the bar.

    Raises:
        ValueError: threads is not above 0.
    """
    if threads is not None:
        check_count("threads", threads)
    with ThreadPoolExecutor(threads or min(8, core_count())) as pool:
        results = pool.map(function, items)
        return list(tqdm(results, total=len(items), desc=description, unit="case", disable=not progress))
