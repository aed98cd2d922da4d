"""What the step registration returns. Imports nothing heavy."""

from dataclasses import dataclass

from infra.result import Result


@dataclass(frozen=True, kw_only=True)
class RegistrationResult(Result):
    """Which version of which registered model it became."""

    name: str
    version: int
    alias: str

    def headline(self) -> str:
        """Return name, version and alias."""
        return f"{self.name} version {self.version}, alias '{self.alias}'"
