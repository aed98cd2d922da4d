"""Cores that are kept for who is dead."""

import time
from functools import partial

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from infra import abandoned
from infra.abandoned import freeing_abandoned

ONE_CORE = [{"CPU": 0.25}]


@ray.remote(num_cpus=0)
class Holder:
    """Holds a part of a core."""

    def hold(self):
        """Return the group."""
        self.group = placement_group(ONE_CORE)
        ray.get(self.group.ready())
        return self.group


def state(group):
    return placement_group_table(group)["state"]


@pytest.mark.ray
def test_what_a_killed_actor_held_is_freed_and_what_the_living_and_the_driver_hold_is_not(cluster):
    dead, living = Holder.remote(), Holder.remote()
    of_dead, of_living, own = ray.get(dead.hold.remote()), ray.get(living.hold.remote()), placement_group(ONE_CORE)
    ray.get(own.ready())
    ray.kill(dead)
    time.sleep(3)
    assert state(of_dead) == "CREATED"  # Ray keeps it
    with freeing_abandoned(0.1):
        wait(partial(state, of_dead), "REMOVED")
        time.sleep(1)
    assert [state(of_living), state(own)] == ["CREATED", "CREATED"]
    for group in (of_living, own):
        remove_placement_group(group)


def test_cluster_that_does_not_answer_once_is_asked_again(monkeypatch):
    asked = []

    def free():
        asked.append(len(asked))
        if len(asked) == 1:
            raise RuntimeError("no answer")

    monkeypatch.setattr(abandoned, "_free", free)
    with freeing_abandoned(0.01):
        wait(lambda: len(asked) > 2, True)


def wait(of, value):
    end = time.monotonic() + 60
    while of() != value:
        assert time.monotonic() < end
        time.sleep(0.1)
