"""What the step sweep returns. Imports nothing heavy."""

from dataclasses import dataclass

from upath import UPath

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from evaluate.metrics import frechet
from infra.fingerprint import canonical, fingerprint
from infra.result import Report, Result


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the sweep, and what it is worth."""

    label: str
    sampling: Sampling
    numbers: dict[str, float]
    images: int
    seed: int
    seconds: float
    """Of drawing and measuring all its images."""

    @property
    def identity(self) -> str:
        """What makes it the same trial in another run of the sweep."""
        return fingerprint([canonical(self.sampling), self.images, self.seed])

    def report(self, folder: UPath, metric: str) -> Report:
        """Return what the tracking server gets of this trial; its grid lies in `folder`."""
        return Report(
            metrics={**self.numbers, "seconds": self.seconds}, tags={"metric": metric},
            params={"sampling": canonical(self.sampling)},
            pictures={"samples/grid": folder / f"{self.identity}.png"},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepResult(Result):
    """The trials of a sweep, and the settings that won."""

    metric: str
    conditions: Conditions
    best: Sampling
    best_label: str
    trials: tuple[Trial, ...]

    @property
    def best_fd(self) -> float:
        """The smallest distance of any trial."""
        return min(trial.numbers[frechet.NAME] for trial in self.trials)

    def headline(self) -> str:
        """Return the winner and its distance."""
        return f"best of {len(self.trials)} trials: {self.metric} {self.best_fd:g} at {self.best_label}"

    def report(self, path: UPath) -> Report:
        """Return the best number, and every trial as a run of its own."""
        return Report(
            metrics={f"best_{frechet.NAME}": self.best_fd},
            tags={"metric": self.metric, "best": self.best_label},
            files=(path / "trials.json",),
            trials={trial.identity: (_short(trial.sampling), trial.report(path / "trials", self.metric))
                    for trial in self.trials},
        )  # fmt: skip


def _short(sampling: Sampling) -> str:
    return f"t{sampling.temperature:g} cfg{sampling.cfg_scale:g} ar{sampling.ar_steps}"
