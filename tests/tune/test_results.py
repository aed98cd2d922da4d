"""What a sweep says of its trials: the winner, its ties, the ends of the ranges, and every trial's record."""

import json
from dataclasses import replace

import pytest

from evaluate.conditions import Conditions
from evaluate.config import Sampling
from infra.errors import InputError
from infra.fingerprint import canonical
from infra.from_json import from_json
from infra.storage import location
from tests.small_model import small, small_of_codes
from tune.config import SamplingSweep
from tune.results import SweepResult, Trial, label, settings
from tune.sampling_sweep import Measured, result_of, widened
from tune.search import Ended

MODEL, BASE = small(), Sampling(ar_steps=4)
SWEEP = SamplingSweep(temperature=(0.9, 1.0, 1.1), cfg_scale=(1.0, 3.0, 5.0), ar_steps=(4,), images=64, finalists=0)
CONDITIONS = Conditions(
    extractor="efficientnet-lite0", layer="1280", dimension=1280, extractor_weights="0", image_size=32, images=64,
    reference="0", reference_images=100, precision="fp32",
)  # fmt: skip


TEMPERATURE = "--tune.temperature or --tune.widen"
LARGEST_CFG = "cfg_scale (best at 5, the largest tried: larger --tune.cfg-scale or --tune.widen)"


def trial(sampling, fd, error=0.1, images=64, seconds=1.0):
    return Trial(
        label=label(sampling, MODEL.head), sampling=sampling, numbers={"fd": fd, "fd_error": error}, images=images, seed=0,
        seconds=1.0, seconds_per_image=seconds,
    )  # fmt: skip


def found(distance, sweep=SWEEP, finalists=(), ended=(), model=MODEL):
    trials = [trial(sampling, distance(sampling)) for sampling in sweep.settings(Sampling())]
    return result_of(sweep, Measured(trials, finalists, ended, ()), CONDITIONS, 64, model)


def bowl(temperature, cfg_scale):
    return lambda s: 2 + (s.temperature - temperature) ** 2 * 100 + (s.cfg_scale - cfg_scale) ** 2


def test_winner_is_the_setting_of_the_smallest_distance_and_nothing_is_doubted_inside_the_range():
    result = found(bowl(1.0, 3.0))
    assert (result.best.temperature, result.best.cfg_scale, result.best_fd) == (1.0, 3.0, 2.0)
    assert result.edges == result.tied == ()
    assert result.headline() == (
        "best of 9 trials: FD (efficientnet-lite0, 64) 2 at temperature 1, CFG 3, 4 AR x 100 diffusion steps"
    )


@pytest.mark.parametrize(
    ("temperature", "cfg", "ends"),
    [(0.5, 3.0, (f"temperature (best at 0.9, the smallest tried: smaller {TEMPERATURE})",)), (1.0, 9.0, (LARGEST_CFG,)), (1.0, -3.0, ()),
     (9.0, 9.0, (f"temperature (best at 1.1, the largest tried: larger {TEMPERATURE})", LARGEST_CFG))],
)  # fmt: skip
def test_best_on_the_edge_of_its_range_is_no_optimum_and_is_said(temperature, cfg, ends):
    result = found(bowl(temperature, cfg))
    assert result.edges == ends
    assert ("no optimum inside the range of" in result.headline()) == bool(ends)


def test_end_that_is_within_error_of_the_best_is_said():
    flat = found(lambda s: 2 + (s.temperature - 1) ** 2 * 100 + 0.01 * (s.cfg_scale - 3) ** 2)
    (told,) = flat.edges
    assert told.startswith("cfg_scale (best at 3, none tried above it is worse beyond error: larger --tune.cfg-scale")


def test_both_sides_of_a_setting_that_makes_no_difference_are_said():
    flat = found(lambda s: 2 + (s.cfg_scale - 3) ** 2)
    assert [told.partition(":")[0] for told in flat.edges] == [
        "temperature (best at 0.9, the smallest tried", "temperature (best at 0.9, none tried above it is worse beyond error"
    ]  # fmt: skip


