"""What a loop needs next, made ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def made_ahead(
    make: Callable[[int], T], steps: range, most: int = 1, at_once: int = 1
) -> Iterator[Iterator[tuple[int, T]]]:
    """Give (step, make(step)) in order, while threads make `at_once` that come next; `most` are held besides.

    What `make` raises is raised where its step is due. The threads have ended when the block has.
    """
    pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="made-ahead")

    def walk() -> Iterator[tuple[int, T]]:
        pending = deque(pool.submit(make, step) for step in steps[:most])
        for number, step in enumerate(steps):
            ready = pending.popleft().result()
            pending.extend(pool.submit(make, later) for later in steps[number + most : number + most + 1])
            yield step, ready

    try:
        yield walk()
    finally:
        pool.shutdown(cancel_futures=True)
