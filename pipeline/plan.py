"""A recipe as a chain of steps, each knowing its identity before anything runs.

pictures -> tokenizer -> latents -> reference -> checkpoint -> evaluation -> sweep
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upath import UPath

from evaluate.config import Subject
from infra.artifact import Step
from infra.cluster import Compute
from infra.console import Progress
from infra.fingerprint import canonical
from infra.storage import local_root, location
from pipeline.recipes import Recipe
from tokenize_jobs import tokenizers
from tokenize_jobs.config import FitTokenizer, TokenizerFile
from tokenize_jobs.sources.emoji import Emoji, draw
from tokenize_jobs.sources.listing import Listing, scan

OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Source:
    """The recipe's images: what they are, and how to get their manifests once they exist."""

    identity: str
    train: Callable[[], Listing]
    heldout: Callable[[], Listing | None]


@dataclass(frozen=True)
class Plan:
    """The steps of a recipe in order, by name."""

    recipe: Recipe
    root: UPath
    steps: Mapping[str, Step]

    def until(self, last: str) -> list[Step]:
        """Return the steps up to and including `last`."""
        names = list(self.steps)
        return [self.steps[name] for name in names[: names.index(last) + 1]]

    def path(self, name: str) -> UPath:
        """Return where the artifact of a step is or will be."""
        return self.steps[name].path


class Planner:
    """Builds the plan of one recipe for one output root."""

    def __init__(self, recipe: Recipe, compute: Compute, on_log: OnLog = lambda _: None) -> None:
        self.recipe, self.compute, self.on_log = recipe, compute, on_log
        self.root = local_root(compute.out)
        self.steps: dict[str, Step] = {}

    def plan(self) -> Plan:
        """Return the plan. Raises InputError for sources or weights that are not there."""
        source = self._source()
        weights = self._weights(source)
        self._latents(source, weights)
        self._reference(source)
        self._checkpoint()
        subject = self._subject(weights)
        self._evaluation(subject)
        self._sweep(subject)
        return Plan(self.recipe, self.root, self.steps)

    def _add(
        self,
        name: str,
        config: object,
        inputs: Mapping[str, str],
        make: Callable[[UPath], Mapping[str, Any]],
        version: int = 1,
        label: str = "",
        root: UPath | None = None,
    ) -> Step:
        """Add a step; what recipes share has a label that does not name the recipe, so that they find each other's."""
        saved = canonical(self.recipe, identity=False)
        self.steps[name] = Step(
            root=root or self.root, name=name, label=label or self.recipe.name, config=config, inputs=inputs, make=make,
            version=version, recipe=saved,
        )  # fmt: skip
        return self.steps[name]

    def _path(self, name: str) -> UPath:
        return self.steps[name].path

    def _source(self) -> Source:
        images = self.recipe.images
        if isinstance(images, Emoji):
            step = self._add("pictures", images, {}, lambda out: draw(images, out), version=2, label="emoji")
            path = self._path("pictures")
            return Source(step.fingerprint, lambda: scan(str(path / "train")), lambda: scan(str(path / "heldout")))
        manifest = scan(images.path, images.num_classes)
        if images.heldout_path:
            heldout = scan(images.heldout_path, len(manifest.classes))
            return Source(manifest.digest[:16], lambda: manifest, lambda: heldout)
        if len(manifest.shards) == 1:
            return Source(manifest.digest[:16], lambda: manifest, lambda: None)
        kept, last = manifest.shards[:-1], manifest.shards[-1:]
        return Source(
            f"{manifest.digest[:16]}, all shards but the last",
            lambda: replace(manifest, shards=kept), lambda: replace(manifest, shards=last),
        )  # fmt: skip

    def _weights(self, source: Source) -> TokenizerFile:
        config, size = self.recipe.tokenizer, self.recipe.tokenize.image_size
        if not isinstance(config, FitTokenizer):
            return tokenizers.find(config.kind, config.path)
        config.check(size)

        def make(out: UPath) -> Mapping[str, Any]:
            from tokenize_jobs.job.fit_job import fit_tokenizer

            return fit_tokenizer(config, source.train(), source.heldout(), size, out, self.compute)

        step = self._add(
            "tokenizer", {"fit": canonical(config), "image_size": size}, {"images": source.identity}, make, version=2,
            label=f"fit-{size}",
        )  # fmt: skip
        return TokenizerFile("fit", str(self._path("tokenizer")), step.fingerprint)

    def _latents(self, source: Source, weights: TokenizerFile) -> None:
        def make(out: UPath) -> Mapping[str, Any]:
            from tokenize_jobs.job.latents_job import tokenize

            return tokenize(self.recipe.tokenize, weights, source.train(), out, self.compute)

        inputs = {"images": source.identity, "tokenizer": weights.hash}
        label, root = self.recipe.tokenize.label(weights.kind), location(self.compute.latents or self.compute.out)
        self._add("latents", self.recipe.tokenize, inputs, make, label=label, root=root)

    def _checkpoint(self) -> None:
        latents = self._path("latents")
        progress = Progress("checkpoint", self.recipe.train.train_steps, "steps")

        def on_log(line: dict[str, Any]) -> None:
            progress.update(line["step"], f", loss {line['loss']:.3f}, {line['images_per_second']:.0f} images/s")
            self.on_log(line)

        def make(out: UPath) -> Mapping[str, Any]:
            from train.trainer import train

            return train(self.recipe.train, latents, out, self.compute, on_log)

        self._add("checkpoint", self.recipe.train, {"latents": self.steps["latents"].fingerprint}, make)

    def _subject(self, weights: TokenizerFile) -> Subject:
        return Subject(str(self._path("checkpoint")), weights, self.recipe.tokenize.image_size)

    def _reference(self, source: Source) -> None:
        config, size = self.recipe.reference, self.recipe.tokenize.image_size

        def make(out: UPath) -> Mapping[str, Any]:
            from evaluate.reference import make_reference

            if (heldout := source.heldout()) is not None:
                make_reference(config, heldout, size, out / "heldout", self.compute)
            result = make_reference(config, source.train(), size, out, self.compute)
            return canonical(result, identity=False)

        self._add(
            "reference", {"reference": canonical(config), "image_size": size}, {"images": source.identity}, make,
            label=f"{config.features.name}-{size}",
        )  # fmt: skip

    def _evaluation(self, subject: Subject) -> None:
        reference, sampling = self._path("reference"), self.recipe.evaluate.generate.sampling

        def make(out: UPath) -> Mapping[str, Any]:
            from evaluate.evaluate import evaluate

            heldout = reference / "heldout" if (reference / "heldout").exists() else None
            result = evaluate(self.recipe.evaluate, subject, reference, heldout, sampling, out, self.compute)
            return canonical(result, identity=False)

        inputs = {name: self.steps[name].fingerprint for name in ("checkpoint", "reference")}
        self._add("evaluation", self.recipe.evaluate, inputs, make)

    def _sweep(self, subject: Subject) -> None:
        base, reference = self.recipe.evaluate.generate.sampling, self._path("reference")

        def make(out: UPath) -> Mapping[str, Any]:
            from tune.sampling_sweep import sampling_sweep

            result = sampling_sweep(self.recipe.tune, base, subject, reference, out, self.compute)
            return canonical(result, identity=False)

        inputs = {name: self.steps[name].fingerprint for name in ("checkpoint", "reference")}
        self._add("sweep", {"sweep": canonical(self.recipe.tune), "base": canonical(base)}, inputs, make)


def local_path(path: UPath) -> Path:
    """Return a local artifact's path as a pathlib.Path."""
    return Path(str(path))