@pytest.mark.parametrize(("best", "end"), [(5, "smallest tried: smaller"), (20, "largest tried: larger"), (10, None)])
def test_ends_of_numbers_of_diffusion_steps_are_said_whatever_schedules_are_tried_beside_them(best, end):
    sweep = replace(SWEEP, temperature=(), cfg_scale=(), diffusion_steps=(5, 10, 20), step_schedules=((5, 20),))
    result = found(
        lambda s: 2 + abs(s.diffusion_steps.first - best) + 3 * (s.diffusion_steps.last - s.diffusion_steps.first),
        sweep,
    )
    told = (f"diffusion_steps (best at {best}, the {end} --tune.diffusion-steps)",) if end else ()
    assert result.edges == told


LAST = [
    ("top_p", (0.8, 0.9, 1.0)),
    ("max_timestep", (900, 950, 999)),
    ("ar_steps", (4, 8, 16)),
    ("diffusion_steps", (100, 1000)),
]


def number(sampling, name):
    value = getattr(sampling, name)
    return value.first if name == "diffusion_steps" else value


@pytest.mark.parametrize(("name", "values"), LAST)
def test_nothing_lies_above_what_is_the_most_there_can_be(name, values):
    sweep, flag = replace(SWEEP, temperature=(), cfg_scale=(), **{name: values}), name.replace("_", "-")
    assert found(lambda s: -100 * number(s, name), sweep).edges == ()
    for slope in (0, 100):  # where the largest is as good as the best too
        (told,) = found(lambda s, slope=slope: slope * number(s, name), sweep).edges
        assert told == f"{name} (best at {values[0]:g}, the smallest tried: smaller --tune.{flag})"


@pytest.mark.parametrize(
    ("model", "name", "values"),
    [(small(), "ar_steps", (4, 8)), (small(patch_size=2), "ar_steps", (2, 4)), (small(), "diffusion_steps", (9, 999)),
     (small(kind="flow"), "diffusion_steps", (9, 1000))],
)  # fmt: skip
def test_most_of_a_setting_is_what_the_model_takes(model, name, values):
    sweep = replace(SWEEP, temperature=(), cfg_scale=(), **{name: values})
    sweep.check(model, BASE)
    further = f"larger --tune.{name.replace('_', '-')}"
    told = any(further in of for of in found(lambda s: -100 * number(s, name), sweep, model=model).edges)
    try:
        replace(sweep, **{name: (*values, values[-1] + 1)}).check(model, BASE)
    except InputError:
        assert not told
    else:
        assert told


@pytest.mark.parametrize(
    ("name", "values"), [("ar_steps", (1, 4)), ("diffusion_steps", (1, 4)), ("max_timestep", (0, 900))]
)
def test_nothing_lies_below_what_is_the_least_there_can_be(name, values):
    sweep = replace(SWEEP, temperature=(), cfg_scale=(), **{name: values})
    assert found(lambda s: 100 * number(s, name), sweep).edges == ()


def read(distance):
    return lambda ended: [trial(of.sampling, distance(of.sampling)) for of in ended if of.state == "finished"]


def all_end(state):
    return lambda settings: [Ended(sampling, state, "") for sampling in settings]


@pytest.mark.parametrize(("temperature", "cfg"), [(1.0, 40.0), (0.3, 9.0), (2.5, 1.0), (1.0, 3.0)])
def test_ranges_are_widened_until_the_planted_optimum_is_between_their_ends(temperature, cfg):
    planned = all_end("finished")(SWEEP.settings(Sampling()))
    sweep = replace(SWEEP, widen=60)
    ended = widened(planned, sweep, read(bowl(temperature, cfg)), all_end("finished"))
    assert len({of.sampling for of in ended}) == len(ended) < len(planned) + 60
    result = result_of(sweep, Measured(read(bowl(temperature, cfg))(ended), (), ended, ()), CONDITIONS, 64, MODEL)
    assert result.edges == ()
    assert result.best.temperature == pytest.approx(temperature, rel=0.12)
    assert result.best.cfg_scale == pytest.approx(cfg, rel=0.4)
    assert (len(ended) == len(planned)) == ((temperature, cfg) == (1.0, 3.0))


