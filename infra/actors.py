"""Workers that keep something loaded: actors made of plain classes."""

from typing import Any

import ray


def actors(kind: type, *arguments: object, count: int, cpus: float, gpus: float, at_once: int = 1) -> list[Any]:
    """Start `count` actors `kind(*arguments)`; each ends when nobody holds its handle any more.

    Each runs `at_once` calls side by side, in threads.

    One whose process or node is lost is made again where there is room, and the calls it had not finished are run
    again. So its arguments must be few bytes, which travel with it: Ray keeps large ones (100 kB), and Ray Data's pool
    all of them, in the object store of one node, from where an actor that is made again may find them gone
    (https://github.com/ray-project/ray/issues/53727).
    """
    options = {"num_cpus": cpus, "num_gpus": gpus or None, "max_restarts": -1, "max_task_retries": -1}
    if at_once > 1:
        options["max_concurrency"] = at_once
    made = ray.remote(kind).options(**options)  # pyrefly: ignore
    return [made.remote(*arguments) for _ in range(count)]
