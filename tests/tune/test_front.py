"""The Pareto front, against trying every pair."""

from hypothesis import given
from hypothesis import strategies as st

from tune.front import front

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