@pytest.mark.parametrize(("state", "most", "further"), [("finished", 3, 3), ("failed", 9, 2), ("finished", 0, 0)])
def test_widening_ends_with_its_budget_or_where_nothing_beyond_finishes_and_the_open_ends_are_said(
    state, most, further
):
    planned = all_end("finished")(SWEEP.settings(Sampling()))
    sweep = replace(SWEEP, widen=most)
    ended = widened(planned, sweep, read(bowl(9.0, 90.0)), all_end(state))
    assert len(ended) == len(planned) + further
    result = result_of(sweep, Measured(read(bowl(9.0, 90.0))(ended), (), ended, ()), CONDITIONS, 64, MODEL)
    assert {told.partition(" ")[0] for told in result.edges} == {"temperature", "cfg_scale"}
    assert len(result.unfinished) == (further if state == "failed" else 0)


def test_trials_within_the_error_of_a_difference_are_called_ties():
    settings = SWEEP.settings(Sampling())
    distances = dict(zip(settings, [5.0, 5.2, 5.5, 9, 9, 9, 9, 9, 9], strict=True))
    result = found(distances.__getitem__)
    assert result.tied == (label(settings[1], MODEL.head),)  # 0.2 is less than 2 x sqrt(2) x 0.1, and 0.5 is more
    assert "within error of 1 more" in result.headline()


def test_finalists_decide():
    first, second = (replace(SWEEP.settings(Sampling())[0], temperature=t) for t in (0.9, 1.0))
    finals = (trial(first, 4.0, images=640), trial(second, 3.0, images=640))
    result = found(bowl(0.9, 1.0), finalists=finals)
    assert (result.best, result.best_fd) == (second, 3.0)
    assert "FD (efficientnet-lite0, 640) 3 at" in result.headline()


def test_every_planned_trial_has_a_record_and_a_run_of_its_own(tmp_path):
    settings = SWEEP.settings(Sampling())
    ended = [
        Ended(settings[0], "failed", "ValueError: so"),
        Ended(settings[1], "stopped", "not begun within 1 minutes"),
    ]
    result = found(bowl(1.0, 3.0), ended=[*ended, *(Ended(s, "finished") for s in settings[2:])])
    assert [(trial.state, trial.reason) for trial in result.unfinished] == [(end.state, end.reason) for end in ended]
    assert result.headline().endswith("1 failed; 1 stopped")
    report = result.report(location(tmp_path))
    runs = [of for _, of in report.trials.values()]
    assert [of.metrics["fd"] for of in runs if of.metrics] == [trial.fd for trial in result.trials]
    assert {of.tags["metric"] for of in runs if of.metrics} == {"FD (efficientnet-lite0, 64)"}
    assert [of.tags["state"] for of in runs if not of.metrics] == ["failed", "stopped"]


def test_result_is_read_back_as_it_was_written():
    result = found(bowl(1.0, 3.0))
    assert from_json(json.dumps(canonical(result, identity=False)), SweepResult, "here") == result


def test_trials_of_every_axis_have_labels_and_settings_of_their_own():
    axes = SamplingSweep(
        temperature=(0.9, 1.1), temperature_on=("noise", "prediction"), cfg_scale=(1.5, 3.0), cfg_schedule=("linear", "constant"),
        ar_steps=(4, 8), diffusion_steps=(5, 7), order=("random", "raster"), max_timestep=(900, 950), top_k=(0, 32),
        top_p=(1.0, 0.9),
    )  # fmt: skip
    every = axes.settings(Sampling())
    assert len({label(sampling, MODEL.head) for sampling in every}) == len(every)
    assert len({json.dumps(settings(sampling, MODEL.head)) for sampling in every}) == len(every)


