"""Models and images that exist already, as recipes that measure them: nothing is trained."""

import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from evaluate.config import Sampling
from infra.artifact import RECORD
from infra.cluster import Compute, recorded_at
from infra.errors import InputError
from infra.from_json import from_json
from infra.storage import local_root, location, read_json
from pipeline.recipe import Recipe
from pipeline.recipes import given_images, given_model
from pipeline.target import is_recipe, recipe_at
from tokenize_jobs.config import Fit, PretrainedTokenizer, TokenizerFile
from tokenize_jobs.sources.emoji import Emoji
from tokenize_jobs.sources.listing import ImageFiles
from train.card import ModelCard, is_model_directory, read_card
from tune.config import NoSweep

if TYPE_CHECKING:  # MLflow takes seconds to import
    from infra.tracking import Version

REGISTERED = "models:/"
_PACKAGE = "sampling.json"


def model_at(word: str, compute: Compute) -> Recipe:
    """Return a recipe by name or file, or one that measures the model a word names.

    That is a model directory, a checkpoint's artifact or models:/NAME@ALIAS. Raises InputError for anything else.
    """
    if word.startswith(REGISTERED):
        return _registered(word, compute)
    if is_recipe(word):
        return recipe_at(word)
    return _own(location(word)) or _drawn_alone(given_model(word), read_card(location(word)))


def _drawn_alone(recipe: Recipe, card: ModelCard) -> Recipe:
    """Return a recipe that draws as the model's trunk does, of which no recipe tells more."""
    generate = replace(recipe.evaluate.generate, sampling=Sampling.of(card.model))
    return replace(recipe, evaluate=replace(recipe.evaluate, generate=generate))


def measurable_at(word: str, compute: Compute) -> Recipe:
    """Return what `model_at` does, or a recipe that measures the images at a path. Raises InputError for neither."""
    if word.startswith(REGISTERED) or is_recipe(word) or is_model_directory(location(word)):
        return model_at(word, compute)
    if not any(sign in word for sign in "*?[{:") and not location(word).exists():
        raise InputError(f"{word}: no such file or folder: neither a model's directory nor images; a recipe has no '/'")
    return given_images(word)


def model_folder(word: str, compute: Compute) -> UPath:
    """Return the model directory that a word or its record names; models:/NAME@ALIAS is fetched. Raises InputError."""
    if word.startswith(REGISTERED):
        return _fetched(word, compute)[1]
    folder = location(word)
    return folder.parent if folder.name == RECORD else folder


def images_seen(recipe: Recipe, given: ModelCard | None) -> Emoji | ImageFiles:
    """Return a recipe's images: all of them where the model, or its latents, were made by other means.

    A model that a recipe made keeps to that recipe's rule for held-out images.
    """
    images = recipe.images
    if not isinstance(images, ImageFiles):
        return images
    if recipe.latents:  # their names are others: no share of them is known
        return replace(images, heldout_share=0)
    if given is None or any((location(recipe.checkpoint) / name).exists() for name in (RECORD, _PACKAGE)):
        return images
    return replace(images, num_classes=images.num_classes or len(given.classes), heldout_share=0)


def as_trained_with(found: TokenizerFile, card: ModelCard) -> TokenizerFile:
    """Return a fitted tokenizer under the identity that its artifact has, where the model was trained on its latents.

    The content of its files is another identity, since the files may lie anywhere.
    """
    record = _record(location(found.path)) if found.path else {}
    if record.get("step") == "tokenizer" and record.get("fingerprint") == card.tokenizer_hash:
        return TokenizerFile(card.tokenizer_kind, found.path, card.tokenizer_hash)
    return found


def measures_averages(folder: UPath) -> bool:
    """Tell whether a model's averaged weights are what is measured: as the recipe that trained it says, else they are.

    Raises InputError for a record whose recipe cannot be read.
    """
    recipe = _record(folder).get("recipe")
    return not isinstance(recipe, dict) or _recipe(recipe, str(folder / RECORD)).evaluate.generate.use_ema


def _own(folder: UPath) -> Recipe | None:
    """Return the recipe of a checkpoint's artifact, which takes that checkpoint; None for another model directory."""
    record = _record(folder)
    if record.get("step") != "checkpoint" or not isinstance(record.get("recipe"), dict):
        return None
    recipe, card = _recipe(record["recipe"], str(folder / RECORD)), read_card(folder)
    if not isinstance(recipe.tokenizer, Fit):
        return _measuring(recipe, folder, None)
    fitted = sorted((folder.parents[2] / "tokenizer").glob(f"*/{card.tokenizer_hash}"), key=str)
    if not fitted:
        raise InputError(f"{folder}: its tokenizer {card.tokenizer_kind} {card.tokenizer_hash} is not beside it")
    return _measuring(recipe, folder, PretrainedTokenizer(kind="fitted", path=str(fitted[0])))


def _measuring(recipe: Recipe, model: UPath | Path, tokenizer: PretrainedTokenizer | None) -> Recipe:
    return replace(
        recipe, checkpoint=str(model), tune=NoSweep(), tokenizer=recipe.tokenizer if tokenizer is None else tokenizer
    )


def _recipe(tree: Any, origin: str) -> Recipe:  # noqa: ANN401
    return from_json(json.dumps(tree), Recipe, origin)


def _record(folder: UPath) -> dict[str, Any]:
    """Return the record of an artifact, or {} where there is none."""
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _registered(uri: str, compute: Compute) -> Recipe:
    """Return the recipe that a registered version was made by, with its own weights, tokenizer and sampling settings.

    A version that was registered by other means is measured as any model directory.
    """
    version, package = _fetched(uri, compute)
    saved = read_json(package / _PACKAGE)
    tokenizer = saved["tokenizer"]
    kind = "fitted" if tokenizer["kind"].startswith("fit") else tokenizer["kind"]
    file = PretrainedTokenizer(kind=kind, path=str(package / tokenizer["file"]) if tokenizer["file"] else "")
    recipe = _recipe(version.recipe, uri) if version.recipe else given_model("")
    sampling = from_json(json.dumps(saved["sampling"]), Sampling, _PACKAGE)
    generate = replace(recipe.evaluate.generate, sampling=sampling, use_ema=True)  # a package has no raw weights
    measured = replace(recipe, evaluate=replace(recipe.evaluate, generate=generate))
    return _measuring(measured, package, file)


def _fetched(uri: str, compute: Compute) -> "tuple[Version, UPath]":
    """Return a registered version and its files."""
    from infra.tracking import registered_version

    root = local_root(compute.out)
    store = recorded_at(compute, root)
    version = registered_version(uri, store)
    return version, _package(version, store, root / "registered" / version.name / version.number)


def _package(version: "Version", store: str, folder: UPath) -> UPath:
    """Return the version's files in `folder`, where every node finds them; they are fetched once."""
    from infra.tracking import download_model

    package, name = folder / "artifacts" / "package", f"{REGISTERED}{version.name}/{version.number}"
    if not (package / _PACKAGE).exists():
        arriving = Path(f"{folder}.{uuid.uuid4().hex[:8]}")
        arriving.mkdir(parents=True)
        try:
            fetched = download_model(name, store, arriving)
            shutil.rmtree(str(folder), ignore_errors=True)
            fetched.rename(Path(str(folder)))
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
    if not (package / _PACKAGE).exists():
        raise InputError(f"{name}: holds no model of mar (no {_PACKAGE} among its artifacts)")
    return package
