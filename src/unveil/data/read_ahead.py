"""Reads the next items in threads while the caller works on the current one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2, threads: int = 1) -> Iterator[Result]:
    """The function of each item, in order. Up to `depth` results wait in memory.

    By default one thread calls the function, so it need not be safe to call from several; `ImageDataset` hands its work to more
    threads.
    """
    waiting, rest = deque[Future[Result]](), iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        try:
            for item in rest:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller may stop early: what is not yet begun is never read
            for each in waiting:
                each.cancel()
