"""The space of a sampling sweep: what is tried, and what is refused before anything runs."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.config import DiffusionSteps, Sampling
from infra.errors import InputError
from train.models.config import tiny
from train.models.heads import MixtureHead, RegressionHead
from train.models.trunks import CausalTrunk
from tune.config import SamplingSweep, effective

BASE = Sampling(max_timestep=950, ar_steps=8, solver="ancestral")
MODEL = tiny().on(latent_size=4, latent_channels=4, num_classes=2)
SWEEP = SamplingSweep(temperature=(0.9, 1.0), cfg_scale=(2.0, 3.0), ar_steps=(4,), images=64, finalists=0)
NOTHING = SamplingSweep(temperature=(), cfg_scale=(), ar_steps=(), images=64, finalists=0)


def axis(values):
    return st.lists(st.sampled_from(values), unique=True, max_size=len(values)).map(tuple)


spaces = st.builds(
    SamplingSweep, temperature=axis([0.9, 1.0, 1.1]), cfg_scale=axis([1.0, 2.0, 5.0]), ar_steps=axis([4, 8]),
    cfg_schedule=axis(["linear", "constant"]), diffusion_steps=axis([5, 10]), solver=axis(["ancestral", "ddim"]),
    max_timestep=axis([900, 999]), order=axis(["random", "halton"]),
)  # fmt: skip


@settings(deadline=None)
@given(spaces)
def test_every_combination_is_a_trial_once_and_keeps_what_is_not_searched(sweep):
    axes, settings = sweep.axes(), sweep.settings(BASE)
    assert len(set(settings)) == len(settings)
    searched = (
        "temperature",
        "cfg_scale",
        "ar_steps",
        "cfg_schedule",
        "diffusion_steps",
        "solver",
        "order",
        "max_timestep",
    )
    for setting in settings:
        kept = {name: getattr(BASE, name) for name in searched if name not in axes}
        assert effective(replace(setting, **kept)) == setting
        assert replace(setting, **{name: getattr(BASE, name) for name in searched}) == BASE
    for name in set(axes) - {"temperature", "cfg_schedule"}:
        assert {getattr(setting, name) for setting in settings} == set(axes[name])


def test_settings_without_effect_are_not_trials_of_their_own():
    guided = replace(SWEEP, cfg_scale=(1.0, 2.0), cfg_schedule=("linear", "constant")).settings(BASE)
    assert len(guided) == 2 * 3
    noisy = replace(SWEEP, cfg_scale=(2.0,), solver=("ancestral", "ddim")).settings(BASE)
    assert len(noisy) == 2 + 1


def test_temperature_of_a_solver_without_noise_is_tried_where_it_divides_the_prediction():
    both = replace(SWEEP, cfg_scale=(2.0,), solver=("ddim",), temperature_on=("noise", "prediction"))
    assert {(s.temperature, s.temperature_on) for s in both.settings(BASE)} == {(1.0, "noise"), (0.9, "prediction")}
    both.check(MODEL, BASE)


def test_constant_diffusion_steps_and_schedules_lie_on_one_axis():
    sweep = replace(NOTHING, diffusion_steps=(10,), step_schedules=((10, 5), (20, 20)))
    assert [s.diffusion_steps for s in sweep.settings(BASE)] == [
        DiffusionSteps(first=10, last=10), DiffusionSteps(first=10, last=5), DiffusionSteps(first=20, last=20)
    ]  # fmt: skip


@settings(deadline=None)
@given(spaces, st.integers(1, 20), st.integers(0, 3))
def test_of_a_larger_grid_the_seed_chooses_the_trials(sweep, trials, seed):
    limited = replace(sweep, trials=trials, seed=seed)
    chosen, every = limited.planned(BASE), limited.settings(BASE)
    assert len(chosen) == min(trials, len(every)) == limited.count(BASE)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(every)
    assert chosen == limited.planned(BASE)


def test_another_seed_chooses_other_trials():
    sweep = replace(SWEEP, temperature=tuple(i / 10 for i in range(1, 30)), trials=5)
    assert len({tuple(replace(sweep, seed=seed).planned(BASE)) for seed in range(8)}) == 8


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (NOTHING, "searches nothing"),
        (replace(SWEEP, temperature=(1.0, 1.0)), "temperature names a value twice"),
        (replace(NOTHING, diffusion_steps=(5,), step_schedules=((5, 5),)), "diffusion-steps names a value twice"),
        (replace(SWEEP, solver=("ddim",)), "temperature has no effect"),
        (replace(SWEEP, temperature=(0.0, 1.0), temperature_on=("prediction",)), "temperature must be above 0"),
        (replace(SWEEP, ar_steps=(4, 17)), "from 1 to the 16 tokens"),
        (replace(SWEEP, max_timestep=(1000,)), "max-timestep 1000 must be from 0 to 999"),
        (replace(SWEEP, temperature=(-1.0, 1.0)), "temperature is -1.0; it must be a number, 0 or more"),
        (replace(SWEEP, diffusion_steps=(0,)), "diffusion_steps must be at least 1"),
        (replace(SWEEP, trials=-1), "trials -1 is below 0"),
        (replace(SWEEP, widen=-1), "widen -1 is below 0"),
        (replace(NOTHING, diffusion_steps=(5, 9), widen=2), "at least two values"),
        (replace(SWEEP, minutes=-0.5), "minutes -0.5 is below 0"),
        (replace(SWEEP, images=1), "at least two images"),
        (replace(SWEEP, search="optuna"), "how many --tune.trials"),
        (replace(SWEEP, finalists=2, final_images=64), "no more than --tune.images 64"),
    ],
)
def test_space_or_budget_that_makes_no_sense_is_refused(sweep, message):
    with pytest.raises(InputError, match=message):
        sweep.check(MODEL, BASE)


def test_temperature_of_a_head_that_draws_from_no_distribution_is_refused():
    base = replace(BASE, max_timestep=None)
    for head, said in (
        (RegressionHead(), pytest.raises(InputError, match="a regression head draws from no distribution")),
        (MixtureHead(), nullcontext()),
    ):
        with said:
            SWEEP.check(replace(MODEL, head=head), base)


def test_settings_that_the_model_cannot_take_are_refused():
    with pytest.raises(InputError, match="label_drop 0"):
        SWEEP.check(replace(MODEL, label_drop=0.0), BASE)
    with pytest.raises(InputError):
        replace(SWEEP, order=("random", "raster")).check(replace(MODEL, trunk=CausalTrunk()), BASE)
    SWEEP.check(MODEL, BASE)
