"""Both heads learn a known distribution and sample it."""

import numpy as np
import pytest
import torch

from tests.small_model import randomised, small
from train.models.flow import SOLVERS, FlowStep, flow_rows
from train.models.heads import DiffusionHead, FlowHead, HeadSampling, MixtureHead


@pytest.fixture(scope="module")
def trained_heads():
    """Both kinds of head, trained for some seconds on two Gaussians at (-1, 0.5) and (1, -0.5)."""

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        side = torch.randint(0, 2, (count, 1), generator=generator) * 2.0 - 1
        return torch.cat([side, -0.5 * side], 1) + 0.25 * torch.randn(count, 2, generator=generator)

    heads = {}
    for config in (DiffusionHead(width=64, depth=2), FlowHead(width=64, depth=2)):
        torch.manual_seed(0)
        head, generator = config.build(2, 4), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900)
        for step in range(900):
            target = draw(256, step + 10)
            draws = {"uniform": torch.rand(2, 1, 256, generator=generator)}
            draws["noise"] = torch.randn(2, 1, 256, 2, generator=generator)
            optimizer.zero_grad()
            head.loss(target[None], torch.zeros(1, 256, 4), draws).loss.backward()
            optimizer.step()
            schedule.step()
        heads[config.kind] = (head.eval(), draw)
    return heads


@pytest.mark.parametrize(
    ("kind", "solver", "steps"),
    [
        ("diffusion", "ancestral", 100),
        ("diffusion", "ddim", 50),
        ("diffusion", "dpm-solver++", 20),
        ("flow", "ancestral", 50),
        ("flow", "ddim", 50),
    ],
)
def test_head_trained_on_a_mixture_samples_it(kind, solver, steps, trained_heads):
    head, draw = trained_heads[kind]

    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((steps, 4000, 2), dtype=np.float32))
    # from t = 999 the error of a head trained for seconds, times 20,000, would throw single samples far away
    settings_ = HeadSampling(steps=steps, solver=solver, max_timestep=980 if kind == "diffusion" else None)
    with torch.no_grad():
        drawn = head.sample(torch.zeros(4000, 4), noise, settings_)
    true, again = draw(4000, 2), draw(4000, 3)
    assert (drawn.mean(0) - true.mean(0)).abs().max() < 0.1
    assert (drawn.std(0) - true.std(0)).abs().max() < 0.12
    assert energy_distance(drawn, true) < 0.02 + energy_distance(again, true)


def test_temperature_divides_the_predicted_noise_or_scales_the_added():
    """The same network with its noise output divided, at temperature 1, is the reference."""
    head, steps = randomised(small()).head, 4
    condition, noise = torch.randn(7, head.net.cond_embed.in_features), torch.randn(steps, 7, head.channels)

    def drawn(**settings):
        with torch.no_grad():
            return head.sample(condition, noise, HeadSampling(steps=steps, max_timestep=900, **settings))

    plain = {solver: drawn(solver=solver) for solver in ("ancestral", "ddim", "dpm-solver++")}
    on_noise, on_prediction = drawn(temperature=0.8), drawn(temperature=0.8, temperature_on="prediction")
    assert torch.equal(drawn(solver="ddim", temperature=0.8), plain["ddim"])  # adds none
    tempered = {solver: drawn(solver=solver, temperature=0.8, temperature_on="prediction") for solver in plain}
    last = head.net.final_linear
    with torch.no_grad():
        last.weight[: head.channels] /= 0.8
        last.bias[: head.channels] /= 0.8
    for solver in plain:
        torch.testing.assert_close(tempered[solver], drawn(solver=solver))
        assert not torch.equal(plain[solver], tempered[solver])
    assert not torch.equal(on_noise, on_prediction)


@pytest.mark.parametrize("head", [FlowHead(), MixtureHead()])
def test_head_that_predicts_no_noise_refuses_to_have_it_divided(head):
    with pytest.raises(ValueError, match="predicts no noise"):
        head.check(HeadSampling(temperature_on="prediction"))


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely & Rizzo 2013): zero exactly for equal distributions."""
    a, b = a[:2000], b[:2000]
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def test_head_output_of_a_row_does_not_depend_on_how_many_there_are():
    head = randomised(small()).head.net
    x, time, condition = torch.randn(600, 3), torch.randn(1, head.width), torch.randn(600, head.width)
    many, few = head(x, time, condition), head(x[:50], time, condition[:50])
    torch.testing.assert_close(many[:50], few)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_flow_to_one_certain_token_ends_at_it(steps, solver):
    x, token = torch.randn(500, 2), torch.tensor([1.0, -2.0])
    for row in flow_rows(steps, torch.device("cpu")):
        step = FlowStep(*row.unbind())
        x = SOLVERS[solver](step, x, (token - x) / (1 - step.t), torch.randn_like(x))
    torch.testing.assert_close(x, token.expand_as(x), atol=1e-4, rtol=0)
