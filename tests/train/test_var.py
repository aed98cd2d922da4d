"""Next-scale prediction: what must hold for any weights."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from evaluate.config import Sampling
from evaluate.sampling.known import Known
from evaluate.sampling.noise import ImageNoise
from evaluate.sampling.sampler import sample
from evaluate.sampling.smooth import sample_smooth
from infra.errors import InputError
from tests.small_model import randomised, small, step_loss
from train.batches import StepInput, training_draws
from train.config import Train
from train.ema import EMA
from train.memory import counted
from train.models.build import build_model
from train.models.config import Architecture
from train.models.heads import CategoricalHead, MixtureHead
from train.models.tokens import CodeTokens, MultiScaleTokens
from train.models.trunks import CausalTrunk, NextScaleTrunk
from train.optimizer import Optimization
from train.progress import load_progress, snapshot, write_progress
from train.step import training_step

CODES = {"kind": "multi-scale codes", "codebook_size": 7, "channels": 4, "scales": (1, 2, 3), "phis": 3}
TOKENS = MultiScaleTokens(**CODES)
TRUNK = NextScaleTrunk(width=32, depth=2, heads=4, drop_path=0.0, gate_init=1.0)
SHAPE = Architecture(trunk=TRUNK, head=CategoricalHead()).on(
    latent_size=3, latent_channels=1, num_classes=5, tokens=TOKENS
)
SETTINGS = Sampling(ar_steps=3, order="raster")


def small_var(**changes):
    """A model with every weight random, the codebook among them."""
    model = randomised(replace(SHAPE, trunk=replace(TRUNK, **changes)))
    with torch.no_grad():
        model.z_proj.scales.codebook.vectors.normal_()
        model.fake_latent.normal_()
        model.class_emb.weight.normal_()
    return model


def some_codes(batch=2, seed=0):
    return torch.randint(7, (batch, 14, 1), generator=torch.Generator().manual_seed(seed)).float()


def test_training_resumed_from_a_checkpoint_ends_with_the_same_bytes_dropped_blocks_too(tmp_path):
    config, scales = Train(lr=1e-2, warmup_steps=0, precision="fp32"), small_var().z_proj.scales.state_dict()
    shape = replace(SHAPE, trunk=replace(TRUNK, drop_path=0.5))

    def start(seed):
        torch.manual_seed(seed)
        model = build_model(shape).train()
        model.z_proj.scales.load_state_dict(scales)
        return model, EMA(model, 0.9), Optimization(model, config)

    def advance(parts, steps):
        for step in steps:
            inputs = StepInput(some_codes(4), torch.arange(4), training_draws(shape, 0, step, range(4)), step)
            training_step(parts[0], *parts, [inputs])

    straight, first, second = start(0), start(0), start(1)
    advance(straight, range(4))
    advance(first, range(2))
    write_progress(tmp_path, snapshot(*first))
    assert load_progress(tmp_path, *second) == 2
    advance(second, range(2, 4))
    for ours, other in ((straight[0], second[0]), (straight[1].model, second[1].model)):
        assert all(torch.equal(of, other.state_dict()[name]) for name, of in ours.state_dict().items())


def test_edit_keeps_codes_of_every_scale_and_draws_the_others_anew():
    model, source = small_var(), some_codes(3, seed=1)[:, None]
    places = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    keep = TOKENS.kept(places)
    assert keep.tolist() == [True, True, False, False, False, *places.flatten().tolist()]
    known, labels, noise = Known(source, keep), torch.tensor([0, 3, 4]), ImageNoise(0, range(3))
    edited, plain = (
        sample(model, labels, noise, SETTINGS, known),
        sample(model, labels, ImageNoise(0, range(3)), SETTINGS),
    )
    assert torch.equal(edited[:, :, keep], source[:, :, keep])
    assert (edited[:, :, ~keep] != source[:, :, ~keep]).any()
    again = sample(model, labels, ImageNoise(0, range(3)), SETTINGS, Known((source + 1) % 7, keep))
    assert (again[:, :, ~keep] != edited[:, :, ~keep]).any(), "what is drawn follows from what is kept"
    assert plain.shape == edited.shape


def test_smooth_pictures_of_other_trunks_are_refused():
    with pytest.raises(InputError, match="--smooth: a masked model adds up no scales"):
        sample_smooth(build_model(small()), None, ImageNoise(0, range(1)), SETTINGS)


def test_memory_of_a_masked_attention_is_counted_as_that_of_a_fused_kernel():
    config = Train(precision="fp32")
    many, few = (counted(SHAPE, config, images, recomputing=False).activations for images in (8, 4))
    assert many < 2 * few < 3 * many


def test_at_the_start_the_loss_is_that_of_equal_probabilities():
    model = build_model(SHAPE)
    loss = step_loss(model, StepInput(some_codes(), torch.arange(2), training_draws(SHAPE, 0, 0, range(2))))
    assert loss.item() == pytest.approx(torch.tensor(7.0).log().item())


@pytest.mark.parametrize("changes", [{}, {"adaln": "shared"}, {"l2_norm": False}], ids=str)
@torch.no_grad()
def test_condition_depends_on_coarser_scales_alone(changes):
    model, codes = small_var(**changes), some_codes()
    order, vectors = torch.arange(14).expand(2, -1), model.class_vectors(torch.tensor([0, 2]), 2)
    before = model.training_conditions(codes, vectors, order, 0)
    edges = (0, 1, 5, 14)
    for start, stop in pairwise(edges):
        changed = codes.clone()
        changed[:, start:stop] = (changed[:, start:stop] + 1) % 7
        after = model.training_conditions(changed, vectors, order, 0)
        assert torch.equal(before[:, :stop], after[:, :stop])
        assert (before[:, stop:] != after[:, stop:]).any(-1).all()


@pytest.mark.parametrize("changes", [{}, {"adaln": "shared"}], ids=str)
@torch.no_grad()
def test_cached_sampling_equals_teacher_forcing_in_one_pass_a_scale(changes, monkeypatch):
    model, labels, passes = small_var(**changes), torch.tensor([0, 3, 4]), []
    model.blocks[0].register_forward_hook(lambda *args: passes.append(args[2].shape[1]))
    taken, whole = [], model.conditions
    monkeypatch.setattr(model, "conditions", lambda *args: taken.append(whole(*args)) or taken[-1])
    codes = sample(model, labels, ImageNoise(0, range(3)), SETTINGS)
    assert codes.shape == (3, 1, 14, 1)
    assert passes == [1, 4, 9]
    order = torch.arange(14).expand(3, -1)
    forced = model.training_conditions(codes[:, 0], model.class_vectors(labels, 3), order, 0)
    torch.testing.assert_close(torch.cat(taken, 1), forced, rtol=1e-4, atol=1e-5)


def test_images_do_not_depend_on_their_batch_and_guidance_one_is_none():
    model, labels = small_var(), torch.tensor([0, 3, 4])
    settings = replace(SETTINGS, top_k=5, top_p=0.9, cfg_scale=2.5, cfg_schedule="steps")
    codes = sample(model, labels, ImageNoise(0, range(3)), settings)
    assert torch.equal(codes[1:], sample(model, labels[1:], ImageNoise(0, range(1, 3)), settings))
    one, plain = replace(settings, cfg_scale=1.0), replace(SETTINGS, top_k=5, top_p=0.9)
    assert torch.equal(*(sample(model, labels, ImageNoise(0, range(3)), of) for of in (one, plain)))


def test_all_trained_parameters_have_gradients_and_the_tokenizers_parts_have_none():
    config = replace(SHAPE, label_drop=0.5)
    model = small_var()
    before = {name: of.clone() for name, of in model.z_proj.scales.state_dict().items()}
    step_loss(model.train(), StepInput(some_codes(4), torch.arange(4), training_draws(config, 0, 0, range(4))))
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"z_proj.scales.phis.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert all(torch.equal(of, before[name]) for name, of in model.z_proj.scales.state_dict().items())


def test_stochastic_depth_drops_images_while_training_alone():
    model, codes = small_var(drop_path=0.9), some_codes(64)
    order, vectors = torch.arange(14).expand(64, -1), model.class_vectors(None, 64)
    whole = model.training_conditions(codes, vectors, order, 0)
    torch.manual_seed(0)
    dropped = model.train().training_conditions(codes, vectors, order, 0)
    assert not torch.allclose(whole, dropped)
    assert torch.equal(whole, model.eval().training_conditions(codes, vectors, order, 0))


@pytest.mark.parametrize(
    ("settings", "kept", "fault"),
    [
        (replace(SETTINGS, ar_steps=4), (), "ar_steps is 4; a next-scale model needs one a scale: 3"),
        (replace(SETTINGS, order="random"), (), "order is 'random'; a next-scale model goes coarse to fine"),
    ],
)
def test_sampling_that_it_cannot_do_is_refused(settings, kept, fault):
    with pytest.raises(InputError, match=fault):
        settings.check(SHAPE, kept)


def test_trunk_head_and_tokens_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"trunk.kind causal: this trunk predicts tokens of one grid, but the tokenizer"
    ):
        replace(SHAPE, trunk=CausalTrunk()).check()
    with pytest.raises(ValueError, match=r"trunk.kind next-scale: this trunk predicts codes at several scales, but"):
        replace(SHAPE, tokens=CodeTokens(codebook_size=7)).check()
    with pytest.raises(ValueError, match=r"head.kind mixture: this head draws continuous tokens"):
        replace(SHAPE, head=MixtureHead()).check()
    with pytest.raises(ValueError, match=r"trunk.kind next-scale: the tokenizer makes codes at one scale alone, 3"):
        replace(SHAPE, tokens=replace(TOKENS, scales=(3,), phis=1)).check()
    with pytest.raises(ValueError, match=r"trunk.heads 5 does not divide width 32"):
        replace(SHAPE, trunk=replace(TRUNK, heads=5)).check()
    SHAPE.check()


def test_what_scales_read_is_embedded_in_float32_under_autocast_too():
    embedding, codes = small_var().z_proj, some_codes()[..., 0].long()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        read = embedding(codes), embedding.read(torch.ones(2, 4, 3, 3), 1)
    with torch.no_grad():
        assert torch.equal(read[0], embedding(codes))
        assert torch.equal(read[1], embedding.read(torch.ones(2, 4, 3, 3), 1))
