"""What the workers of each stage get, and how many of them a cluster's nodes hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.fingerprint import where

_CORES_BESIDE_GPU = 4  # reading latents and writing pictures for one GPU keeps no more busy
_EPSILON = 1e-9  # 1 / 0.1 is no less than 10


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What each worker of one stage gets."""

    workers: int = where(default=0)
    """Processes of the stage; 0 takes one for each GPU of the cluster (or as many as share one), without GPUs a
    single one."""
    gpus: float | None = where(default=None)
    """GPUs of each process; a fraction shares one, 0 uses processors, None takes one where the cluster has GPUs."""
    cpus: int = where(default=0)
    """Cores of each process; 0 takes what its node can give each, beside a GPU at most 4."""


@dataclass(frozen=True, kw_only=True)
class ElasticStage(Stage):
    """A stage whose workers may leave and come."""

    most_workers: int = where(default=0)
    """Processes that training grows to as the cluster holds them, `workers` being the fewest; 0 for a fixed number."""
    sharded: bool = where(default=False)
    """Cut weights, averages and moments among the training's workers (FSDP2) instead of keeping all on each: for models
    that one GPU does not hold."""


@dataclass(frozen=True)
class Workers:
    """What a stage takes of the cluster while it runs: `count` processes with these cores and GPUs each."""

    count: int
    cpus: int
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """One process' share, as Ray names it."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def held_by(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many such processes these nodes hold at once."""
        return sum(map(self._on, nodes))

    def _on(self, node: Mapping[str, float]) -> int:
        by_cores = int(node.get("CPU", 0) // self.cpus)
        if not self.gpus:
            return by_cores
        gpus = int(node.get("GPU", 0))  # a fraction has to lie on one GPU
        return min(by_cores, gpus * int(1 / self.gpus + _EPSILON) if self.gpus < 1 else int(gpus // self.gpus))


def workers_of(stage: Stage, nodes: Sequence[Mapping[str, float]], beside: int = 0) -> Workers:
    """Return what a stage takes of nodes with these resources (CPU, GPU); what was asked for is never lessened.

    `beside` cores of the cluster are left free when the workers are counted.
    """
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    gpus = float(has_gpus) if stage.gpus is None else stage.gpus
    count = stage.workers or 1
    if not stage.workers and gpus:
        cores = sum(int(node.get("CPU", 0)) for node in nodes) - beside
        count = max(1, min(Workers(0, stage.cpus or 1, gpus).held_by(nodes), cores // (stage.cpus or 1)))
    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    shares = range(min(most, _CORES_BESIDE_GPU) if gpus else most, 0, -1)
    fitting = (cpus for cpus in shares if Workers(count, cpus, gpus).held_by(nodes) >= count)
    return Workers(count, stage.cpus or next(fitting, 1), gpus)
