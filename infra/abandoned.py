"""Cores that are kept for who is dead: Ray frees an actor's placement group with its job, not with the actor."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def freeing_abandoned(seconds: float = 1.0) -> Iterator[None]:
    """Remove, every so many seconds of the block, placement groups of this job whose makers are dead.

    Tune ends a stopped trial by killing its process, and the controller of its training dies with it. Ray Train leaves
    the controller's group to an actor that asks the dashboard, which a local cluster has not: the next trial would wait
    for the cores for ever.
    """
    ended = threading.Event()

    def free() -> None:
        while not ended.wait(seconds):
            _free()

    thread = threading.Thread(target=free, name="freeing abandoned", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _free() -> None:
    import ray
    from ray._private.state import state  # the public table does not tell who made a group
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for found in map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table()):
        is_actors = not ray.ActorID(
            found.creator_actor_id
        ).is_nil()  # a driver's has a nobody as its maker, who is dead
        is_here = found.state != PlacementGroupTableData.REMOVED and found.creator_job_id.hex() == job
        if is_here and is_actors and found.creator_actor_dead and not found.is_detached:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))
