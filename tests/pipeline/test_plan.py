"""Which artifacts a recipe asks for, before anything runs."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluate.config import DuringTraining
from evaluate.networks import Classifier, Features
from infra.artifact import Step
from infra.cluster import Compute
from infra.errors import InputError
from infra.fingerprint import canonical, with_absolute_files
from infra.from_json import from_json
from infra.stages import ElasticStage
from infra.storage import location
from pipeline.plan import Planner
from pipeline.published import imagenet_256_mar_b, imagenet_256_mar_l
from pipeline.recipe import Recipe
from pipeline.recipes import emoji_32, own_images
from tests.small_model import small, small_of_codes, written
from tokenize_jobs.config import FitVQTokenizer, PretrainedTokenizer, Tokenize
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokens import PlainLatents
from tune.config import HeadSweep, NoSweep


@pytest.fixture
def images(tmp_path):
    """Folders of two classes, to train on and held out."""
    for split in ("train", "heldout"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "x.png")
    return ImageFiles(path=str(tmp_path / "train"), heldout_path=str(tmp_path / "heldout"))


def plan(recipe, images, root, size=16, latents=""):
    recipe = replace(
        recipe, images=images, tokenizer=PretrainedTokenizer(kind="pixels"), tokenize=Tokenize(image_size=size)
    )
    return Planner(recipe, Compute(out=str(root), latents=latents)).plan()


def test_recipes_and_own_images_ask_for_the_same_latents_when_they_are_the_same(images, tmp_path):
    base, large = (plan(recipe(), images, tmp_path) for recipe in (imagenet_256_mar_b, imagenet_256_mar_l))
    assert base.path("latents") == large.path("latents")
    assert base.path("checkpoint") != large.path("checkpoint")
    assert plan(own_images(images.path), images, tmp_path).path("latents") == base.path("latents")
    assert plan(imagenet_256_mar_b(), images, tmp_path, size=8).path("latents") != base.path("latents")


def test_latents_can_lie_in_a_bucket_and_nothing_else(images, tmp_path):
    split = plan(imagenet_256_mar_b(), images, tmp_path, latents="memory://shared")
    assert str(split.path("latents")).startswith("memory://shared/artifacts/latents/pixels-16/")
    assert split.path("checkpoint") == plan(imagenet_256_mar_b(), images, tmp_path).path("checkpoint")
    with pytest.raises(InputError, match=r"--compute\.latents"):
        plan(imagenet_256_mar_b(), images, "memory://shared")


def test_classes_are_part_of_a_sources_identity(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    assert scan(str(tmp_path), 2).digest != scan(str(tmp_path), 3).digest


def identities(recipe, images, root, **changes):
    return {name: step.fingerprint for name, step in plan(replace(recipe, **changes), images, root).steps.items()}


def test_share_of_bad_images_that_is_let_pass_is_not_part_of_the_latents(images, tmp_path):
    strict, lax = (
        Planner(
            replace(own_images(images.path), tokenizer=PretrainedTokenizer(kind="pixels"),
                    tokenize=Tokenize(image_size=16, max_bad_fraction=share)),
            Compute(out=str(tmp_path)),
        ).plan()
        for share in (0.01, 0.5)
    )  # fmt: skip
    assert strict.path("latents") == lax.path("latents")


def test_evaluation_measures_what_the_sweep_chose_and_registration_follows_from_both(images, tmp_path):
    recipe = replace(emoji_32(), tokenizer=PretrainedTokenizer(kind="pixels"))
    narrow = identities(recipe, images, tmp_path)
    wide = identities(recipe, images, tmp_path, tune=replace(recipe.tune, cfg_scale=(1.5, 3.0, 5.0)))
    none = identities(recipe, images, tmp_path, tune=NoSweep())
    assert list(narrow) == ["latents", "reference", "checkpoint", "sweep", "evaluation", "registration"]
    assert list(none) == ["latents", "reference", "checkpoint", "evaluation", "registration"]
    for name in ("latents", "reference", "checkpoint"):
        assert narrow[name] == wide[name] == none[name]
    for name in ("evaluation", "registration"):
        assert len({narrow[name], wide[name], none[name]}) == 3


def test_one_reference_serves_all_checkpoints_and_sampling_settings(images, tmp_path):
    base = identities(imagenet_256_mar_b(), images, tmp_path)
    assert identities(imagenet_256_mar_l(), images, tmp_path)["reference"] == base["reference"]
    other = replace(imagenet_256_mar_b().reference, images=7)
    assert identities(imagenet_256_mar_b(), images, tmp_path, reference=other)["reference"] != base["reference"]


def test_classes_and_shape_of_the_latents_follow_from_images_and_tokenizer(images, tmp_path):
    model = plan(imagenet_256_mar_b(), images, tmp_path).model
    assert (model.num_classes, model.latent_size, model.latent_channels) == (2, 16, 3)
    three = replace(emoji_32(), images=replace(emoji_32().images, classes=("face", "hand", "flag")))
    assert Planner(three, Compute(out=str(tmp_path))).plan().model.num_classes == 3


@pytest.mark.parametrize(
    ("kind", "size", "patch", "message"),
    [("pixels", 15, 2, "patch-size 2 does not divide"), ("kl16", 24, 1, "stride 16 does not divide")],
)
def test_shapes_that_do_not_fit_are_refused_before_anything_runs(images, tmp_path, kind, size, patch, message):
    (tmp_path / "kl16.ckpt").write_bytes(b"")
    recipe = imagenet_256_mar_b()
    recipe = replace(
        recipe, images=images, tokenizer=PretrainedTokenizer(kind=kind, path=str(tmp_path / "kl16.ckpt")),
        tokenize=Tokenize(image_size=size), train=replace(recipe.train, model=replace(recipe.train.model, patch_size=patch)),
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        Planner(recipe, Compute(out=str(tmp_path))).plan().check(["checkpoint"], 1)


def test_recipe_without_a_sweep_says_so_when_one_is_asked_for(images, tmp_path):
    with pytest.raises(InputError, match=r"has no step sweep: --tune\.kind sampling"):
        plan(imagenet_256_mar_b(), images, tmp_path).until("sweep")


@pytest.mark.parametrize("every", [0, 500])
def test_training_alone_asks_for_a_reference_only_to_be_measured_meanwhile(images, tmp_path, every):
    evaluate = replace(imagenet_256_mar_b().evaluate, meanwhile=DuringTraining(every=every))
    found = plan(replace(imagenet_256_mar_b(), evaluate=evaluate), images, tmp_path)
    names = [step.name for step in found.until("checkpoint")]
    assert ("reference" in names) == bool(every)
    assert [name for name in names if name != "reference"] == ["latents", "checkpoint"]
    assert "reference" in [step.name for step in found.until("evaluation")]


@pytest.mark.parametrize(
    ("asked", "ar_steps", "said"),
    [
        ({"every": -1}, 16, "--evaluate.meanwhile.every must be"),
        ({"every": 500, "images": 1}, 16, "--evaluate.meanwhile.images must be at least 2"),
        ({"every": 500, "gpus": -1.0}, 16, "--evaluate.meanwhile.gpus must be"),
        ({"every": 500}, 0, "ar.steps"),
    ],
)
def test_what_could_not_be_measured_meanwhile_is_refused_before_the_training(asked, ar_steps, said, images, tmp_path):
    recipe = imagenet_256_mar_b()
    sampling = replace(recipe.evaluate.generate.sampling, ar_steps=ar_steps)
    evaluate = replace(recipe.evaluate, generate=replace(recipe.evaluate.generate, sampling=sampling))
    found = plan(replace(recipe, evaluate=replace(evaluate, meanwhile=DuringTraining(**asked))), images, tmp_path)
    with pytest.raises(InputError, match=said):
        found.check(["checkpoint"], 1)
    plan(replace(recipe, evaluate=evaluate), images, tmp_path).check(["checkpoint"], 1)


@pytest.mark.parametrize(("model", "told"), [(small(), ""), (small_of_codes(), "makes 3 x 4 x 4, deterministic of")])
def test_model_of_other_tokens_than_the_tokenizer_makes_is_refused_before_anything_runs(tmp_path, model, told):
    folder, pixels = written(tmp_path / "model", model), PretrainedTokenizer(kind="pixels")
    with pytest.raises(InputError, match=told) if told else nullcontext():
        Planner(replace(emoji_32(), checkpoint=folder, tokenizer=pixels), Compute(out=str(tmp_path))).plan()


def test_every_step_holds_the_recipe_that_plans_it_again(images, tmp_path):
    first = plan(imagenet_256_mar_b(), images, tmp_path)
    for name, step in first.steps.items():
        recipe = from_json(json.dumps(step.recipe), Recipe, name)
        again = Planner(recipe, Compute(out=str(tmp_path))).plan()
        assert again.steps[name].identity == step.identity


def store_of(root, kind, classes, tokenizer="pixels", seed=0):
    values = np.random.default_rng(seed).standard_normal((2, 4, *kind.shape)).astype(kind.dtype)
    commit_shard(location(root), "a", to_table(kind, list("abcd"), [0, 1, 0, 1], *values), kind, [])
    source = {"format": "npz", "shards": 1, "digest": "d" * 64, "bytes": 1}
    publish(location(root), ["a"], kind, {
        "tokenizer": {"kind": "pixels", "weights": tokenizer}, "image_size": 16, "classes": classes, "source": source,
    })  # fmt: skip
    return str(root)


def test_store_that_is_given_is_trained_on_and_its_content_identifies_the_checkpoint(images, tmp_path):
    kind, recipe = PlainLatents(3, 16, 16), imagenet_256_mar_b()
    stores = [
        store_of(tmp_path / name, kind, ["cat", "dog"], seed=seed) for name, seed in (("x", 0), ("y", 0), ("z", 1))
    ]
    one, same, other = (identities(replace(recipe, latents=store), images, tmp_path) for store in stores)
    assert "latents" not in one
    assert one == same
    assert one["checkpoint"] != other["checkpoint"]
    assert one["reference"] == other["reference"]
    recipe = replace(recipe, latents=stores[0], reference=emoji_32().reference)
    swept = identities(replace(recipe, tune=HeadSweep(width=(8, 16))), images, tmp_path)
    assert swept["checkpoint"] == one["checkpoint"]  # trials are trained on it too


def test_version_of_a_model_that_was_trained_on_a_given_store_says_which_and_of_what_images(
    images, tmp_path, monkeypatch
):
    store = store_of(tmp_path / "store", PlainLatents(3, 16, 16), ["cat", "dog"])
    monkeypatch.setattr("pipeline.registry.register", lambda candidate, *_: candidate)
    found = SimpleNamespace(fingerprint="e", path=tmp_path, result=None, record={"commit": "0123abc"})
    monkeypatch.setattr(Step, "find", lambda step: found if step.name == "evaluation" else None)
    for latents in (store, ""):
        made = plan(replace(imagenet_256_mar_b(), latents=latents), images, tmp_path)
        told = made.steps["registration"].make(location(tmp_path)).lineage
        assert set(told) == {"mar.recipe", "mar.model", "mar.commit", "mar.latents", "mar.source"}
        assert told["mar.latents"] == (latents or str(made.path("latents")))
        assert told["mar.source"] == f"images {'d' * 16}" if latents else told["mar.source"].startswith("images ")
        assert told["mar.model"] == str(made.path("checkpoint"))


def test_sweep_that_stops_by_a_loss_that_no_training_reports_is_refused(images, tmp_path):
    recipe = replace(imagenet_256_mar_b(), tune=HeadSweep(width=(8, 16)), reference=emoji_32().reference)
    none_held = replace(images, heldout_path="", heldout_share=0)
    with pytest.raises(InputError, match=r"none are held out: give --images.heldout-share, or take --tune.reduction 0"):
        plan(recipe, none_held, tmp_path)
    plan(replace(recipe, tune=HeadSweep(width=(8, 16), reduction=0)), none_held, tmp_path)
    plan(recipe, replace(none_held, heldout_share=0.5), tmp_path)


@pytest.mark.parametrize(
    ("kind", "classes", "tokenizer", "message"),
    [
        (PlainLatents(3, 8, 8), ["cat", "dog"], "pixels", "its latents are"),
        (PlainLatents(3, 16, 16), ["dog", "cat"], "pixels", r"its classes are .* the recipe's \['cat', 'dog'\]"),
        (PlainLatents(3, 16, 16), ["cat", "dog"], "0123", "its tokenizer is 0123, the recipe's pixels"),
    ],
)
def test_store_of_something_else_is_refused(images, tmp_path, kind, classes, tokenizer, message):
    store = store_of(tmp_path / "store", kind, classes, tokenizer)
    with pytest.raises(InputError, match=message):
        plan(replace(imagenet_256_mar_b(), latents=store), images, tmp_path)
    with pytest.raises(InputError, match="no latent store"):
        plan(replace(imagenet_256_mar_b(), latents=str(tmp_path / "nowhere")), images, tmp_path)


def test_sweep_of_trainings_lists_the_pictures_once_and_knows_the_workers(images, tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr("pipeline.plan.scan_images", lambda of: listed.append(of) or scan_images(of))
    recipe = replace(
        imagenet_256_mar_b(), tune=HeadSweep(width=(32, 64, 96), reduction=0), reference=emoji_32().reference
    )
    plan(recipe, images, tmp_path)
    assert len(listed) == 1
    small = replace(
        recipe, images=images, tokenizer=PretrainedTokenizer(kind="pixels"), tokenize=Tokenize(image_size=16)
    )
    with pytest.raises(InputError, match=r"--compute\.train\.workers 33"):
        Planner(small, Compute(out=str(tmp_path), train=ElasticStage(workers=33))).plan()


def test_other_weights_of_a_network_without_a_published_hash_are_another_reference_and_evaluation(images, tmp_path):
    def steps(extractor, judge):
        for name, content in (("extractor", extractor), ("judge", judge)):
            (tmp_path / f"{name}.safetensors").write_bytes(content)
        base = imagenet_256_mar_b()
        network = Features(name="cifar-resnet-56", weights=str(tmp_path / "extractor.safetensors"))
        classifier = Classifier(name="cifar-resnet-56", weights=str(tmp_path / "judge.safetensors"))
        recipe = replace(
            base,
            reference=replace(base.reference, features=network),
            evaluate=replace(base.evaluate, classifier=classifier),
        )
        found = plan(recipe, images, tmp_path).steps
        return found["reference"].fingerprint, found["evaluation"].fingerprint, found["checkpoint"].fingerprint

    first, extracted, judged = steps(b"a", b"a"), steps(b"b", b"a"), steps(b"a", b"b")
    assert first[0] == judged[0] != extracted[0]
    assert len({first[1], extracted[1], judged[1]}) == 3
    assert first[2] == extracted[2] == judged[2]


def test_files_that_workers_read_are_named_from_the_root(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = own_images(images.path)
    relative = replace(
        recipe, tokenizer=FitVQTokenizer(vgg16="vgg.pth"), images=images, tokenize=Tokenize(image_size=16),
        reference=replace(recipe.reference, features=Features(weights="inception.pth")),
        evaluate=replace(recipe.evaluate, classifier=Classifier(weights="judge.pth")),
        reconstruction=replace(recipe.reconstruction, lpips="sub/lpips.pth", vgg16="~/vgg.pth"),
    )  # fmt: skip
    found = with_absolute_files(relative)
    assert found.tokenizer.vgg16 == str(tmp_path / "vgg.pth")
    assert found.reference.features.weights == str(tmp_path / "inception.pth")
    assert found.evaluate.classifier.weights == str(tmp_path / "judge.pth")
    assert found.reconstruction.lpips == str(tmp_path / "sub" / "lpips.pth")
    assert found.reconstruction.vgg16 == str(Path.home() / "vgg.pth")
    assert found.reference.statistics == ""
    assert canonical(found) == canonical(relative)
    assert Planner(relative, Compute(out=str(tmp_path))).recipe == found
