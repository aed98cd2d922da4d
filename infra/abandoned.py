"""Cores that are kept for who is dead: Ray frees an actor's placement group with its job, not with the actor."""

import contextlib
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
            with contextlib.suppress(Exception):  # a cluster that does not answer now is asked again
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
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job, cluster = ray.get_runtime_context().get_job_id(), state._connect_and_get_accessor()
    for group in map(PlacementGroupTableData.FromString, cluster.get_placement_group_table()):
        maker = ray.ActorID(group.creator_actor_id)
        is_there = group.state != PlacementGroupTableData.REMOVED and not group.is_detached
        if not is_there or maker.is_nil() or group.creator_job_id.hex() != job:  # a driver's has no actor as its maker
            continue
        # not `creator_actor_dead`: it stays false of a group that was registered after its maker's end
        info = cluster.get_actor_info(maker)
        if info is None or ActorTableData.FromString(info).state == ActorTableData.DEAD:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
