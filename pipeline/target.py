"""What a command's first word names. A word with '/' or ':' is a path or URI, any other the name of a recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.errors import InputError, nearest
from infra.from_json import from_json
from pipeline.own_images import SIZES
from pipeline.recipe import Recipe
from pipeline.recipes import RECIPES, own_images


def is_path(word: str) -> bool:
    """Tell whether `word` is a path or URI; what lies on the disk has no say in it."""
    return "/" in word or ":" in word


def is_recipe(word: str) -> bool:
    """Tell whether `word` names a recipe or its file, rather than a folder of images or a model."""
    return not is_path(word) or word.endswith(".json")


def recipe_at(word: str) -> Recipe:
    """Return the recipe of this name, in this .json file (alone, or in an artifact's record), or for images at a path.

    Raises InputError for an unknown name and for a file that holds no recipe.
    """
    if not is_path(word):
        if word in RECIPES:
            return RECIPES[word]()
        if word in SIZES:
            raise InputError(f"{word} follows from pictures and budget: give an artifact.json that was made by it")
        names = [*RECIPES, *SIZES]
        raise InputError(
            f"unknown recipe '{word}'.{nearest(word, names)} There are: {', '.join(names)}. A path has a '/': ./{word}"
        )
    return _saved(word) if word.endswith(".json") else own_images(word)


def recipe_in(tree: Mapping[str, Any], name: str) -> Recipe:
    """Return the recipe in a record. Raises InputError, naming `name`, for what is none."""
    return from_json(json.dumps(tree), Recipe, name)


def _saved(file: str) -> Recipe:
    try:
        text = Path(file).expanduser().read_text()
    except OSError as error:
        raise InputError(f"recipe {file}: cannot be read ({error})") from None
    return from_json(_recipe_in(text), Recipe, file)


def _recipe_in(text: str) -> str:
    """Return the recipe in a file: the whole of it, or the field 'recipe' of an artifact's record."""
    try:
        tree = json.loads(text)
    except ValueError:
        return text
    return json.dumps(tree["recipe"]) if isinstance(tree, dict) and "recipe" in tree and "result" in tree else text
