"""Figures and page of a sweep: each point is the best trial at its place, and all that ended is said."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.config import DiffusionSteps, Sampling
from infra.storage import location
from tests.tune.test_results import SWEEP, found, trial
from tune.figures import best_of_each, diffusion_steps, figures
from tune.page import write_page
from tune.results import Timed
from tune.search import Ended

values = st.tuples(st.sampled_from([0.9, 1.0, 1.1]), st.sampled_from([1.0, 3.0]), st.floats(1, 9))


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=20))
def test_a_line_holds_the_best_trial_of_each_place_in_order(drawn):
    trials = [trial(Sampling(temperature=t, cfg_scale=c), fd) for t, c, fd in drawn]
    curves = best_of_each(trials, lambda of: of.sampling.temperature)
    expected = {}
    for t, c, fd in drawn:
        expected[c, t] = min(fd, expected.get((c, t), fd))
    assert {(c, of.sampling.temperature): of.fd for c, curve in curves.items() for of in curve} == expected
    for curve in curves.values():
        places = [of.sampling.temperature for of in curve]
        assert places == sorted(places)


def test_steps_of_a_schedule_are_their_mean():
    steps = DiffusionSteps(first=10, last=20, shape="two-stage")
    assert diffusion_steps(trial(Sampling(ar_steps=3, diffusion_steps=steps), 1.0)) == pytest.approx(50 / 3)


def test_figures_are_drawn_of_what_was_searched():
    trials = list(found(lambda s: s.temperature).trials)
    assert set(figures(trials, (), "FD")) == {"speed", "temperature"}
    fewer = [
        replace(of, sampling=replace(of.sampling, diffusion_steps=DiffusionSteps(first=5, last=5))) for of in trials
    ]
    assert set(figures(trials + fewer, (), "FD")) == {"speed", "temperature", "diffusion-steps"}


def test_page_tells_every_trial_the_front_the_edges_and_what_failed(tmp_path):
    result = found(lambda s: 5 + s.temperature + s.cfg_scale, ended=[Ended(Sampling(), "failed", "ValueError: <so>")])
    quick = Timed(label="quick", sampling=Sampling(), fd=7.5, seconds_per_image=0.0625)
    result = write_page(replace(result, front=(quick,), timed_batch=48), location(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert all(of.label in text for of in result.trials)
    assert "No optimum inside the range of temperature" in text
    assert "0.0625" in text
    assert "48 images at once" in text
    assert "ValueError: &lt;so&gt;" in text
    assert text.count("<svg") == len(result.figures) == 2
    assert all(path.stat().st_size > 1000 for path in result.report(location(tmp_path)).files[1:])
    assert all(path.exists() for path in result.report(location(tmp_path)).pictures.values())
    assert len(result.trials) == len(SWEEP.settings(Sampling()))


def test_temperatures_that_act_on_nothing_or_on_something_else_are_not_on_one_line():
    def of(temperature, **setting):
        return trial(Sampling(temperature=temperature, **setting), temperature)

    noise = [of(0.9), of(1.0)]
    assert set(figures([*noise, of(1.0, solver="ddim")], (), "FD")) == {"speed", "temperature"}
    assert set(figures([of(1.0, solver="ddim"), of(1.0)], (), "FD")) == {"speed"}
    both = figures([*noise, of(0.8, temperature_on="prediction")], (), "FD")
    assert set(both) == {"speed", "temperature", "temperature-on-prediction"}
