"""What a loop needs next, made one step ahead in a thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def one_ahead(make: Callable[[int], T], steps: range) -> Iterator[Iterator[tuple[int, T]]]:
    """Give (step, make(step)) in order, while one thread makes the next one; at most two are held.

    What `make` raises is raised where its step is due. The thread has ended when the block has.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="one-ahead") as pool:

        def walk() -> Iterator[tuple[int, T]]:
            pending = pool.submit(make, steps[0]) if steps else None
            for step in steps:
                assert pending is not None
                ready = pending.result()
                pending = pool.submit(make, step + steps.step) if step != steps[-1] else None
                yield step, ready

        yield walk()
