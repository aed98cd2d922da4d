"""The steps of a recipe, in order: what the walk, the status and the summary read of a plan."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from upath import UPath

from evaluate.config import DuringTraining
from infra.artifact import Artifact, Step
from infra.errors import InputError
from infra.fingerprint import fingerprint
from infra.storage import location, read_json
from pipeline.given import as_trained_with
from pipeline.recipe import Recipe
from tokenize_jobs.config import TokenizerFile
from tokenize_jobs.sources.heldout import NONE_HELD, Heldout
from tokenize_jobs.sources.listing import Images
from tokenize_jobs.store.shards import MANIFEST
from train.card import read_card
from train.models.config import Model
from tune.config import SamplingSweep


@dataclass(frozen=True)
class Finished:
    """A step's artifact, and whether it was there before."""

    artifact: Artifact
    was_cached: bool


@dataclass(frozen=True)
class Source:
    """The recipe's images: what they are, and how to list them once they exist."""

    inputs: Mapping[str, str]
    """Identity of what the latents are made of."""
    classes: tuple[str, ...]
    images: Callable[[], Images]
    rule: Heldout = NONE_HELD
    """What is held back of the images that the latents are made of."""
    heldout: Mapping[str, str] = field(default_factory=dict)
    """Identity of the held-out images."""

    @classmethod
    def of(cls, found: Images) -> "Source":
        """Return images that are there already."""
        rule = found.train.heldout
        heldout = {"heldout": found.heldout.digest[:16]} if found.heldout and not rule.share else rule.identity
        return cls({"images": found.all.digest[:16]}, found.all.classes, lambda: found, rule, heldout)


def _none() -> Images:
    raise InputError("no images are given: --images.path")


NO_IMAGES = Source({}, (), _none)


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe in order, by name."""

    recipe: Recipe
    root: UPath
    steps: Mapping[str, Step]
    tokenizer: TokenizerFile | None = None
    """None where images are measured that were given."""
    model: Model | None = None
    """The recipe's architecture on its data: classes and the shape of the latents follow from images and tokenizer.

    None where no model is measured.
    """
    start: UPath | None = None
    """Directory of the model that training starts from."""

    @property
    def identity(self) -> str:
        """Identity of the recipe's run in MLflow: of all steps that do not depend on the server."""
        return run_identity(self.steps)

    def until(self, last: str) -> list[Step]:
        """Return the steps up to and including `last`: of a training, the reference only if it is measured meanwhile.

        Raises InputError for a recipe without that step.
        """
        if last not in self.steps:
            raise InputError(f"recipe {self.recipe.name} has no step {last}: --tune.kind sampling adds a sweep")
        names = list(self.steps)
        unasked = {"reference"} if last == "checkpoint" and not self.recipe.evaluate.meanwhile.every else set()
        return [self.steps[name] for name in names[: names.index(last) + 1] if name not in unasked]

    def check(self, pending: Collection[str], workers: int, most_workers: int = 0, gpus: float | None = None) -> None:
        """Raise InputError for what the steps `pending` would refuse, before days of training."""
        recipe, base = self.recipe, self.recipe.evaluate.generate.sampling
        if {"reference", "sweep", "evaluation", "reconstruction"} & set(pending):
            recipe.reference.features.check()
        meanwhile = recipe.evaluate.meanwhile if "checkpoint" in pending else DuringTraining()
        meanwhile.check()
        if {"sweep", "evaluation"} & set(pending) or meanwhile.every:
            recipe.evaluate.generate.check()
        if "reconstruction" in pending:
            _ = recipe.reconstruction.lpips_files
        if self.model is None:
            return
        if "checkpoint" in pending:
            recipe.train.check(self.model)
            recipe.train.check_workers(workers, most_workers, gpus)
            self._check_start(self.model)
            if meanwhile.every:
                base.check(self.model)
        if "sweep" in pending and isinstance(recipe.tune, SamplingSweep):
            recipe.tune.check(self.model, base)
        elif "evaluation" in pending:
            base.check(self.model)

    def _check_start(self, model: Model) -> None:
        """Raise InputError where there is a model to start from, and training cannot."""
        if self.start is None or self.tokenizer is None:
            return
        from train.start import Start  # torch takes seconds to import

        tokenizer = as_trained_with(self.tokenizer, read_card(self.start))
        Start(self.start, self.recipe.train.start_weights).check(model, tokenizer.hash)

    @property
    def model_path(self) -> str:
        """Where the model is or will be: the one given, or the checkpoint."""
        return self.recipe.checkpoint or str(self.path("checkpoint"))

    def path(self, name: str) -> UPath:
        """Return where the artifact of a step is or will be."""
        return self.steps[name].path


def run_identity(steps: Mapping[str, Step]) -> str:
    """Return the identity of a recipe's run in MLflow: of all steps that do not depend on the server."""
    return fingerprint([step.fingerprint for name, step in steps.items() if name != "registration"])


def lineage(recipe: Recipe, steps: Mapping[str, Step], evaluation: Artifact) -> dict[str, str]:
    """Return the tags that say what a measured model was made from: of a latent store that was given, its manifest."""
    made = {"mar.recipe": recipe.name, "mar.commit": evaluation.record["commit"]}
    if "latents" in steps:
        source = {name: of for name, of in steps["latents"].inputs.items() if name != "tokenizer"}
        told = " ".join(map(" ".join, source.items()))
        return {**made, "mar.latents": str(steps["latents"].path), "mar.source": told}
    if not recipe.latents or recipe.checkpoint:  # a model that is given was not trained here
        return made
    store = location(recipe.latents)
    digest = read_json(store / MANIFEST)["source"]["digest"]
    return {**made, "mar.latents": str(store), "mar.source": f"images {digest[:16]}"}
