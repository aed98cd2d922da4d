"""STORE [--verify]: what a latent store holds

STORE is its folder or URL: the one with a manifest.json.
"""

from dataclasses import dataclass

from infra.console import say
from infra.storage import location
from pipeline.flags import parse
from tokenize_jobs.store.audit import describe, verify


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Describe a latent store."""

    verify: bool = False
    """Read every shard and compare its bytes with the manifest."""


def main(words: list[str]) -> None:
    """Print what the store holds."""
    chosen, store = parse(Latents(), words[1:], "mar latents STORE"), location(words[0])
    say(describe(store))
    if chosen.verify:
        say(f"\nverified: {verify(store)} shards are as the manifest says")
