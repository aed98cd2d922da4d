"""Sweeps by name: the spaces they search of a recipe, and what is refused before anything runs."""

from dataclasses import replace

import pytest

from evaluate.config import Sampling
from infra.errors import InputError
from infra.storage import location
from pipeline.commands.tune import _named_sweep, main
from pipeline.make import chosen_run
from pipeline.models_side_by_side import check_alike, short_names
from pipeline.published import imagenet_256_mar_l
from pipeline.recipe import Recipe, with_fields
from pipeline.recipes import RECIPES, cifar10_32, emoji_32, given_model
from pipeline.sweeps import SWEEPS, swept
from tests.pipeline.registered import write_small
from train.card import read_card
from train.models.heads import MixtureHead
from tune.config import NoSweep, SamplingSweep


def test_head_sweep_of_the_papers_default_head_is_table_3():
    sweep = swept(Recipe(name="paper"), "head")
    assert sweep.width == (256, 512, 1024, 1536)
    assert sweep.depth == (3,)


@pytest.mark.parametrize("recipe", [emoji_32(), cifar10_32(), imagenet_256_mar_l()], ids=lambda of: of.name)
@pytest.mark.parametrize("name", ["head", "optimizer"])
def test_every_combination_is_another_recipe_and_one_is_the_recipe_itself(recipe, name):
    combinations = [with_fields(recipe, fields) for fields in swept(recipe, name).fields()]
    assert recipe in combinations
    assert len(set(map(repr, combinations))) == len(combinations) > 1


def test_flags_change_the_space_that_a_name_gives():
    name, flags = _named_sweep(["--tune.trials", "3", "--sweep", "optimizer", "--tune.seed", "2"])
    assert (name, flags) == ("optimizer", ["--tune.trials", "3", "--tune.seed", "2"])
    assert _named_sweep(["--sweep=head"]) == ("head", [])
    chosen = chosen_run("tune", ["emoji-32", *flags], change=lambda of: replace(of, tune=swept(of, name)))
    assert len(chosen.recipe.tune.planned()) == 3
    assert chosen.recipe.tune.planned() != replace(chosen.recipe.tune, seed=3).planned()


def test_names_and_models_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="Did you mean 'sampling'"):
        swept(emoji_32(), "samplin")
    with pytest.raises(InputError, match="--sweep: which"):
        _named_sweep(["--sweep"])
    mixture = replace(emoji_32().train, model=replace(emoji_32().train.model, head=MixtureHead()))
    with pytest.raises(InputError, match="a mixture head has no width"):
        swept(replace(emoji_32(), train=mixture), "head")
    assert set(SWEEPS) >= {"sampling", "head", "optimizer"}


def test_models_measured_otherwise_are_not_drawn_into_one_picture(tmp_path):
    def run(*flags):
        words = ["emoji-32", "--compute.out", str(tmp_path), *flags]
        return chosen_run("tune", words, change=lambda of: replace(of, tune=SamplingSweep()))

    check_alike({"one": run(), "other": run("--train.train-steps", "3")})
    with pytest.raises(InputError, match="one and other are measured against different images"):
        check_alike({"one": run(), "other": run("--tune.images", "5000")})
    with pytest.raises(InputError, match="or seeds of images"):
        check_alike({"one": run(), "other": run("--tune.seed", "1")})
    with pytest.raises(InputError, match="different images"):
        check_alike({"one": run(), "other": run("--reference.images", "20")})
    with pytest.raises(InputError, match="other: several models are compared by their sampling"):
        check_alike({"one": run(), "other": chosen_run("tune", ["emoji-32", "--tune.kind", "head"])})
    pictures = chosen_run("tune", ["cifar10-32"], change=lambda of: replace(of, tune=SamplingSweep()))
    with pytest.raises(InputError, match="other: where are the pictures"):
        check_alike({"one": run(), "other": pictures})
    with pytest.raises(InputError, match="emoji-32 is named twice"):
        main(["emoji-32", "emoji-32", "--sweep", "sampling"])


def test_models_are_called_by_the_ends_of_their_paths_unless_these_are_the_same():
    paths = [
        "./out/artifacts/checkpoint/emoji-32/0aa1",
        "/x/checkpoint/emoji-32/94f1/artifact.json",
        "./mar-b",
        "emoji-32",
    ]
    assert short_names(paths) == ["emoji-32/0aa1", "emoji-32/94f1", "mar-b", "emoji-32"]
    assert short_names(["/a/b/c", "/d/b/c"]) == ["/a/b/c", "/d/b/c"]


def test_named_sampling_sweep_has_what_the_recipe_samples_with_among_its_trials():
    for recipe in (imagenet_256_mar_l(), RECIPES["emoji-16-rnn"](), RECIPES["table1-raster-ce"]()):
        own = recipe.evaluate.generate.sampling
        assert own in swept(recipe, "sampling").settings(own), recipe.name


def test_head_sweep_of_a_head_without_depth_searches_its_width():
    recipe = RECIPES["emoji-16-pixelcnn"]()
    widths = [with_fields(recipe, of).train.model.head.width for of in swept(recipe, "head").fields()]
    assert recipe.train.model.head.width in widths


@pytest.mark.parametrize("name", ["sampling", "head", "optimizer"])
def test_named_sweep_of_every_recipe_can_be_planned_or_says_why_not(name):
    for recipe in (of() for of in RECIPES.values()):
        try:
            space = swept(recipe, name)
        except InputError:
            continue
        if name == "sampling":
            assert space.settings(recipe.evaluate.generate.sampling), recipe.name
        else:
            assert recipe in [with_fields(recipe, of) for of in space.fields()], recipe.name


def test_named_sampling_sweep_of_a_given_model_asks_for_no_more_steps_than_it_has_tokens(tmp_path):
    recipe = replace(given_model(str(write_small(tmp_path / "model"))), tune=NoSweep())
    model = read_card(location(recipe.checkpoint)).model
    swept(recipe, "sampling").check(model, Sampling(ar_steps=4))
