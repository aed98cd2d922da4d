"""The order by confidence: the published masks, and a sampler that follows it."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.confidence import most_confident, to_gumbel
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.orders import cosine_reveal
from evaluate.sampling.sampler import sample
from infra.errors import InputError
from tests.golden_arrays import load
from tests.small_model import randomised, small, small_of_codes
from train.models.heads import MixtureHead

SETTINGS = Sampling(ar_steps=5, order="confidence")
SCORE = 1e-6
"""Of the largest score: a log probability in float32, and the noise."""


@pytest.mark.parametrize("run", range(4))
def test_tokens_kept_in_each_step_are_the_published_ones(run):
    golden = load("maskgit_decoding")
    meta, arrays = golden.meta["runs"][run], golden.arrays
    steps, batch = meta["T"], meta["batch"]
    counts, known = cosine_reveal(256, steps), torch.full((batch, 256), -1)
    for step in range(steps):
        seed = zlib.crc32(f"{golden.meta['logit_tag']}:{steps}:{step}".encode())
        logits = 2.5 * np.random.RandomState(seed).standard_normal((batch, 256, 1024))
        drawn = arrays[f"run{run}.draws"][step]
        density = torch.from_numpy(logits.astype(np.float32)).log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        hidden = (known < 0).nonzero()[:, 1].view(batch, -1)
        settings = replace(SETTINGS, ar_steps=steps, choice_temperature=meta["temperature"])
        gumbel = arrays[f"run{run}.gumbel"][step].gather(1, hidden)
        noise = settings.choice_noise_at(step)
        surest = most_confident(density.gather(1, hidden), gumbel, noise)
        score, recorded = density.gather(1, hidden) + noise * gumbel, arrays[f"run{run}.score"][step].gather(1, hidden)
        assert (score - recorded).abs().max() < SCORE * recorded.abs().max()
        assert torch.equal(surest, recorded.argsort(1, descending=True))
        torch.testing.assert_close(
            density.exp()[known < 0], arrays[f"run{run}.prob"][step][known < 0], rtol=1e-5, atol=0
        )
        assert arrays[f"run{run}.prob"][step][known >= 0].isinf().all()
        kept = hidden.gather(1, surest)[:, : counts[step]]
        known = known.scatter(1, kept, drawn.gather(1, kept))
        if step < steps - 1:
            assert torch.equal(known < 0, arrays[f"run{run}.mask"][step].bool())
            assert (known < 0).sum(1).eq(arrays[f"run{run}.mask_len"][step]).all()
            entering = torch.where(known < 0, golden.meta["mask_id"], known)
            assert torch.equal(entering, arrays[f"run{run}.tokens"][step])
    assert torch.equal(known, arrays[f"run{run}.final"])


def test_gumbel_numbers_have_their_distribution():
    drawn = to_gumbel(torch.from_numpy(np.random.default_rng(0).standard_normal(20_000, dtype=np.float32)))
    expected = torch.exp(-torch.exp(-drawn.sort().values))
    assert (expected - torch.arange(20_000) / 20_000).abs().max() < 1.63 / 20_000**0.5  # Kolmogorov-Smirnov at 1 %
    assert to_gumbel(torch.tensor([-8.0, 8.0])).isfinite().all()


@pytest.mark.parametrize("config", [small_of_codes(), replace(small(), head=MixtureHead(components=3))])
@torch.no_grad()
def test_surest_tokens_are_kept_and_never_drawn_again(config):
    model, labels, seen = randomised(config), torch.arange(3), []
    original = model.conditions

    def recorded(state, tokens, start, stop):
        seen.append((state.order[:3], tokens[:3].clone(), start, stop))
        return original(state, tokens, start, stop)

    model.conditions = recorded
    settings = replace(SETTINGS, cfg_scale=2.0)
    images = sample(model, labels, ImageNoise(0, range(3)), settings)
    final = images.flatten(2).transpose(1, 2)
    counts = cosine_reveal(16, 5)
    assert [start for *_, start, _ in seen] == [sum(counts[:step]) for step in range(5)]
    for order, tokens, start, stop in seen:
        assert stop == 16  # all hidden tokens are drawn, some are kept
        assert torch.equal(order.sort(1).values, torch.arange(16).expand(3, -1))
        kept = order[:, :start, None].expand(-1, -1, final.shape[-1])
        assert torch.equal(tokens.gather(1, kept), final.gather(1, kept))
    torch.testing.assert_close(images[1:], sample(model, labels[1:], ImageNoise(0, range(1, 3)), settings))


def test_without_noise_the_surest_token_comes_first():
    density = torch.tensor([[-3.0, -1.0, -2.0]])
    assert most_confident(density, torch.tensor([[9.0, 0.0, 0.0]]), 0.0).tolist() == [[1, 2, 0]]
    assert SETTINGS.choice_noise_at(4) == 0


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (small(), "a diffusion head cannot tell how likely a token is"),
        (small_of_codes("random-causal"), "a causal model must be told each position"),
    ],
)
def test_models_that_cannot_are_refused(model, told):
    with pytest.raises(InputError, match=told):
        replace(SETTINGS, ar_steps=16).check(model)
