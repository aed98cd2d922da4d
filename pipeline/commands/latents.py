"""STORE [--verify]: what a latent store holds; for other programs, and from the published code's cache

STORE is its folder or URL: the one with a manifest.json.

    mar latents ./store --export webdataset ./shards
    mar latents ./store --export npz ./cache
    mar latents ./new-store --from npz ./cache --tokenizer kl16:/weights/kl16.ckpt --image-size 256
"""

from dataclasses import dataclass, field
from typing import Literal

from upath import UPath

from infra.console import say
from infra.errors import InputError
from infra.storage import location
from pipeline.flags import From, parse
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.store.audit import describe, verify
from tokenize_jobs.store.cache_import import import_cache
from tokenize_jobs.store.export import Format, export


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Describe a latent store, write it in another form, or make it of one."""

    verify: bool = False
    """Read every shard and compare its bytes with the manifest."""
    export: tuple[Format, str] | None = None
    """Form and folder to write the store in: webdataset, or npz as the published code caches latents."""
    from_: From[tuple[Literal["npz"], str] | None] = None
    """Form and folder to make the store of: npz, the published code's cache."""
    tokenizer: PretrainedTokenizer = field(default_factory=PretrainedTokenizer)
    """The tokenizer whose latents a cache holds."""
    image_size: int = 256
    """Pixels of a side of the images that a cache was made of."""


def main(words: list[str]) -> None:
    """Print what the store holds."""
    chosen, store = parse(Latents(), words[1:], "mar latents STORE"), location(words[0])
    if chosen.from_:
        _import(chosen, location(chosen.from_[1]), store)
    say(describe(store))
    if chosen.verify:
        say(f"\nverified: {verify(store)} shards are as the manifest says")
    if chosen.export:
        form, folder = chosen.export
        say(f"\nexported: {export(store, form, location(folder)):,} images to {location(folder)}")


def _import(chosen: Latents, cache: UPath, store: UPath) -> None:
    """Make the store. Raises InputError for a folder that is not there."""
    if not cache.is_dir():
        raise InputError(f"{cache}: no such folder")
    weights = tokenizers.find(chosen.tokenizer.kind, chosen.tokenizer.path)
    import_cache(
        cache, weights, chosen.image_size, tokenizers.geometry(chosen.tokenizer).of_image(chosen.image_size), store
    )
