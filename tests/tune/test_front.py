"""The Pareto front, against trying every pair; and which settings are timed alone for it."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from evaluate.config import Sampling
from tests.tune.test_results import trial
from tune.front import front
from tune.sampling_sweep import _timed_front

numbers = st.integers(0, 6).map(float)  # few values, so that many are equal


def is_better(first, second):
    return first != second and first[0] <= second[0] and first[1] <= second[1]


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_front_holds_exactly_the_points_that_no_other_is_better_than(points):
    expected = {i for i, point in enumerate(points) if not any(is_better(other, point) for other in points)}
    found = front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [points[i] for i in found] == sorted(points[i] for i in found)


class Alone:
    """Ray, for one task at a time in this process."""

    def remote(self, function):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=function))

    def get(self, found):
        return found


def test_front_is_of_speeds_that_differ_and_misses_none_that_a_neighbour_slowed_down(monkeypatch):
    def timed(_, settings):
        asked.extend(settings)
        return [of.ar_steps / 8 * (1 if of.cfg_scale == 1 else 2) for of in settings]

    asked = list[Sampling]()
    monkeypatch.setattr("tune.sampling_sweep.ray", Alone())
    monkeypatch.setattr("tune.sampling_sweep.time_alone", timed)
    best, same, other = (Sampling(ar_steps=64, temperature=t, cfg_scale=c) for t, c in ((1, 5), (0.9, 5), (1, 3)))
    slowed, hopeless = Sampling(ar_steps=48, cfg_scale=5), Sampling(ar_steps=128, cfg_scale=5)
    plain = Sampling(ar_steps=64, cfg_scale=1)
    trials = [
        trial(best, 10.0, seconds=1.0), trial(same, 11.0, seconds=0.9), trial(other, 12.0, seconds=0.8),
        trial(slowed, 13.0, seconds=1.1), trial(plain, 90.0, seconds=0.5), trial(hopeless, 14.0, seconds=9.0),
    ]  # fmt: skip
    found = _timed_front(trials, None, SimpleNamespace(cpus=1, gpus=0))
    assert [of.sampling for of in found] == [plain, slowed, best]
    assert [of.seconds_per_image for of in found] == [8.0, 12.0, 16.0]
    assert set(asked) == {plain, slowed, best}
