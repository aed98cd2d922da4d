"""Recipes for anybody's images: what the rules choose, that nothing but pictures and budget has a say, and that flags win."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.cluster import Compute
from infra.errors import InputError
from infra.fingerprint import canonical, fingerprint
from pipeline.commands.status import main as status
from pipeline.make import chosen_run, make
from pipeline.own_images import SIZES, Seen, effort_of, own_recipe, sketch
from pipeline.own_models import NETWORKS, Cut, network_of
from pipeline.plan import Planner
from pipeline.target import recipe_at
from tests.tokenize_jobs.test_sources import encoded, write_tar
from tokenize_jobs.config import FitTokenizer, FitVQTokenizer, PretrainedTokenizer
from tokenize_jobs.sources import listing
from tokenize_jobs.tokenizers import geometry

BUDGETS = ("minutes", "hour", "day")
COUNTS = (3, 190, 999, 3068, 50_000, 1_281_167)
PIXELS = PretrainedTokenizer(kind="pixels")


def chosen(name, budget, images, classes=10):
    begun = sketch(name)
    if isinstance(begun.tokenizer, PretrainedTokenizer):
        begun = replace(begun, tokenizer=FitTokenizer(stride=16))
    return own_recipe(begun, budget, Seen(images, classes))


def model_of(recipe):
    return recipe.train.on(geometry(recipe.tokenizer).of_image(recipe.tokenize.image_size), 10)


def width_of(trunk):
    return getattr(trunk, "width", None) or trunk.encoder_width


def cost(recipe, seen, budget):
    size = recipe.tokenize.image_size
    effort, model = effort_of(size, budget), model_of(recipe)
    network, cut = network_of(effort.largest, seen.rounded), Cut.of(model, effort.tokens, size)
    assert cut.tokens == model.num_tokens
    return cut.tokens, network.operations(cut, recipe.train.batch_size) * recipe.train.train_steps


@pytest.mark.parametrize(("name", "budget", "images"), product(SIZES, BUDGETS, COUNTS))
def test_recipe_keeps_within_its_budget_its_tokens_and_400_epochs_and_passes_its_own_checks(name, budget, images):
    recipe, effort = chosen(name, budget, images), effort_of(SIZES[name], budget)
    tokens, operations = cost(recipe, Seen(images, 10), budget)
    assert tokens <= effort.tokens
    if recipe.train.train_steps > 200:
        assert operations <= effort.operations
        assert recipe.train.train_steps * recipe.train.batch_size <= 400 * images * 1.05
    model = model_of(recipe)
    model.check()
    recipe.tune.check(model, recipe.evaluate.generate.sampling)
    assert (model.trunk.kind == "causal") == (tokens <= 16)


@pytest.mark.parametrize(
    ("kind", "tokens"), [("fit", 16), ("fit-pca", 16), ("fit-vq", 64), ("sub-pixels", 16), ("fit-multiscale", 130)]
)
def test_trunk_head_and_patch_follow_from_what_the_tokenizer_makes(kind, tokens, pictures):
    run = run_of("--images.path", pictures / "folders", "--budget", "minutes", "--tokenizer.kind", kind)
    model = model_of(run.recipe)
    model.check()
    run.recipe.evaluate.generate.sampling.check(model)
    run.recipe.tune.check(model, run.recipe.evaluate.generate.sampling)
    assert model.num_tokens == tokens


@pytest.mark.parametrize("flag", [("stride", 0), ("stride", -8), ("components", 193), ("whitening", 2.0)])
def test_tokenizer_that_does_not_fit_is_refused_by_its_flag(flag):
    name, value = flag
    begun = sketch("images-64")
    with pytest.raises(InputError, match=rf"^--tokenizer\.{name} {value}"):
        own_recipe(replace(begun, tokenizer=replace(begun.tokenizer, **{name: value})), "hour", Seen(3000, 10))


def test_codes_are_trained_longer_for_what_a_diffusion_loss_would_take():
    codes = replace(sketch("images-64"), tokenizer=FitVQTokenizer(stride=16))
    few = [own_recipe(begun, "hour", Seen(100_000, 10)).train.train_steps for begun in (sketch("images-64"), codes)]
    assert few[1] > 2 * few[0]


def test_more_budget_trains_longer_and_more_pictures_never_take_a_smaller_network():
    for name, images in product(SIZES, COUNTS):
        costs = [cost(chosen(name, budget, images), Seen(images, 10), budget)[1] for budget in BUDGETS]
        assert costs == sorted(costs)
    for name, budget in product(SIZES, BUDGETS):
        widths = [width_of(chosen(name, budget, images).train.model.trunk) for images in COUNTS]
        assert widths == sorted(widths)
        assert widths[0] == NETWORKS[0].width


def test_estimates_that_agree_to_two_digits_are_one_recipe():
    assert chosen("images-64", "hour", 3068) == chosen("images-64", "hour", 3093)


def test_one_class_is_neither_guided_nor_dropped():
    recipe = chosen("images-64", "hour", 3000, classes=1)
    assert recipe.train.model.label_drop == 0
    assert {s.cfg_scale for s in recipe.tune.settings(recipe.evaluate.generate.sampling)} == {1.0}
    assert len(recipe.tune.settings(recipe.evaluate.generate.sampling)) > 1


def test_precision_is_the_processors_up_to_128_pixels():
    assert [chosen(name, "hour", 3000).train.precision for name in SIZES] == ["fp32", "fp32", "bf16"]


def test_tokenizer_is_asked_for_at_256_and_taken_as_given_at_any_size():
    with pytest.raises(InputError, match="images-256: give the tokenizer, --tokenizer kl16:FILE"):
        own_recipe(sketch("images-256"), "hour", Seen(3000, 10))
    recipe = own_recipe(replace(sketch("images-32"), tokenizer=PIXELS), "hour", Seen(3000, 10))
    assert (recipe.tokenizer, recipe.train.model.patch_size) == (PIXELS, 8)
    with pytest.raises(InputError, match="stride 6 does not divide it"):
        own_recipe(replace(sketch("images-64"), tokenizer=FitTokenizer(stride=6)), "hour", Seen(3000, 10))


@pytest.mark.parametrize(("size", "take"), [(8, 16), (40, 48), (56, 64)])
def test_picture_that_leaves_one_token_is_refused_with_the_next_size(size, take):
    begun = sketch("images-64")
    small = replace(begun, tokenize=replace(begun.tokenize, image_size=size))
    with pytest.raises(
        InputError, match=rf"image-size {size}: at the tokenizer's stride of 8 one .* Take {take}, or a"
    ):
        own_recipe(small, "hour", Seen(3000, 10))
    own_recipe(replace(begun, tokenize=replace(begun.tokenize, image_size=take)), "hour", Seen(3000, 10))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same 24 pictures as class folders, a flat folder, Parquet and tars."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = [encoded(Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))) for _ in range(24)]
    for index, content in enumerate(found):
        for folder in (root / "folders" / "ab"[index % 2], root / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:02d}.png").write_bytes(content)
    for name in ("parquet", "tars"):
        (root / name).mkdir()
        (root / name / "classes.tsv").write_text("0\ta\n1\tb\n")
    table = pa.table({"image": found, "label": [index % 2 for index in range(24)]})
    pq.write_table(table, root / "parquet" / "all.parquet")
    members = [(f"{i}.{s}", c) for i, x in enumerate(found) for s, c in (("png", x), ("cls", str(i % 2).encode()))]
    write_tar(root / "tars" / "all.tar", members)
    return root


def run_of(*words):
    return chosen_run("run", ["images-32", *map(str, words)])


def test_same_pictures_in_any_layout_are_the_same_recipe_but_for_their_place_and_classes(pictures):
    recipes = {
        name: run_of("--images.path", pictures / name, "--budget", "minutes").recipe
        for name in ("folders", "parquet", "tars", "flat")
    }
    same = {fingerprint(canonical(recipe)) for name, recipe in recipes.items() if name != "flat"}
    assert len(same) == 1
    flat, folders = recipes["flat"], recipes["folders"]
    assert flat.train.model.label_drop == 0
    assert (flat.tokenizer, flat.train.train_steps) == (folders.tokenizer, folders.train.train_steps)


def test_few_pictures_in_tars_are_counted_whatever_their_sizes(tmp_path):
    """Larger ones behind those that are opened: by the mean size of these there would be 741."""
    random = np.random.default_rng(0)
    sides = [8] * 256 + [48] * 164
    found = [encoded(Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))) for side in sides]
    for index, content in enumerate(found):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{index:03d}.png").write_bytes(content)
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "all.tar", [(f"{index:03d}.png", content) for index, content in enumerate(found)])
    flat, tars = (run_of("--images.path", tmp_path / of, "--images.label", "none").recipe for of in ("flat", "tars"))
    assert tars.train == flat.train
    assert tars.train.train_steps == 10_000  # 400 epochs, to two digits


def test_what_was_chosen_is_told_and_flags_replace_one_choice_each(pictures, capsys):
    words = ("--images.path", pictures / "folders", "--budget", "minutes")
    plain = run_of(*words).recipe
    told = capsys.readouterr().out
    for part in (
        "24 pictures, 2 classes",
        "budget minutes",
        "tokenizer: fitted",
        "row by row, trunk 160 wide, 8 blocks",
        f"{plain.train.train_steps:,} steps",
    ):
        assert part in told
    other = run_of("--train.lr", "0.5", *words, "--evaluate.no-ceiling", "--name", "cats", "--tune.kind", "none").recipe
    assert (other.train, other.name) == (replace(plain.train, lr=0.5), "cats")
    assert (other.evaluate, other.tune.kind) == (replace(plain.evaluate, ceiling=False), "none")


class Planned(Exception):
    """The plan is made, and the run would begin."""


def test_source_is_listed_once_in_a_command(pictures, tmp_path, monkeypatch, capsys):
    found, find_files = [], listing.find_files

    def counted(text):
        found.append(text)
        return find_files(text)

    def planned(root):
        raise Planned

    monkeypatch.setattr(listing, "find_files", counted)
    monkeypatch.setattr("pipeline.run.require_writable", planned)
    words = ("--images.path", pictures / "tars", "--compute.out", tmp_path)
    make(run_of(*words, "--plan"), "registration")
    assert len(found) == 1
    with pytest.raises(Planned):
        make(run_of(*words), "registration")
    assert len(found) == 2
    status(["images-32", *map(str, words)])
    assert len(found) == 3
    assert "scanned" not in capsys.readouterr().out


def test_small_pictures_are_told_of(pictures, capsys):
    chosen_run("run", ["images-64", "--images.path", str(pictures / "flat")])
    assert "100% of them smaller than 64 px" in capsys.readouterr().out


def test_saved_recipe_makes_the_same_steps(pictures, tmp_path):
    recipe = run_of("--images.path", pictures / "tars", "--budget", "minutes").recipe
    compute = Compute(out=str(tmp_path))
    steps = Planner(recipe, compute).plan().steps
    record = {"recipe": json.loads(json.dumps(steps["checkpoint"].recipe)), "result": {}, "step": "checkpoint"}
    (tmp_path / "artifact.json").write_text(json.dumps(record))
    again = recipe_at(str(tmp_path / "artifact.json"))
    assert again == recipe
    assert {n: s.fingerprint for n, s in Planner(again, compute).plan().steps.items()} == {
        n: s.fingerprint for n, s in steps.items()
    }


def test_pictures_that_are_not_given_are_asked_for():
    with pytest.raises(InputError, match="where are the pictures"):
        run_of("--budget", "day")
    with pytest.raises(InputError, match="follows from pictures and budget"):
        recipe_at("images-64")


def test_flags_of_what_the_rules_choose_are_taken_and_mistyped_ones_are_told(pictures, capsys):
    words = ("--images.path", pictures / "folders", "--budget", "minutes")
    trunk = run_of(*words, "--train.model.trunk.width", "32", "--train.model.trunk.depth", "2").recipe.train.model.trunk
    assert (trunk.kind, trunk.width, trunk.depth) == ("causal", 32, 2)
    for mistyped in (("--train.model.trunk.widht", "32"), ("--train.model.trunk.encoder-width", "32")):
        with pytest.raises(SystemExit):
            run_of(*words, *mistyped)
        assert mistyped[0] in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_of("--image.path", pictures / "folders")
    assert "--image.path" in capsys.readouterr().err
