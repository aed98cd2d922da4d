"""What the workers of a training agree on: everything here is a call that all of them make."""

from typing import TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def mean_of_all(values: Tensor) -> Tensor:
    """Return the mean over the workers."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


def as_the_first_says(value: T) -> T:
    """Return the value of the first worker, which must come to it within the group's time limit."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    said = [value]
    distributed.broadcast_object_list(said)
    return said[0]
