"""The model against a plain transcription of the formulas, which shares no code with it: loss, gradients, samples."""

import pytest
import torch
from torch import nn

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.orders import reveal_counts
from evaluate.sampling.sampler import sample
from tests.references import transcription
from tests.small_model import step_loss
from train.batches import StepInput, training_draws
from train.models.build import build_model
from train.models.config import tiny
from train.models.patchify import patchify
from train.models.published import to_published

SHAPE = tiny(32, 2, 4, 48, 2).on(latent_size=4, latent_channels=3, num_classes=5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(SHAPE).eval()
    for parameter in (model.head.net.modulation.weight, model.head.net.final_linear.weight):
        nn.init.normal_(parameter, std=0.02)
    return model


def test_loss_and_gradients_equal_the_transcriptions(model):
    draws = training_draws(SHAPE, 0, 3, range(6))
    latents, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 5
    ours = step_loss(model, StepInput(patchify(latents, 1), labels, draws))

    w = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in to_published(model.state_dict(), SHAPE).items()
    }
    mask = torch.ones(6, 16, dtype=torch.bool).scatter(1, draws.order[:, : draws.num_visible], False)
    t, noise = torch.zeros(4, 6, 16, dtype=torch.long), torch.zeros(4, 6, 16, 3)
    t[:, mask], noise[:, mask] = (draws.head["uniform"].flatten(1) * 1000).long(), draws.head["noise"].flatten(1, 2)
    vectors = torch.where(draws.drop_label[:, None], w["fake_latent"], w["class_emb.weight"][labels])
    tokens = patchify(latents, 1)
    z = transcription.conditions(w, SHAPE, tokens, vectors, mask)
    plain = transcription.diffusion_loss(w, SHAPE, tokens, z, mask, t, noise)
    plain.backward()
    torch.testing.assert_close(ours, plain.detach(), rtol=1e-5, atol=0)
    for name, gradient in to_published({n: p.grad for n, p in model.named_parameters()}, SHAPE).items():
        torch.testing.assert_close(gradient, w[name].grad, rtol=1e-3, atol=1e-5, msg=name)


class Recorder(ImageNoise):
    """Keeps what it gave."""

    def order(self, num_tokens):
        self.orders, self.given = super().order(num_tokens), []
        return self.orders

    def normal(self, draws, rows, channels):
        self.given.append(super().normal(draws, rows, channels))
        return self.given[-1]


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_samples_equal_the_transcriptions(model, cfg_scale):
    noise, labels = Recorder(0, range(4)), torch.arange(4)
    annealed = DiffusionSteps(first=12, last=5)
    tokens = patchify(
        sample(model, labels, noise, Sampling(ar_steps=5, diffusion_steps=annealed, cfg_scale=cfg_scale)), 1
    )
    with torch.no_grad():
        plain = transcription.sample(
            to_published(model.state_dict(), SHAPE), SHAPE, labels, noise.orders, reveal_counts("random", 16, 5),
            [draws.flatten(1, 2) for draws in noise.given], cfg_scale,
        )  # fmt: skip
    # the first step divides by sqrt(alpha_bar) = 5e-5, and later ones see its rounding
    assert (tokens - plain).abs().max() < 1e-4 * plain.abs().max()
