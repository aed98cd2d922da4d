"""Actors of our own: made again when they are lost."""

import os
import signal
from pathlib import Path

import pytest
import ray
from ray.util import ActorPool

from infra.actors import actors


class Squares:
    """Dies, as of kill -9, at its first sight of some numbers."""

    def __init__(self, deadly: tuple[int, ...], seen: str) -> None:
        self.deadly, self.seen = deadly, Path(seen)

    def __call__(self, number: int) -> int:
        if number in self.deadly and not (self.seen / str(number)).exists():
            (self.seen / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2


@pytest.mark.ray
def test_actors_killed_in_the_middle_are_made_again_and_each_call_returns_in_order(cluster, tmp_path, capfd):
    with actors(Squares, (0, 3, 7), str(tmp_path), count=2, cpus=0.5, gpus=0) as made:
        squares = list(ActorPool(made).map(lambda actor, n: actor.__call__.remote(n), range(9)))
    assert squares == [n**2 for n in range(9)]
    assert len(list(tmp_path.iterdir())) == 3
    assert "in the object store" not in capfd.readouterr().err


@pytest.mark.ray
def test_cores_are_free_after_the_block_though_a_handle_is_kept(cluster, tmp_path):
    cores = int(ray.cluster_resources()["CPU"])
    with actors(Squares, (), str(tmp_path), count=cores, cpus=1, gpus=0) as made:
        kept = ray.put(made)  # as the plan of a Ray Data job has them
        assert ray.get([actor.__call__.remote(2) for actor in made]) == [4] * cores
    assert ray.get(ray.remote(num_cpus=cores)(lambda: 1).remote(), timeout=60) == 1
    assert kept
