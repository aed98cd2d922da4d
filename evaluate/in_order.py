"""Parts of a result in the order of their index, whatever order workers finish in: sums are rounded in one order."""

from collections.abc import Iterator
from typing import Any


def in_order(parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield parts by their index, holding back those that come early: sums are rounded in one order."""
    early: dict[int, dict[str, Any]] = {}
    following = 0
    for part in parts:
        early[part["index"]] = part
        while following in early:
            yield early.pop(following)
            following += 1
