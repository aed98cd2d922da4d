"""Artifact: a directory and its record. The record is written last: no record, no artifact.

    ROOT/artifacts/<step>/<label>/<fingerprint>/artifact.json

The record holds the resolved config, the fingerprints of the inputs, the whole recipe that made it, the
versions, the seconds and what was measured. Names are for people; the fingerprint decides.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from upath import UPath

from infra.fingerprint import canonical, differences, fingerprint
from infra.storage import read_json, write_json

RECORD = "artifact.json"
_VERSIONED = ("ray", "torch", "pyarrow", "mlflow-skinny", "numpy", "torch-fidelity")


@dataclass(frozen=True)
class Artifact:
    """A finished directory."""

    path: UPath
    record: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of what made it."""
        return self.record["fingerprint"]

    @property
    def measured(self) -> Mapping[str, Any]:
        """What its step returned: counts, numbers and their conditions."""
        return self.record["measured"]


@dataclass(frozen=True)
class Step:
    """One directory to be made: its identity (config, inputs, version) and the function that fills it."""

    root: UPath
    name: str
    label: str
    config: object
    inputs: Mapping[str, str]
    make: Callable[[UPath], Mapping[str, Any]]
    version: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the result depends on."""
        return {
            "step": self.name,
            "version": self.version,
            "config": canonical(self.config),
            "inputs": dict(self.inputs),
        }

    @property
    def fingerprint(self) -> str:
        """8 hex digits of the identity."""
        return fingerprint(self.identity)

    @property
    def path(self) -> UPath:
        """The directory where this step's artifact is, or will be."""
        return self.root / "artifacts" / self.name / self.label / self.fingerprint

    def find(self) -> Artifact | None:
        """Return the finished artifact, or None."""
        return load(self.path)

    def build(self) -> Artifact:
        """Fill the directory, going on from whatever an interrupted attempt left there, and record it."""
        path = self.path
        path.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        measured = self.make(path)
        write_json(
            path / RECORD,
            {
                **self.identity,
                "fingerprint": self.fingerprint,
                "label": self.label,
                "recipe": self.recipe,
                "measured": dict(measured),
                "seconds": round(time.monotonic() - start, 2),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "commit": git_commit(),
                "versions": {name: version(name) for name in _VERSIONED},
            },
        )
        return Artifact(path, read_json(path / RECORD))

    def explain_stale(self) -> list[str]:
        """Return, field by field, how the newest other artifact of this step and label differs from this one."""
        folder = self.path.parent
        found = [load(path) for path in folder.iterdir()] if folder.exists() else []
        others = sorted((a for a in found if a), key=lambda artifact: artifact.record["finished"])
        if not others:
            return []
        old = {key: others[-1].record[key] for key in ("version", "config", "inputs")}
        return differences(old, {key: self.identity[key] for key in old})


def load(path: UPath) -> Artifact | None:
    """Return the artifact at `path`, or None when there is no record."""
    try:
        return Artifact(path, read_json(path / RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return None


def git_commit() -> str:
    """Return the commit of the code, with '+' when files differ from it, or 'unknown' outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
