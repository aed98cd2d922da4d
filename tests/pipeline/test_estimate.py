"""What a plan would cost: counted, or scaled from what was recorded; nothing is made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from infra.cluster import Compute, ElasticStage, Stage, usable_cores
from infra.fingerprint import canonical
from infra.storage import write_json
from pipeline.estimate import CORE_RATE, GPU_RATE, estimate
from pipeline.operations import drawing, fitted, weights
from pipeline.plan import Planner
from pipeline.recipes import emoji_32, emoji_32_var
from tests.small_model import randomised, small, small_of_codes
from tokenize_jobs.config import FitPCATokenizer, FitTokenizer, FitVQTokenizer
from tokenize_jobs.tokenizers.patch_pca import PatchPCA
from tokenize_jobs.tokenizers.small_kl import SmallKL
from train.models.build import build_model
from train.models.config import Architecture, mar_base, trunk
from train.models.heads import CategoricalHead, FlowHead
from train.models.tokens import MultiScaleTokens
from train.models.trunks import CausalTrunk, ConvolutionalTrunk, NextScaleTrunk

AROUND = 0.2
"""Of a small model these are more, and attention is left out; of a masked one, that its encoder sees known tokens alone; of a
PixelCNN, that no row reads the last one."""
ONE_A_STEP, STEPS = Sampling(ar_steps=16, order="raster"), DiffusionSteps(first=9, last=3)
WITHIN = 0.05
"""Norms, biases and embeddings are weights that no product counts."""


def rows(recipe, compute, last="registration"):
    lines = estimate(recipe, compute, last).splitlines()[2:]
    return {line.split()[0]: line for line in lines}


def hours(line):
    return float(line.replace("to make", "make").split()[2])


def test_weights_of_mar_b_are_as_published():
    found = weights(mar_base().on(latent_size=16, latent_channels=16, num_classes=1000))
    assert sum(found) / 1e6 == pytest.approx(208, rel=WITHIN)


def test_head_of_two_operations_a_weight_is_what_the_counter_counts():
    model = mar_base().on(latent_size=16, latent_channels=16, num_classes=1000)
    with torch.device("meta"):
        head = build_model(model).head
        linears = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
        with FlopCounterMode(display=False) as counter:
            for linear in linears:
                linear(torch.empty(7, linear.in_features))
    assert counter.get_total_flops() == pytest.approx(7 * 2 * weights(model).head, rel=WITHIN)


SCALES = MultiScaleTokens(codebook_size=16, channels=4, scales=(1, 2, 3), phis=3)
CAUSAL = CausalTrunk(width=128, depth=4, heads=4, buffer_size=4)
DRAWN = {
    "masked": (replace(small(), trunk=trunk(128, 2, 4)), replace(ONE_A_STEP, diffusion_steps=STEPS), 2),
    "causal": (replace(small_of_codes(), trunk=CAUSAL), ONE_A_STEP, 1),
    "flow": (replace(small(kind="flow"), trunk=CAUSAL), replace(ONE_A_STEP, diffusion_steps=STEPS), 1),
    "guided": (replace(small_of_codes(), trunk=CAUSAL), replace(ONE_A_STEP, cfg_scale=3.0), 1),
    "pixelcnn": (replace(small_of_codes(), trunk=ConvolutionalTrunk(width=64, depth=3)), ONE_A_STEP, 1.25),
    "next-scale": (
        Architecture(trunk=NextScaleTrunk(width=128, depth=3, heads=4), head=CategoricalHead()).on(
            latent_size=3, latent_channels=1, num_classes=5, tokens=SCALES
        ), replace(ONE_A_STEP, ar_steps=3), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_drawing_costs_what_the_counter_counts_of_the_sampler(name):
    model, settings, at_most = DRAWN[name]
    with FlopCounterMode(display=False) as counter:
        sample(randomised(model), torch.tensor([0, 3]), ImageNoise(0, range(2)), settings)
    ratio = drawing(model, settings) / (counter.get_total_flops() / 2)
    assert 1 - AROUND < ratio < at_most + AROUND


def test_cost_grows_with_the_work_and_falls_with_the_rate(tmp_path):
    compute, recipe = Compute(out=str(tmp_path)), emoji_32()
    longer = replace(recipe, train=replace(recipe.train, train_steps=recipe.train.train_steps * 1000))
    processors, gpus = (replace(compute, train=replace(compute.train, gpus=g)) for g in (0, 1))
    cost = hours(rows(longer, processors)["checkpoint"])
    assert cost == pytest.approx(1000 * hours(rows(recipe, processors)["checkpoint"]), rel=0.2)  # printed with 2 digits
    cores = CORE_RATE * usable_cores()
    assert cost / hours(rows(longer, gpus)["checkpoint"]) == pytest.approx(GPU_RATE / cores, rel=0.2)
    assert not list(tmp_path.iterdir())


def test_cores_that_a_stage_has_share_its_work(tmp_path, monkeypatch):
    compute, recipe = Compute(out=str(tmp_path), train=ElasticStage(gpus=0), generate=Stage(gpus=0)), emoji_32()
    recipe = replace(recipe, train=replace(recipe.train, train_steps=100_000))
    found = {}
    for cores in (2, 32):
        monkeypatch.setattr("pipeline.estimate.usable_cores", lambda cores=cores: cores)
        found[cores] = rows(recipe, compute, "checkpoint")["checkpoint"]
    assert "32 core(s) at 0.05 TFLOP/s each" in found[32]
    assert hours(found[2]) == pytest.approx(16 * hours(found[32]), rel=0.05)
    some = replace(compute, train=replace(compute.train, workers=4, cpus=2))
    assert "on 8 core(s)" in rows(recipe, some, "checkpoint")["checkpoint"]
    elsewhere = replace(some, address="auto", train=replace(some.train, workers=16, cpus=4))
    assert "on 64 core(s)" in rows(recipe, elsewhere, "checkpoint")["checkpoint"]


def test_fit_of_a_tokenizer_is_counted_as_its_steps_cost(tmp_path):
    config = FitTokenizer(width=16, train_steps=7, batch_size=3)
    model, images = SmallKL.new(config), torch.zeros(3, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        decoded, term = model.reconstruct(images, np.random.default_rng(0))
        (decoded.square().mean() + term).backward()
    operations, size = fitted(config, 16, 0)
    assert operations == pytest.approx(7 * counter.get_total_flops(), rel=0.1)  # no gradient of the images
    assert size == 4 * sum(parameter.numel() for parameter in model.parameters())
    components = FitPCATokenizer(stride=4, components=5)
    operations, size = fitted(components, 16, 100)
    assert (
        operations == 2 * 100 * 2 * 16 * 48**2
    )  # the products of 48 numbers of 16 patches of a picture and its mirror
    assert fitted(components, 16, 1_281_167)[0] == 200 * operations, "20,000 are read at most"
    assert fitted(components, 16, None)[0] is None
    assert size == 4 * (PatchPCA.fitted(components, np.zeros((1, 16, 16, 3), np.uint8)).components.numel() + 48)
    line = rows(emoji_32(), Compute(out=str(tmp_path)))["tokenizer"]
    assert "TFLOP" in line
    assert hours(line) > 0


def test_recorded_seconds_of_an_equal_step_are_scaled_by_the_work(tmp_path):
    compute, recipe = Compute(out=str(tmp_path)), emoji_32()
    step = Planner(recipe, compute).plan().steps["checkpoint"]
    record = {"config": canonical(recipe.train), "seconds": 7200.0, "finished": "2026-01-01"}
    write_json(step.root / "artifacts" / "checkpoint" / "emoji-32" / "00000000" / "artifact.json", record)
    half = replace(recipe, train=replace(recipe.train, train_steps=recipe.train.train_steps // 2))
    assert "1.00" in rows(half, compute)["checkpoint"]
    assert "recorded seconds of an equal step" in rows(half, compute)["checkpoint"]
    other = replace(recipe, train=replace(recipe.train, batch_size=32))
    assert "TFLOP" in rows(other, compute)["checkpoint"]


def test_flag_plan_makes_nothing_and_lists_the_steps_asked_for(mar_here, tmp_path):
    done = mar_here("train", "emoji-32", "--plan", "--compute.out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-1]][-1] == "checkpoint"
    assert not list(tmp_path.iterdir())


def test_plan_says_what_a_run_would_refuse(tmp_path):
    recipe = emoji_32()
    recipe = replace(recipe, train=replace(recipe.train, model=replace(recipe.train.model, head=FlowHead())))
    assert "refused as it stands: a flow head takes" in estimate(recipe, Compute(out=str(tmp_path)), "evaluation")
    assert "refused" not in estimate(emoji_32(), Compute(out=str(tmp_path)), "evaluation")


def test_model_that_does_not_fit_its_tokens_is_not_counted_and_the_reason_told(tmp_path):
    recipe = replace(emoji_32_var(), tokenizer=FitVQTokenizer())
    told = estimate(recipe, Compute(out=str(tmp_path)), "checkpoint")
    assert "refused as it stands: --train.model.trunk.kind next-scale: this trunk predicts codes at several" in told
