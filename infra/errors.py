"""The one exception whose message is meant for the person who typed the command."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class InputError(Exception):
    """What the user gave cannot be used; the message names the field or file, the fault and the remedy.

    The command line prints it as one line, without a traceback, and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the known word nearest to `word`, or ''."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" Did you mean '{close[0]}'?" if close else ""


def require_demo(*modules: str) -> None:
    """Raise InputError unless these modules, of packages that only the demo needs, are installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed. The demo needs them: pip install 'mar-pipeline[demo]'")
