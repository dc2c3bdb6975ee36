"""Several iterators at once, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["as_they_come"]

Item = TypeVar("Item")


def as_they_come(works: Sequence[Callable[[], Iterator[Item]]]) -> Iterator[Item]:
    """Items of all iterators in the order in which they are ready.

    A reader that stops early stops the threads after the items that they are at.

    Raises:
        BaseException: what one of them raised, once.
    """
    results: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()

    def run(work: Callable[[], Iterator[Item]]) -> None:
        try:
            for item in work():
                results.put((item,))
                if stop.is_set():
                    return
            results.put(None)
        except BaseException as error:
            results.put(error)  # the reader raises it

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        working = len(threads)
        while working:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                working -= 1
            else:
                yield result[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
