"""The command line `mar`: finds the file of a command, and turns what it raises into one line and an exit code."""

import ast
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.cluster import quiet_environment
from infra.console import OutputClosed, complain, printing, say
from infra.errors import InputError, nearest
from infra.storage import storage_errors
from pipeline import commands

_HELP = ("-h", "--help", "help")
_TARGETS = """\
A word with '/' or ':' is a path or URI, any other the name of a recipe: `mar recipes` lists them. RECIPE can be the
path of a saved recipe or of an artifact.json, IMAGES is a folder or bucket, MODEL the directory of a model. Flags are
the fields of the recipe, and --compute.*: where it runs. `mar COMMAND TARGET --help` lists them."""


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
    if not words or words[0] in _HELP:
        say(_usage())
        return 0
    name, rest = words[0], words[1:]
    if name not in commands.COMMANDS:
        raise InputError(f"unknown command '{name}'.{nearest(name, commands.COMMANDS)} `mar --help` lists them.")
    takes, _, help_text = described(name)
    needs_target = takes[:1].isupper()
    if needs_target and rest and rest[0] in _HELP:
        say(f"usage: mar {name} {takes}\n\n{help_text}\n\n{_TARGETS}")
        return 0
    if needs_target and (not rest or rest[0].startswith("-")):
        raise InputError(
            f"mar {name} needs {takes.split()[0]} before its flags. `mar {name} --help` says what that is."
        )
    try:
        return importlib.import_module(f"pipeline.commands.{_file(name).stem}").main(rest) or 0
    except SystemExit as ended:  # flags that are not there, or --help
        return int(ended.code or 0)


def described(name: str) -> tuple[str, str, str]:
    """Return what a command takes ('RECIPE [flags]'), its line and its help, without importing it."""
    text = ast.get_docstring(ast.parse(_file(name).read_text())) or ""
    takes, _, told = text.partition(": ")
    return takes, told.splitlines()[0], told


def _file(name: str) -> Path:
    folder = Path(commands.__path__[0])
    plain = folder / f"{name}.py"
    return plain if plain.exists() else folder / f"{name}_.py"


def _usage() -> str:
    told = {name: described(name) for name in commands.COMMANDS}
    lines = [f"  mar {f'{name} {takes}':30} {line}" for name, (takes, line, _) in told.items()]
    return "\n".join(["usage: mar COMMAND TARGET [flags]", "", *lines, "", _TARGETS])
