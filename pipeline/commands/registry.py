"""ACTION [NAME [VERSION]] [flags]: versions of registered models: list, promote, rollback

mar registry list [NAME]               ranked under equal conditions, with what each was made from
mar registry promote NAME VERSION      @champion, if it is better beyond its error bar under the same conditions
mar registry rollback NAME             @champion is the one before again
"""

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.cluster import Compute, recorded_at
from infra.console import say, table
from infra.errors import InputError, nearest
from infra.storage import location
from pipeline.flags import parse

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NAMES = {"list": (0, 1), "promote": (2, 2), "rollback": (1, 1)}


@dataclass(frozen=True, kw_only=True)
class Registry:
    """List, promote or roll back the versions of registered models."""

    compute: Compute = field(default_factory=Compute)
    """Where the models are registered."""


def main(words: list[str]) -> None:
    """List or move aliases. Raises InputError for a registry that cannot be reached, with nothing changed."""
    action, *names = itertools.takewhile(lambda word: not word.startswith("-"), words)
    if action not in _NAMES:
        raise InputError(
            f"mar registry {action}: no such action.{nearest(action, _NAMES)} There are {', '.join(_NAMES)}."
        )
    least, most = _NAMES[action]
    if not least <= len(names) <= most:
        raise InputError(f"mar registry {action}: takes {least} to {most} words, not {names}; `mar registry --help`")
    chosen = parse(Registry(), words[1 + len(names) :], f"mar registry {action}")
    uri = recorded_at(chosen.compute, location(chosen.compute.out))
    from infra.tracking import Tracker, answering
    from pipeline import promotion

    client = Tracker(uri, location(chosen.compute.out)).client
    with answering(uri):
        if action == "list":
            _list(client, names)
        else:
            say(promotion.promote(client, *names) if action == "promote" else promotion.rollback(client, *names))


def _list(client: "MlflowClient", names: list[str]) -> None:
    registered = [model.name for model in client.search_registered_models()]
    if not registered and not names:
        raise InputError("no model is registered yet: `mar run` a recipe first")
    for name in names or registered:
        if name in registered and not client.search_model_versions(f"name = '{name}'"):  # its versions were deleted
            say(f"{name}\n  no versions\n")
        else:
            _list_model(client, name)


def _list_model(client: "MlflowClient", name: str) -> None:
    from pipeline import promotion

    versions = promotion.versions_of(client, name)
    aliases = client.get_registered_model(name).aliases
    say(name)
    for group in promotion.ranked(versions):
        tags = group[0].tags
        rows = [(v.version, _aliases(aliases, v), promotion.told_number(v.tags), _beside(v, group[0])) for v in group]
        say(table(rows, ("version", "alias", tags.get("metric", "number"), "beside the best")))
        for version in group:
            made = [(key, version.tags[key]) for key in promotion.LINEAGE if key in version.tags]
            made += [("run", version.run_id)]
            say(f"  version {version.version}: " + ", ".join(f"{key.removeprefix('mar.')} {of}" for key, of in made))
        say()


def _aliases(aliases: dict[str, Any], version: Any) -> str:  # noqa: ANN401
    return ", ".join(f"@{alias}" for alias, number in aliases.items() if str(number) == str(version.version))


def _beside(version: Any, best: Any) -> str:  # noqa: ANN401
    from pipeline import promotion

    if version is best:
        return "best"
    return "worse" if promotion.is_better(best.tags, version.tags) else "tie"
