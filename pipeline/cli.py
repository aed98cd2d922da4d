"""The command line `mar`: the only file that imports tyro. Each command is a function of its arguments."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from infra.cluster import Compute, quiet_environment
from infra.console import OutputClosed, complain, printing, say
from infra.errors import InputError, nearest
from infra.storage import storage_errors

_STEP_OF = {
    "tokenize": "latents",
    "train": "checkpoint",
    "evaluate": "evaluation",
    "tune": "sweep",
    "run": "registration",
}
_USAGE = """usage: mar COMMAND ...

  mar run RECIPE [flags]         every step, from the pictures to the registered model
  mar tokenize|train|evaluate|tune RECIPE [flags]    the steps up to this one
  mar tokenize --source PATH --tokenizer KIND:PATH --image-size N --out ROOT    latents of your own images
  mar evaluate MODEL --source PATH --tokenizer KIND:PATH [flags]    an imported model against real images
  mar sample RECIPE|MODEL [flags]    draw images, or edit them, from a trained or imported model
  mar status RECIPE [flags]      what is cached, what is stale and why, what is missing
  mar latents STORE [--verify]   what a latent store holds
  mar import FILE --tokenizer FILE [flags] / mar export MODEL FILE    published MAR checkpoints, in and out
  mar ui [flags]                 the MLflow UI over the run's store, on loopback
  mar recipes                    the recipes there are

RECIPE is a name, or the path of a saved recipe (.json). `mar COMMAND RECIPE --help` lists the flags."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 bad input or failing storage, 130 interrupted, 141 when nobody reads what is printed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    quiet_environment()
    signal.signal(signal.SIGTERM, _as_interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    try:
        with printing():
            return _dispatch(words)
    except OutputClosed:
        return 128 + signal.SIGPIPE
    except InputError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("interrupted: finished steps are cached; run the same command again to go on")
        return 130
    except storage_errors() as error:  # from a worker, the last line is the error and the others where it was raised
        last = (str(error).strip() or "no reason given").splitlines()[-1]
        complain(f"error: {type(error).__name__}: {last}; what is finished is kept, run again to go on")
        return 2
    except RuntimeError as error:
        complain(f"error: {error}")
        return 1


def _as_interrupt(signum: int, frame: Any) -> None:  # noqa: ANN401, ARG001
    """Treat a job stop like Ctrl-C, so that the cluster is taken down."""
    raise KeyboardInterrupt


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(_USAGE)
        return 0
    name, rest = words[0], words[1:]
    if name not in _COMMANDS:
        raise InputError(f"unknown command '{name}'.{nearest(name, _COMMANDS)} `mar --help` lists them.")
    return _COMMANDS[name](rest) or 0


def _recipe_and_compute(command: str, words: list[str]) -> tuple[Any, Compute]:
    """Return the recipe named by the first word with its overrides, and where to run it."""
    from pipeline.recipes import RECIPES, Recipe

    if not words or words[0].startswith("-"):
        raise InputError(f"mar {command} needs a recipe: {', '.join(RECIPES)}, or the path of a saved one")
    recipe = _named_recipe(words[0])

    @dataclass(frozen=True, kw_only=True)
    class Run:
        """A recipe and where it runs. Every flag overrides what the recipe says."""

        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=lambda: recipe)
        compute: Compute = field(default_factory=Compute)

    parsed = tyro.cli(Run, prog=f"mar {command} {words[0]}", args=words[1:], config=(tyro.conf.AvoidSubcommands,))
    return parsed.recipe, parsed.compute


def _named_recipe(name: str) -> Any:  # noqa: ANN401
    from infra.fingerprint import from_json
    from pipeline.recipes import RECIPES, Recipe

    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".json"):
        try:
            text = Path(name).read_text()
        except OSError as error:
            raise InputError(f"recipe {name}: cannot be read ({error})") from None
        return from_json(_recipe_in(text), Recipe, name)
    raise InputError(f"unknown recipe '{name}'.{nearest(name, RECIPES)} There are: {', '.join(RECIPES)}.")


def _recipe_in(text: str) -> str:
    """Return the recipe in a file: the whole of it, or the field 'recipe' of an artifact's record."""
    import json

    try:
        tree = json.loads(text)
    except ValueError:
        return text
    return json.dumps(tree["recipe"]) if isinstance(tree, dict) and "recipe" in tree and "measured" in tree else text


def _run_until(command: str) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        if command == "tokenize" and any(word.split("=")[0] == "--source" for word in words):
            from pipeline.own_images import tokenize_own

            return tokenize_own(words)
        if command == "evaluate" and words and Path(words[0]).is_dir():
            from pipeline.own_model import evaluate_model

            return evaluate_model(Path(words[0]), words[1:])
        recipe, compute = _recipe_and_compute(command, words)
        from pipeline.run import run as run_recipe

        run_recipe(recipe, compute, _STEP_OF[command])
        return 0

    return run


def _status(words: list[str]) -> int:
    recipe, compute = _recipe_and_compute("status", words)
    from pipeline.status import status

    say(status(recipe, compute))
    return 0


def _recipes(words: list[str]) -> int:  # noqa: ARG001
    from pipeline.recipes import RECIPES

    for name, recipe in RECIPES.items():
        say(f"{name:22} {(recipe.__doc__ or '').splitlines()[0]}")
    return 0


def _ui(words: list[str]) -> int:
    from pipeline.ui import UI, serve

    return serve(tyro.cli(UI, prog="mar ui", args=words))


def _latents(words: list[str]) -> int:
    @dataclass(frozen=True)
    class Latents:
        """Describe a latent store."""

        store: Annotated[str, tyro.conf.Positional]
        """Folder or URL of the store: it holds manifest.json."""
        verify: bool = False
        """Read every shard and compare its bytes with the manifest."""

    chosen = tyro.cli(Latents, prog="mar latents", args=words, config=(tyro.conf.FlagCreatePairsOff,))
    from infra.storage import location
    from tokenize_jobs.store.audit import describe, verify

    say(describe(location(chosen.store)))
    if chosen.verify:
        say(f"\nverified: {verify(location(chosen.store))} shards are as the manifest says")
    return 0


def _sample(words: list[str]) -> int:
    from pipeline.draw import Draw, draw

    if not words or words[0].startswith("-"):
        raise InputError("mar sample needs a recipe or the directory of a model")
    recipe = None if Path(words[0]).is_dir() else _named_recipe(words[0])
    default = Draw() if recipe is None else Draw(sampling=recipe.evaluate.generate.sampling)
    options = tyro.cli(Draw, prog=f"mar sample {words[0]}", args=words[1:], default=default)
    say(draw(words[0], recipe, options))
    return 0


def _import(words: list[str]) -> int:
    from pipeline.published import Import, import_checkpoint

    say(import_checkpoint(tyro.cli(Import, prog="mar import", args=words)))
    return 0


def _export(words: list[str]) -> int:
    from pipeline.published import Export, export_checkpoint

    say(export_checkpoint(tyro.cli(Export, prog="mar export", args=words)))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{command: _run_until(command) for command in _STEP_OF},
    "sample": _sample,
    "status": _status,
    "latents": _latents,
    "import": _import,
    "export": _export,
    "ui": _ui,
    "recipes": _recipes,
}
