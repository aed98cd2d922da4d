"""The Pareto front of two numbers of which less is better: seconds against distance."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points that no other is better than in one number and no worse in the other.

    They come in the order of their first number; equal points are all of the front, or none is.
    """
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: points[place]):
        if not found or points[place][1] < points[found[-1]][1] or points[place] == points[found[-1]]:
            found.append(place)
    return found
