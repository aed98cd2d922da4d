"""The commands that make steps: a recipe with its flags, made up to a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evaluate.config import Sampling
from infra.cluster import Compute
from infra.console import say, stage
from infra.errors import InputError, nearest
from pipeline.deciding import CODE
from pipeline.flags import Unflagged, Unprefixed, parse
from pipeline.own_images import SIZES, Budget, Seen, own_recipe, sketch, told
from pipeline.recipe import Recipe
from pipeline.target import recipe_at
from tokenize_jobs.sources.listing import ImageFiles, Images, scan_images
from train.models.heads import HeadSampling

if TYPE_CHECKING:
    from pipeline.steps import Finished


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe and where it runs. Every flag overrides what the recipe says."""

    recipe: Unprefixed[Recipe]
    """What is made."""
    compute: Compute = field(default_factory=Compute)
    """Where the steps are made, and where the results lie."""
    again: tuple[str, ...] = ()
    """Steps to make anew by the present code, and with them what follows from them."""
    plan: bool = False
    """Say what would be made, with estimated hours and bytes, and make nothing."""
    scanned: Unflagged[Mapping[ImageFiles, Images]] = field(default_factory=dict)
    """What was listed to choose the recipe: a bucket of a million files is listed once."""


@dataclass(frozen=True, kw_only=True)
class OwnRun(Run):
    """Images of your own: the pictures and the budget decide what no flag says."""

    budget: Budget = "hour"
    """How long it should take, which decides model and training: on a processor, or above 128 px on a GPU."""


Named = Callable[[str, Compute], Recipe]
"""What a command's first word names, with what lies where the steps are made."""


def _recipe(word: str, compute: Compute) -> Recipe:  # noqa: ARG001  models and images may lie there, recipes do not
    return recipe_at(word)


@dataclass(frozen=True, kw_only=True)
class _Where:
    compute: Compute = field(default_factory=Compute)


def _where(words: list[str]) -> Compute:
    """Return what the flags --compute.* say, whatever else is among the words."""
    chosen, takes = list[str](), False
    for word in words:
        takes = word.startswith("--compute.") if word.startswith("--") else takes
        chosen += [word] if takes else []
    return parse(_Where(), chosen, "mar").compute


def chosen_run(
    command: str, words: list[str], recipe: Named = _recipe, change: Callable[[Recipe], Recipe] = lambda recipe: recipe
) -> Run:
    """Return the `recipe` of the first word with its overrides, where to run it, and what to make anew.

    `change` is made before the overrides. Raises InputError for a step that there is not.
    """
    prog = f"mar {command} {words[0]}"
    if words[0] in SIZES:
        default: Run = _own_run(words, prog, change)
    else:
        default = Run(recipe=change(recipe(words[0], _where(words[1:]))))
    chosen = parse(default, words[1:], prog)
    chosen = replace(chosen, recipe=_drawn_by_its_head(chosen.recipe, default.recipe, words))
    if unknown := set(chosen.again) - set(CODE):
        raise InputError(
            f"--again {min(unknown)}: no such step.{nearest(min(unknown), CODE)} There are {', '.join(CODE)}."
        )
    return chosen


def _own_run(words: list[str], prog: str, change: Callable[[Recipe], Recipe]) -> OwnRun:
    """Return the run whose recipe follows from the pictures and the budget, before the flags have a say of it."""
    default = OwnRun(recipe=change(sketch(words[0])))
    begun = parse(default, words[1:], prog, strict=False)  # flags of a model that only the rules choose come later
    if not isinstance(begun.recipe.images, ImageFiles) or not begun.recipe.images.path:
        parse(default, words[1:], prog)  # --images.path itself may be mistyped
    recipe, scanned = resolved(begun.recipe, begun.budget)
    return OwnRun(recipe=change(recipe), scanned=scanned)


_OF_HEADS = ("solver", "max_timestep", "temperature_on", "top_k", "top_p")
"""Settings of sampling that some heads refuse."""


def _drawn_by_its_head(chosen: Recipe, recipe: Recipe, words: list[str]) -> Recipe:
    """Return what was chosen; where it has another head than the recipe, without the sampling that this head refuses.

    What a flag says stays, and is refused.
    """
    head, generate = chosen.train.model.head, chosen.evaluate.generate
    if type(head) is type(recipe.train.model.head):
        return chosen
    flags, changes, usual = [word.partition("=")[0].replace("_", "-") for word in words], {}, Sampling()
    for name in _OF_HEADS:
        if any(flag.endswith(f"generate.sampling.{name.replace('_', '-')}") for flag in flags):
            continue
        try:
            head.check(HeadSampling(**{name: getattr(generate.sampling, name)}))
        except ValueError:
            changes[name] = getattr(usual, name)
    generate = replace(generate, sampling=replace(generate.sampling, **changes))
    return replace(chosen, evaluate=replace(chosen.evaluate, generate=generate))


def resolved(begun: Recipe, budget: Budget) -> tuple[Recipe, dict[ImageFiles, Images]]:
    """Look at the pictures of a recipe that says little else, and return it whole; says what was chosen, and why.

    With it what was listed. Raises InputError for pictures or a tokenizer that are not given, or not there.
    """
    if not isinstance(begun.images, ImageFiles) or not begun.images.path:
        raise InputError(f"{begun.name}: where are the pictures? Give --images.path.")
    # Pillow and numpy: not for those who want the flags
    from tokenize_jobs.sources.survey import require_usable, survey

    scanned = {begun.images: scan_images(begun.images)}
    listed, size = scanned[begun.images].all, begun.tokenize.image_size
    require_usable(listed)
    found = survey(listed)
    seen = Seen(found.images, len(listed.classes))
    recipe = own_recipe(begun, budget, seen)
    sides = f", {found.smaller(size):.0%} of them smaller than {size} px" if found.smaller(size) else ""
    about = "" if found.is_exact else "about "
    stage("recipe", f"{about}{seen.images:,} pictures, {seen.classes} classes; {found.opened} opened{sides}")
    for line in told(recipe, budget, seen):
        stage("recipe", line)
    return recipe, scanned


def make_until(last: str, command: str, words: list[str], recipe: Named = _recipe) -> "dict[str, Finished]":
    """Make the steps up to `last` of the `recipe` of the first word; returns them by name."""
    return make(chosen_run(command, words, recipe), last)


def make(chosen: Run, last: str) -> "dict[str, Finished]":
    """Make the steps up to `last`, or say what would be made; returns them by name."""
    if chosen.plan:
        from pipeline.estimate import estimate

        say(estimate(chosen.recipe, chosen.compute, last, chosen.again, chosen.scanned))
        return {}
    from pipeline.run import run

    return run(chosen.recipe, chosen.compute, last, chosen.again, chosen.scanned)
