"""Workers that keep something loaded: actors made of plain classes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray


@contextmanager
def actors(
    kind: type, *arguments: object, count: int, cpus: float, gpus: float, at_once: int = 1
) -> Iterator[list[Any]]:
    """Give a block `count` actors `kind(*arguments)`; they and what they hold end with it.

    Each runs `at_once` calls side by side, in threads. Without an end of its own an actor lives for as long as
    anything knows its handle, the plan of a finished Ray Data job among them, and keeps cores that the next step
    waits for.

    One whose process or node is lost is made again where there is room, and the calls it had not finished are run
    again. So its arguments must be few bytes, which travel with it: Ray keeps large ones (100 kB), and Ray Data's pool
    all of them, in the object store of one node, from where an actor that is made again may find them gone
    (https://github.com/ray-project/ray/issues/53727).
    """
    options = {"num_cpus": cpus, "num_gpus": gpus or None, "max_restarts": -1, "max_task_retries": -1}
    if at_once > 1:
        options["max_concurrency"] = at_once
    made = ray.remote(kind).options(**options)  # pyrefly: ignore
    started = [made.remote(*arguments) for _ in range(count)]
    try:
        yield started
    finally:
        for actor in started:
            with suppress(ray.exceptions.RayError):  # a cluster that is gone has none
                ray.kill(actor)
