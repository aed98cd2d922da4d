"""Plans that measure without a model: images that were given, and a tokenizer alone."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from upath import UPath

from evaluate.results import EvaluationResult, ReconstructionResult
from infra.cluster import Compute
from infra.console import stage
from infra.errors import InputError
from infra.fingerprint import canonical
from pipeline.plan import HELDOUT, Planner
from pipeline.recipe import Recipe
from pipeline.steps import NO_IMAGES, Plan
from tokenize_jobs import tokenizers
from tokenize_jobs.sources.listing import ImageFiles, Images, scan_samples

RECONSTRUCTION = "reconstruction"
_OF_IMAGES = ("classifier", "keep", "grid_columns")
"""What of an evaluation's config holds for images that were given."""


def planner(
    recipe: Recipe,
    compute: Compute,
    last: str = "",
    on_log: Callable[[dict[str, Any]], None] = lambda _: None,
    again: Collection[str] = (),
    scanned: Mapping[ImageFiles, Images] | None = None,
) -> Planner:
    """Return what plans a recipe up to the step `last`; images that are `scanned` are not listed again."""
    kind = TokenizerPlanner if last == RECONSTRUCTION else ImagesPlanner if recipe.samples else Planner
    return kind(recipe, compute, on_log, again, dict(scanned or {}))


class ImagesPlanner(Planner):
    """Plans the evaluation of images that were given: reference, evaluation."""

    def plan(self) -> Plan:
        """Return the plan. Raises InputError for sources that are not there, or whose classes are others."""
        from evaluate.given_images import side_of  # torch takes seconds to import

        images, reference = self.recipe.images, self.recipe.reference
        is_given = bool(reference.path or reference.statistics)
        if not is_given and isinstance(images, ImageFiles) and not images.path:
            raise InputError(
                f"{self.recipe.samples}: real images to measure against are needed: --reference, or --images.path"
            )
        real = NO_IMAGES if is_given else self._source(None)
        numbered = images.num_classes if isinstance(images, ImageFiles) else 0
        given = scan_samples(self.recipe.samples, real.classes or tuple(map(str, range(numbered))))
        self.image_size = side_of(given)
        stage("images", f"{given.format}, {len(given.classes) or 'no'} classes, {self.image_size} pixels a side")
        self._reference(real)
        reference = self._path("reference")

        def make(out: UPath) -> EvaluationResult:
            from evaluate.given_images import evaluate_images

            heldout = reference / HELDOUT if (reference / HELDOUT).exists() else None
            return evaluate_images(self.recipe.evaluate, given, reference, heldout, out, self.compute)

        config = {name: canonical(getattr(self.recipe.evaluate, name)) for name in _OF_IMAGES}
        inputs = {**self._inputs("reference"), "samples": given.digest[:16], **self.recipe.evaluate.classifier.identity}
        self._add("evaluation", config, inputs, make, EvaluationResult)
        return Plan(self.recipe, self.root, self.steps)


class TokenizerPlanner(Planner):
    """Plans the measurement of a tokenizer alone: pictures, tokenizer, reference, reconstruction."""

    def plan(self) -> Plan:
        """Return the plan. Raises InputError for sources or weights that are not there."""
        source = self._source(None)
        weights = self._tokenizer(source)
        tokenizers.geometry(self.recipe.tokenizer).of_image(self.image_size)
        self._reference(source)
        reference, config = self._path("reference"), self.recipe.reconstruction

        def make(out: UPath) -> ReconstructionResult:
            from evaluate.reconstruct import reconstruct

            return reconstruct(config, weights, source.images().train, reference, out, self.compute)

        inputs = {**self._inputs("reference"), **source.inputs, "tokenizer": weights.hash}
        inputs |= {"lpips": digest} if (digest := config.lpips_digest) else {}
        label = self.recipe.tokenize.label(weights.kind)
        self._add(RECONSTRUCTION, config, inputs, make, ReconstructionResult, label=label)
        return Plan(self.recipe, self.root, self.steps, weights)
