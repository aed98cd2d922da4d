"""A sweep's trials: every combination once, everything else as the recipe says."""

import random
from dataclasses import replace

import pytest

from evaluate.config import DiffusionSteps, Sampling
from tune.config import SamplingSweep


@pytest.mark.parametrize("seed", range(5))
def test_every_combination_is_one_trial_and_the_rest_is_the_recipes(seed):
    drawn = random.Random(seed)
    temperatures = tuple(drawn.sample([0.5, 0.7, 0.9, 1.0], drawn.randint(1, 3)))
    scales = tuple(drawn.sample([1.0, 2.0, 3.0], drawn.randint(1, 3)))
    steps = tuple(drawn.sample([4, 8, 16, 32], drawn.randint(1, 4)))
    schedules = tuple(drawn.sample([(50, 5), (25, 25), (100, 10)], drawn.randint(1, 3)))
    base = Sampling(order="raster", cfg_schedule="constant", precision="bf16", max_timestep=950)
    sweep = SamplingSweep(temperature=temperatures, cfg_scale=scales, ar_steps=steps, step_schedules=schedules)
    trials = sweep.settings(base)
    told = {(t.temperature, t.cfg_scale, t.ar_steps, t.diffusion_steps.first, t.diffusion_steps.last) for t in trials}
    assert told == {(t, c, a, *s) for t in temperatures for c in scales for a in steps for s in schedules}
    assert len(trials) == len(told)
    fields = ("temperature", "cfg_scale", "ar_steps", "diffusion_steps")
    assert all(replace(t, **{name: getattr(base, name) for name in fields}) == base for t in trials)


def test_without_step_schedules_the_recipes_is_kept():
    base = Sampling(diffusion_steps=DiffusionSteps(first=7, last=3, shape="two-stage"))
    assert {trial.diffusion_steps for trial in SamplingSweep().settings(base)} == {base.diffusion_steps}
