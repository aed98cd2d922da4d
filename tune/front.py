"""The Pareto front of two numbers of which less is better: seconds against distance."""

from collections.abc import Sequence
from dataclasses import replace

from evaluate.config import Sampling
from tune.results import Trial, ranked

_APART = 2.0
"""Of two trials that ran beside others, one is surely faster where it took so many times less."""


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points that no other is better than in one number and no worse in the other.

    They come in the order of their first number; equal points are all of the front, or none is.
    """
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: points[place]):
        if not found or points[place][1] < points[found[-1]][1] or points[place] == points[found[-1]]:
            found.append(place)
    return found


def contenders(trials: Sequence[Trial]) -> list[Trial]:
    """Return what may be of the front when it is timed alone: of settings that take the same time, the best.

    Those are left out that one of a smaller distance is surely faster than.
    """
    best = {_work(trial.sampling): trial for trial in reversed(ranked(trials))}.values()
    return [
        trial for trial in best
        if not any(o.fd < trial.fd and o.seconds_per_image * _APART < trial.seconds_per_image for o in best)
    ]  # fmt: skip


def _work(sampling: Sampling) -> Sampling:
    """Return the setting with what takes no time at its default: guidance has a null branch or none."""
    default, guided = Sampling(), 2.0
    return replace(
        sampling, temperature=default.temperature, temperature_on=default.temperature_on, top_k=default.top_k,
        top_p=default.top_p, cfg_schedule=default.cfg_schedule,
        cfg_scale=sampling.cfg_scale if sampling.cfg_scale == 1 else guided,
    )  # fmt: skip
