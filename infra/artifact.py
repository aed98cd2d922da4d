"""Artifact: a directory and its record. The record is written last: no record, no artifact.

    ROOT/artifacts/<step>/<label>/<fingerprint>/artifact.json

The record holds the identity (config, inputs), the whole recipe that made it, the code's digests, the versions, the
seconds and the result. Names are for people; the identity decides.
"""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from upath import UPath

from infra.code import changed, digests
from infra.errors import InputError
from infra.fingerprint import canonical, differences, fingerprint
from infra.from_json import from_json
from infra.hold import holding
from infra.result import Result
from infra.storage import read_json, storage_errors, write_json

RECORD = "artifact.json"
_IDENTITY = ("step", "version", "config", "inputs")
_COMPARED = {*_IDENTITY, "fingerprint", "finished"}
"""What a record has that is not damaged, beside its result."""
_VERSIONED = ("ray", "torch", "pyarrow", "mlflow-skinny", "numpy", "torch-fidelity")
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Artifact(Generic[R]):
    """A finished directory."""

    path: UPath
    record: Mapping[str, Any]
    result: R
    """What its step returned."""

    @property
    def fingerprint(self) -> str:
        """Digits of the identity of what made it."""
        return self.record["fingerprint"]


@dataclass(frozen=True)
class Step(Generic[R]):
    """One directory to be made: its identity (config, inputs, version) and the function that fills it."""

    root: UPath
    name: str
    label: str
    config: object
    inputs: Mapping[str, str]
    """Identities of what it is made from, by step name."""
    make: Callable[[UPath], R]
    result: type[R]
    code: tuple[str, ...] = ()
    """Files and folders whose code decides its numbers."""
    version: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False
    """Make it anew with the present code, whose digest is then part of the identity."""
    is_shared: bool = False
    """Several jobs may make it at once."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the result depends on."""
        identity = {
            "step": self.name,
            "version": self.version,
            "config": canonical(self.config),
            "inputs": dict(self.inputs),
        }
        return {**identity, "code": digests(self.code)} if self.again else identity

    @property
    def fingerprint(self) -> str:
        """8 hex digits: of the artifact that was found, or of the identity."""
        found = self.find()
        return found.fingerprint if found else fingerprint(self.identity)

    @property
    def path(self) -> UPath:
        """The directory where this step's artifact is, or will be."""
        found = self.find()
        return found.path if found else self._folder / fingerprint(self.identity)

    @property
    def _folder(self) -> UPath:
        return self.root / "artifacts" / self.name / self.label

    def find(self) -> Artifact[R] | None:
        """Return the newest finished artifact of this identity, or None; `again` takes only the present code's."""
        if self.again:
            found = load(self._folder / fingerprint(self.identity), self.result)
            return found if found and self._is_of(found.record) else None
        fitting = [a for a in self.others() if self._is_of(a.record)]
        return max(fitting, key=lambda artifact: artifact.record["finished"], default=None)

    def _is_of(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record is of this identity, whatever its fingerprint says."""
        identity = json.loads(json.dumps(self.identity))
        return all(record.get(key) == identity[key] for key in identity)

    def changed_code(self, artifact: Artifact[R]) -> list[str]:
        """Return the files that decide the numbers of this step and have changed since `artifact` was made."""
        return changed(artifact.record.get("code", {}), digests(self.code))

    def build(self) -> Artifact[R]:
        """Fill the directory, going on from whatever an interrupted attempt left there, and record it.

        Raises InputError when another process is making it, or another identity's artifact lies there.
        """
        path = self._folder / fingerprint(self.identity)
        if (there := _record(path)) is not None and not self._is_of(there):
            raise InputError(f"{path / RECORD}: is not the record of what belongs there; move the folder away")
        path.mkdir(parents=True, exist_ok=True)
        start, code = time.monotonic(), digests(self.code)
        with holding(path, shared=self.is_shared):
            result = self.make(path)
            write_json(
                path / RECORD,
                {
                    **self.identity,
                    "fingerprint": path.name,
                    "label": self.label,
                    "recipe": self.recipe,
                    "result": canonical(result, identity=False),
                    "seconds": round(time.monotonic() - start, 2),
                    "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "code": code,
                    "commit": git_commit(),
                    "versions": {name: version(name) for name in _VERSIONED},
                },
            )
        return Artifact(path, read_json(path / RECORD), result)

    def explain_stale(self) -> list[str]:
        """Return, field by field, how the newest other artifact of this step and label differs from this one."""
        others = sorted(self.others(), key=lambda artifact: artifact.record["finished"])
        if not others:
            return []
        mine = {key: self.identity[key] for key in _IDENTITY[1:]}
        return differences({key: others[-1].record[key] for key in mine}, mine)

    def others(self) -> list[Artifact[R]]:
        """Return the finished artifacts of this step and label, of whatever identity."""
        try:
            folders = list(self._folder.iterdir()) if self._folder.exists() else []
        except storage_errors() as error:
            raise InputError(f"{self._folder}: cannot be listed ({error})") from None
        found = [load(folder, self.result) for folder in folders]
        return [artifact for artifact in found if artifact and artifact.record.keys() >= _COMPARED]


def load(path: UPath, result: type[R]) -> Artifact[R] | None:
    """Return the artifact at `path`, or None when there is no record of one whose result is a `result`."""
    record = _record(path)
    try:
        found = json.dumps((record or {})["result"])
        return Artifact(path, record or {}, from_json(found, result, str(path / RECORD), strict=False))
    except (KeyError, InputError):
        return None


def _record(path: UPath) -> dict[str, Any] | None:
    """Return the record of an artifact; {} where it is damaged, None where there is none."""
    try:
        found = read_json(path / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
