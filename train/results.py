"""What the step checkpoint returns. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass

from upath import UPath

from infra.result import Report, Result

LOG = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class CheckpointResult(Result):
    """How long a model was trained, and where its loss ended."""

    train_steps: int
    images_seen: int
    parameters: int
    images: int
    """Images of the store that were trained on."""
    images_held_back: int
    """Images of the store that were not."""
    last: Mapping[str, float]
    """Terms of the loss in the last logged step."""
    images_per_second: float | None = None
    """Median over the log."""

    def headline(self) -> str:
        """Return the counts and the loss."""
        return super().headline() + "".join(f", {name} {value:.4g}" for name, value in self.last.items())

    def report(self, path: UPath) -> Report:
        """Return the numbers, and the log as curves."""
        last = {f"last/{name}": value for name, value in self.last.items()}
        return Report(metrics={**super().report(path).metrics, **last}, history=path / LOG)
