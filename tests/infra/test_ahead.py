"""Steps made ahead come in order, in one thread that ends with the block, whatever ends the block."""

import threading

import pytest

from infra.ahead import made_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("made-ahead")]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("steps", [range(0), range(3, 4), range(2, 9), range(0, 9, 4)])
def test_steps_made_ahead_come_in_order_and_leave_no_thread(steps, most):
    made = []

    def make(step):
        made.append(step)
        return step * 10

    with made_ahead(make, steps, most) as ahead:
        for step, value in ahead:
            assert value == step * 10
            assert len(made) <= steps.index(step) + 1 + most, "more is held than the step and those ahead"
    assert made == list(steps)
    assert not threads()


def test_loop_that_ends_early_leaves_no_thread():
    made = []
    with made_ahead(made.append, range(1000)) as ahead:
        next(ahead)
    assert not threads()
    assert len(made) <= 2


def test_error_is_raised_where_its_step_is_due():
    done = []

    def make(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    with pytest.raises(ValueError, match="step 2"), made_ahead(make, range(5)) as ahead:
        done.extend(step for step, _ in ahead)
    assert not threads()


def test_error_of_the_loop_leaves_no_thread():
    def fail():
        with made_ahead(abs, range(5)) as ahead:
            next(ahead)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not threads()