def test_trial_that_was_cut_by_noise_before_the_finalists_is_a_tie():
    trials = [trial(Sampling(temperature=t), fd, error=0.5) for t, fd in ((1.0, 2.0), (0.9, 2.1), (1.1, 9.0))]
    finalist = trial(Sampling(temperature=1.0), 1.9, images=640)
    result = result_of(SWEEP, Measured(trials, [finalist], (), ()), CONDITIONS, 64, MODEL)
    assert result.tied == (trials[1].label,)


def test_failed_trials_are_a_record_each():
    ended = [Ended(Sampling(top_k=k), "failed", "out of memory") for k in (1, 2, 3)]
    result = found(bowl(1.0, 3.0), ended=ended)
    assert sum(name.startswith("failed") for name in result.report(location("x")).trials) == 3


def test_sweep_over_numbers_of_diffusion_steps_has_a_winner():
    sweep = replace(SWEEP, diffusion_steps=(5, 7), step_schedules=((9, 3),))
    result = found(lambda s: s.diffusion_steps.first, sweep)
    assert result.best.diffusion_steps.first == 5


def test_setting_that_failed_is_not_tried_again_beyond_the_ends():
    planned, asked = all_end("finished")(SWEEP.settings(Sampling())), []

    def run(further):
        asked.extend(further)
        return [Ended(of, "failed" if of.cfg_scale > 5 else "finished", "") for of in further]

    ended = widened(planned, replace(SWEEP, widen=40), read(bowl(0.3, 40.0)), run)
    assert len(set(asked)) == len(asked)
    assert len({of.sampling for of in ended}) == len(ended)


def test_finalists_and_trials_are_told_under_their_own_numbers_of_images():
    trials = [trial(Sampling(temperature=t), fd) for t, fd in ((1.0, 2.0), (0.9, 3.0))]
    result = result_of(
        SWEEP, Measured(trials, [trial(Sampling(temperature=1.0), 1.5, images=640)], (), ()), CONDITIONS, 64, MODEL
    )
    report = result.report(location("x"))
    assert report.tags["metric"] == "FD (efficientnet-lite0, 640)"
    assert report.tags["rank_deficient"] == "true"
    assert report.tags["condition.images"] == "640"
    assert {of.tags["rank_deficient"] for _, of in report.trials.values()} == {"true"}
    told = {of.tags["metric"] for _, of in report.trials.values()}
    assert told == {"FD (efficientnet-lite0, 640)", "FD (efficientnet-lite0, 64)"}


CODES = small_of_codes()


def test_of_a_head_without_a_process_no_diffusion_steps_are_told():
    sweep, failed = replace(SWEEP, top_k=(0, 5)), Ended(replace(BASE, top_k=3), "failed", "out of memory")
    told = found(bowl(1.0, 3.0), sweep, ended=[failed], model=CODES)
    assert from_json(json.dumps(canonical(told, identity=False)), SweepResult, "here") == told
    assert told.unfinished[0].label == "temperature 1, CFG 1, 4 AR steps, top-k 3"
    assert label(replace(BASE, order="raster"), CODES.head) == "temperature 1, CFG 1, 4 AR steps, raster"
    runs = [run for _, run in told.report(location("x")).trials.values()]
    assert len({json.dumps(run.params) for run in runs}) == len(runs) == len(told.trials) + 1
    assert not any("diffusion_steps" in run.params for run in runs)
    for continuous in (small(), small(kind="flow")):
        told = found(bowl(1.0, 3.0), model=continuous)
        assert all(run.params["diffusion_steps"] == "100" for _, run in told.report(location("x")).trials.values())
        assert label(BASE, continuous.head) == "temperature 1, CFG 1, 4 AR x 100 diffusion steps"


def test_diffusion_steps_of_a_head_without_a_process_are_not_searched():
    SWEEP.check(CODES, BASE)
    for steps in ({"diffusion_steps": (5,)}, {"step_schedules": ((9, 5),)}):
        with pytest.raises(InputError, match="no effect: a categorical head runs no process backwards"):
            replace(SWEEP, **steps).check(CODES, BASE)
