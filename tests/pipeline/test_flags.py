"""One grammar: what a word names, and how flags switch kinds."""

import itertools
import json
import random
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_type_hints

import pytest
import tyro

from infra.cluster import Compute
from infra.errors import InputError
from infra.fingerprint import canonical
from pipeline.commands.import_ import Import
from pipeline.flags import Unprefixed, parse
from pipeline.make import Run, chosen_run
from pipeline.recipes import RECIPES, emoji_32
from pipeline.target import is_path, recipe_at
from tokenize_jobs.config import FitTokenizer, PretrainedTokenizer
from tokenize_jobs.sources.listing import ImageFiles
from tokenize_jobs.tokenizers import geometry
from tune.config import SamplingSweep


@dataclass(frozen=True, kw_only=True)
class Round:
    """A shape."""

    kind: Literal["circle", "disc"] = "circle"
    size: int = 1
    edge: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Square:
    """A shape."""

    kind: Literal["square"] = "square"
    size: int = 2
    edge: str = "sharp"
    inner: Round = field(default_factory=Round)


@dataclass(frozen=True, kw_only=True)
class Box:
    """Shapes in a box."""

    shape_of: Round | Square = field(default_factory=Round)
    lid: bool = False


@dataclass(frozen=True, kw_only=True)
class Order:
    """A box, and how many."""

    box: Unprefixed[Box] = field(default_factory=Box)
    other: Box = field(default_factory=Box)
    count: int = 1


def test_kind_switches_the_union_and_carries_over_fields_of_the_same_name_and_type():
    parsed = parse(Order(box=Box(shape_of=Round(size=7, edge=0.1))), ["--shape-of.kind", "square"], "x")
    assert parsed.box.shape_of == Square(size=7)


def test_kind_is_taken_wherever_it_stands_and_beside_flags_of_its_own():
    words = [
        ["--shape-of.kind", "square"],
        ["--shape-of.edge", "soft"],
        ["--other.lid"],
        ["--other.shape_of.kind=disc"],
    ]
    expected = Order(box=Box(shape_of=Square(size=1, edge="soft")), other=Box(lid=True, shape_of=Round(kind="disc")))
    for order in itertools.permutations(words):
        assert parse(Order(), list(itertools.chain(*order)), "x") == expected


def test_impossible_kind_names_the_flag_as_typed_and_the_choices():
    with pytest.raises(
        InputError, match=r"^--shape_of\.kind=squar: the kind must be one of circle, disc, square\. .*'square'"
    ):
        parse(Order(), ["--shape_of.kind=squar"], "x")
    with pytest.raises(InputError, match=r"^--tokenizer kl17:/w: the kind must be one of kl16, .*fit.*'kl16'"):
        chosen_run("run", ["emoji-32", "--tokenizer", "kl17:/w"])


def test_kind_of_one_class_alone_is_chosen_in_short_too():
    parsed = parse(Import(), ["--tokenizer", "taef2:/w"], "x")
    assert parsed.tokenizer == PretrainedTokenizer(kind="taef2", path="/w")
    with pytest.raises(InputError, match=r"^--tokenizer fit: the kind must be one of kl16"):
        parse(Import(), ["--tokenizer", "fit"], "x")


@pytest.mark.parametrize("words", [["--shape.kind", "square"], ["--count.kind", "square"], ["--tokenizer", "kl16:/w"]])
def test_kind_of_a_flag_that_is_not_there_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Order(), words, "x")
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_tokenizer_in_short_is_its_kind_and_path():
    short, long = (
        chosen_run("run", ["emoji-32", *words]).recipe.tokenizer
        for words in (
            ["--tokenizer", "kl16:/w/a:b.ckpt"],
            ["--tokenizer.kind", "kl16", "--tokenizer.path", "/w/a:b.ckpt"],
        )
    )
    assert short == long == PretrainedTokenizer(kind="kl16", path="/w/a:b.ckpt")
    assert chosen_run("run", ["imagenet-256-mar-b", "--tokenizer=fit"]).recipe.tokenizer == FitTokenizer()


@pytest.mark.parametrize("words", [["--reference", "/r"], ["--reference=/r"], ["--reference.path", "/r"]])
def test_reference_in_short_is_its_path(words):
    reference = chosen_run("evaluate", ["emoji-32", *words, "--reference.images", "7"]).recipe.reference
    assert (reference.path, reference.images) == ("/r", 7)


