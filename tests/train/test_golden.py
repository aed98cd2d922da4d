"""Exactness against the published implementation: the recorded draws must give the recorded arrays."""

from dataclasses import replace

import pytest
import torch

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.sampler import sample
from tests.golden_arrays import Golden, assert_reproduced, assert_sampled, formula_weight, load
from tests.small_model import step_loss
from train.batches import StepInput, TrainingDraws
from train.models.build import build_model
from train.models.config import mar_base
from train.models.diffusion import ReverseStep, SamplingTables, TrainingTables, q_sample
from train.models.noise_schedule import cosine_schedule, respaced_schedule
from train.models.patchify import patchify
from train.models.published import from_published, to_published


@pytest.fixture(params=["mar_tiny", "mar_patch2"])
def golden(request):
    return load(request.param)


@pytest.fixture
def model(golden):
    model = build_model(golden.model())
    model.load_state_dict(from_published(golden.published_state))
    return model.eval()


def training_draws(golden: Golden, labels_dropped: bool = False) -> TrainingDraws:
    """The recorded draws, as our model takes them: the order reversed, the head's rows masked ones only."""
    arrays = golden.arrays
    order, mask = arrays["train.orders"].flip(1), arrays["train.mask"].bool()
    batch, length = order.shape
    masked = int(mask[0].sum())
    targets = order[:, length - masked :].sort(1).values
    assert torch.equal(torch.zeros_like(mask).scatter(1, targets, True), mask)
    t = arrays["train.t"].view(-1, batch, length)
    noise = arrays["train.noise"].view(len(t), batch, length, -1)
    rows = targets.expand(len(t), -1, -1)
    return TrainingDraws(
        order=order,
        num_visible=length - masked,
        drop_label=torch.zeros(batch, dtype=torch.bool),
        head={
            "uniform": ((t + 0.5) / 1000).gather(2, rows),
            "noise": noise.gather(2, rows.unsqueeze(-1).expand(-1, -1, -1, noise.shape[-1])),
        },
    )


def test_patchify_latents_gives_the_recorded_tokens(golden, model):
    tokens = patchify(golden.arrays["train.latents"], model.config.patch_size)
    assert torch.equal(tokens, golden.arrays["train.tokens"])


def test_trunk_recorded_mask_gives_the_recorded_encoding_and_conditions(golden, model):
    arrays, draws = golden.arrays, training_draws(golden)
    visible = draws.order[:, : draws.num_visible].sort(1).values
    class_vectors = model.class_vectors(arrays["train.labels"], len(visible))
    encoded = model.encode(arrays["train.tokens"], class_vectors, visible)
    assert_reproduced(encoded, arrays["train.encoder_out"])
    everywhere = torch.arange(draws.order.shape[1]).expand(len(visible), -1)
    assert_reproduced(model.decode(encoded, visible, everywhere), arrays["train.z"])


def test_head_recorded_draws_give_the_recorded_loss_of_every_token(golden, model):
    arrays, draws = golden.arrays, model.config.head.batch_mul
    rows = len(arrays["train.t"]) // draws
    mse, vb = model.head.row_terms(
        arrays["train.tokens"].flatten(0, 1),
        arrays["train.z"].flatten(0, 1),
        (arrays["train.t"].view(draws, rows) + 0.5) / 1000,
        arrays["train.noise"].view(draws, rows, -1),
    )
    assert_reproduced(mse.flatten(), arrays["train.mse_per_token"])
    assert_reproduced(vb.flatten(), arrays["train.vb_per_token"])
    assert_reproduced((mse + vb).flatten(), arrays["train.loss_per_token"])


def test_model_recorded_draws_give_the_recorded_loss_and_gradients(golden, model):
    arrays = golden.arrays
    inputs = StepInput(arrays["train.tokens"], arrays["train.labels"], training_draws(golden))
    assert_reproduced(step_loss(model, inputs).reshape(1), arrays["train.loss"])
    gradients = to_published({n: p.grad for n, p in model.named_parameters()}, model.config)
    recorded = {n.removeprefix("train.grad."): t for n, t in arrays.items() if n.startswith("train.grad.")}
    assert len(recorded) == 6
    for name, gradient in recorded.items():
        assert_reproduced(gradients[name], gradient)


@torch.no_grad()
def test_head_single_timesteps_give_the_recorded_outputs(golden, model):
    arrays, net = (
        {n.removeprefix("head."): t for n, t in golden.arrays.items() if n.startswith("head.")},
        model.head.net,
    )
    x_t = q_sample(arrays["x0"], arrays["noise"], arrays["t"], TrainingTables())
    assert_reproduced(x_t, arrays["x_t"])
    output = net(x_t, net.time_embed(arrays["t"]), net.cond_embed(arrays["z"]))
    assert_reproduced(output, arrays["net_out"])
    _assert_reverse_steps(SamplingTables(cosine_schedule(), torch.device("cpu")), arrays["t"].tolist(), output, arrays)


@torch.no_grad()
def test_head_ten_step_process_gives_the_recorded_reverse_steps(golden, model):
    arrays, net = (
        {n.removeprefix("head10."): t for n, t in golden.arrays.items() if n.startswith("head10.")},
        model.head.net,
    )
    tables = SamplingTables(respaced_schedule(10), torch.device("cpu"))
    output = net(arrays["x_t"], net.time_embed(tables.timesteps[arrays["index"]]), net.cond_embed(arrays["z"]))
    _assert_reverse_steps(tables, arrays["index"].tolist(), output, arrays)


def _assert_reverse_steps(tables, indices, output, arrays):
    predicted, fraction = output.chunk(2, -1)
    rows = range(len(indices))
    reverse = [ReverseStep(*tables.rows[index].unbind()) for index in indices]
    x0 = [reverse[r].predicted_x0(arrays["x_t"][r], predicted[r]) for r in rows]
    steps = [reverse[r].ancestral(arrays["x_t"][r], x0[r], fraction[r]) for r in rows]
    assert_reproduced(torch.stack([mean for mean, _ in steps]), arrays["p_mean"])
    assert_reproduced(torch.stack([2 * deviation.log() for _, deviation in steps]), arrays["p_log_variance"])
    assert_reproduced(torch.stack(x0), arrays["p_pred_xstart"])


class RecordedNoise:
    """The draws of the published sampler, in its order; under guidance its second half is never used."""

    def __init__(self, arrays, prefix):
        shapes = arrays[f"{prefix}.noise_shapes"].tolist()
        flat = arrays[f"{prefix}.noise_flat"].split([rows * channels for rows, channels in shapes])
        self.draws = [values.view(*shape) for values, shape in zip(flat, shapes, strict=True)]
        self.recorded_order = arrays[f"{prefix}.orders"]

    def order(self, num_tokens):
        return self.recorded_order.flip(1)

    def normal(self, draws, rows, channels):
        batch = len(self.recorded_order)
        taken, self.draws = self.draws[: draws + 1], self.draws[draws + 1 :]
        return torch.stack([values[: batch * rows].view(batch, rows, channels) for values in taken])


@pytest.mark.parametrize(
    ("name", "index"), [*(("mar_tiny", i) for i in range(4)), *(("mar_patch2", i) for i in range(2))]
)
def test_sampler_recorded_noise_gives_the_recorded_latents(name, index):
    golden = load(name)
    model = build_model(golden.model()).eval()
    model.load_state_dict(from_published(golden.published_state))
    recorded = golden.meta["sampling"][index]
    settings = Sampling(
        ar_steps=recorded["num_iter"],
        diffusion_steps=DiffusionSteps(first=recorded["diffusion_steps"], last=recorded["diffusion_steps"]),
        cfg_scale=recorded["cfg"],
        cfg_schedule=recorded["cfg_schedule"],
        temperature=recorded["temperature"],
    )
    labels = golden.arrays[f"sample{index}.labels"] if recorded["labels"] else None
    noise = RecordedNoise(golden.arrays, f"sample{index}")
    latents = sample(model, labels, noise, settings)
    assert not noise.draws
    assert_sampled(latents, golden.arrays[f"sample{index}.latents"])


@pytest.mark.parametrize("steps", ["full", "100", "50", "25", "10"])
def test_noise_schedule_tables_equal_the_recorded_ones(steps):
    recorded = {n.split(".")[1]: t for n, t in load_schedules().items() if n.startswith(f"{steps}.")}
    ours = cosine_schedule() if steps == "full" else respaced_schedule(int(steps))
    pairs = {
        "betas": ours.betas,
        "alphas_cumprod": ours.alpha_bar,
        "posterior_variance": ours.posterior_variance,
        "posterior_log_variance_clipped": ours.posterior_log_variance,
        "posterior_mean_coef1": ours.posterior_mean_coef_x0,
        "posterior_mean_coef2": ours.posterior_mean_coef_xt,
    }
    for name, table in pairs.items():
        torch.testing.assert_close(table, recorded[name], rtol=1e-9, atol=1e-15)
    if "timestep_map" in recorded:
        assert ours.timestep_map.tolist() == recorded["timestep_map"].long().tolist()


def load_schedules():
    from pathlib import Path

    from safetensors.torch import load_file

    return load_file(Path(__file__).parents[1] / "golden" / "diffusion_schedules.safetensors")


@torch.no_grad()
def test_mar_base_formula_weights_give_the_recorded_conditions_and_losses():
    recorded = load("mar_base_full").arrays
    config = replace(
        mar_base(), trunk=replace(mar_base().trunk, dropout=0.0), head=replace(mar_base().head, batch_mul=1)
    )
    config = config.on(latent_size=16, latent_channels=16, num_classes=1000)
    model = build_model(config).eval()
    names = to_published(model.state_dict(), config)
    model.load_state_dict(from_published({n: formula_weight(n, tuple(t.shape)) for n, t in names.items()}))
    tokens = patchify(recorded["latents"], 1)
    order = recorded["orders"].flip(1)
    visible = order[:, :56].sort(1).values
    everywhere = torch.arange(256).expand(2, -1)
    encoded = model.encode(tokens, model.class_vectors(recorded["labels"], 2), visible)
    z = model.decode(encoded, visible, everywhere)
    assert_reproduced(z, recorded["z"])
    mse, vb = model.head.row_terms(
        tokens.flatten(0, 1), z.flatten(0, 1), (recorded["t"][None] + 0.5) / 1000, recorded["noise"][None]
    )
    assert_reproduced((mse + vb)[0], recorded["loss_per_token"])
    mask = recorded["mask"].flatten()
    assert_reproduced((((mse + vb)[0] * mask).sum() / mask.sum()).reshape(1), recorded["loss"])
    assert_reproduced(((mse[0] * mask).sum() / mask.sum()).reshape(1), recorded["mse"])
    nothing = torch.empty(2, 0, dtype=torch.long)
    null = model.decode(model.encode(tokens, model.class_vectors(None, 2), nothing), nothing, everywhere)
    assert_reproduced(null[:1, :8], recorded["uncond_z_all_masked"][:1])