def test_what_is_generated_in_short_is_the_evaluations():
    assert chosen_run("evaluate", ["emoji-32", "--generate.images", "7"]).recipe.evaluate.generate.images == 7


def test_unions_of_a_recipe_can_be_switched():
    words = ["emoji-32", "--images.kind", "files", "--images.path", "/data"]
    assert chosen_run("run", words).recipe == replace(emoji_32(), images=ImageFiles(path="/data"))


def leaves(value, prefix=""):
    """Yield flag and value of every number in a tree of dataclasses."""
    for f in fields(value):
        item = getattr(value, f.name)
        flag = prefix + f.name.replace("_", "-")
        if hasattr(item, "__dataclass_fields__"):
            yield from leaves(item, f"{flag}.")
        elif type(item) in (int, float):
            yield flag, item


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_and_of_compute_is_a_flag(name):
    drawn = random.Random(name)
    for tree, prefix in ((RECIPES[name](), ""), (Compute(), "compute.")):
        for flag, value in drawn.sample(list(leaves(tree, prefix)), 3):
            chosen = chosen_run("run", [name, f"--{flag}", str(value + 3)])
            changed = dict(leaves(chosen.compute if prefix else chosen.recipe, prefix))
            assert changed.pop(flag) == value + 3
            assert changed.items() <= dict(leaves(tree, prefix)).items()


@pytest.mark.parametrize(("word", "path"), [
    ("emoji-32", False), ("model", False), ("x.json", False), ("./x", True), ("a/b", True), ("s3:x", True), ("models:/m@champion", True),
])  # fmt: skip
def test_word_is_a_path_by_its_letters_alone(word, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_path(word) is path
    if "/" not in word and ":" not in word:
        (tmp_path / word).mkdir()
        assert is_path(word) is path


def test_recipe_is_found_by_name_file_record_and_path_of_images(tmp_path):
    saved = canonical(emoji_32(), identity=False)
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    (tmp_path / "artifact.json").write_text(json.dumps({"recipe": saved, "result": {}, "step": "latents"}))
    assert recipe_at("emoji-32") == emoji_32()
    assert recipe_at(str(tmp_path / "recipe.json")) == recipe_at(str(tmp_path / "artifact.json")) == emoji_32()
    assert recipe_at("s3://bucket/images").images == ImageFiles(path="s3://bucket/images")
    with pytest.raises(InputError, match=r"unknown recipe 'recipe.json'.*\./recipe.json"):
        recipe_at("recipe.json")


def test_run_has_three_flags_beside_the_recipes():
    hints = get_type_hints(Run, include_extras=True)
    flags = {f.name for f in fields(Run) if tyro.conf.Suppress not in getattr(hints[f.name], "__metadata__", ())}
    assert flags == {"recipe", "compute", "again", "plan"}


def test_step_that_there_is_not_cannot_be_made_anew():
    with pytest.raises(InputError, match=r"--again checkpoints: no such step\. Did you mean 'checkpoint'"):
        chosen_run("run", ["emoji-32", "--again", "checkpoints"])


@pytest.mark.parametrize("kind", ["mixture", "flow", "regression"])
def test_head_of_another_kind_is_drawn_without_the_start_of_the_recipes_own(kind):
    recipe = chosen_run("run", ["emoji-32", "--train.model.head.kind", kind]).recipe
    sampling, own = recipe.evaluate.generate.sampling, emoji_32().evaluate.generate.sampling
    assert sampling == replace(own, max_timestep=None)
    for step in (0, sampling.ar_steps - 1):
        recipe.train.model.head.check(sampling.head_at(step))


@pytest.mark.parametrize("flag", ["--evaluate.generate.sampling.max-timestep=900", "--generate.sampling.max_timestep"])
def test_start_that_a_flag_gives_stays_whatever_the_head(flag):
    words = ["emoji-32", "--train.model.head.kind", "flow", flag, *([] if "=" in flag else ["900"])]
    assert chosen_run("run", words).recipe.evaluate.generate.sampling.max_timestep == 900
    assert chosen_run("run", words[:1]).recipe == emoji_32()


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("table1", "emoji"))])
def test_recipe_draws_by_settings_that_its_own_model_takes(name):
    recipe = RECIPES[name]()
    model = recipe.train.on(geometry(recipe.tokenizer).of_image(recipe.tokenize.image_size), 5)
    model.check()
    recipe.evaluate.generate.sampling.check(model)
    if isinstance(recipe.tune, SamplingSweep):
        recipe.tune.check(model, recipe.evaluate.generate.sampling)
