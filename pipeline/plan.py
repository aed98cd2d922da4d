"""A recipe as a chain of steps, each knowing its identity before anything runs.

pictures -> tokenizer -> latents -> reference -> checkpoint -> sweep -> evaluation -> registration
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from evaluate.results import EvaluationResult, ReferenceResult
from evaluate.subject import Subject
from infra.artifact import R, Step
from infra.cluster import Compute, tracking_uri
from infra.console import stage
from infra.fingerprint import canonical, with_absolute_files
from infra.storage import local_root, location
from pipeline.deciding import CODE
from pipeline.given import as_trained_with, images_seen, model_folder
from pipeline.meanwhile import measured_meanwhile
from pipeline.recipe import Recipe
from pipeline.references import named_reference
from pipeline.results import RegistrationResult
from pipeline.steps import NO_IMAGES, Plan, Source, lineage, run_identity
from pipeline.trainings import checkpoints_of, planned_trainings, rule_of, shorter, trainings_of
from tokenize_jobs import tokenizers
from tokenize_jobs.config import Fit, TokenizerFile
from tokenize_jobs.results import LatentsResult, PicturesResult, TokenizerResult
from tokenize_jobs.sources.emoji import Emoji, draw
from tokenize_jobs.sources.listing import ImageFiles, Images, scan, scan_images
from train.card import ModelCard, check_tokens, content_digest, read_card
from train.results import CheckpointResult, TrainingProgress
from tune.config import NoSweep, SamplingSweep, TrainingSweep
from tune.results import SweepResult
from tune.training_results import TrainingSweepResult

HELDOUT = "heldout"
"""Below a reference: the same of held-out images."""
OnLog = Callable[[dict[str, Any]], None]


class Planner:
    """Builds the plan of one recipe for one output root."""

    def __init__(
        self, recipe: Recipe, compute: Compute, on_log: OnLog = lambda _: None, again: Collection[str] = (),
        scanned: dict[ImageFiles, Images] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.compute, self.on_log, self.again = with_absolute_files(recipe), compute, on_log, again
        self.scanned = {} if scanned is None else scanned
        self.root = local_root(compute.out)
        self.image_size = recipe.tokenize.image_size
        self.steps: dict[str, Step] = {}
        self.given: dict[str, str] = {}
        """Identities of what takes the place of a step."""

    def plan(self) -> Plan:
        """Return the plan. Raises InputError for sources or weights that are not there."""
        given = self._given_card()
        source = NO_IMAGES if given is not None and self.recipe.reference.path else self._source(given)
        tokenizer = self._tokenizer(source, given)
        geometry = tokenizers.geometry(self.recipe.tokenizer)
        if given is not None:
            model, self.image_size = given.model, given.model.latent_size * geometry.stride
            check_tokens(geometry.of_image(self.image_size), model, tokenizer)
        else:
            model = self.recipe.train.on(geometry.of_image(self.image_size), len(source.classes))
            self._latents(source, tokenizer)
        self._reference(source)
        if given is None:
            self._checkpoint(source, tokenizer)
        subject = Subject(self._model_path(), tokenizer, self.image_size, self.recipe.evaluate.generate.use_ema)
        if isinstance(self.recipe.tune, SamplingSweep):
            self._sweep(self.recipe.tune, subject)
        elif not isinstance(self.recipe.tune, NoSweep):
            self._training_sweep(self.recipe.tune, source)
        self._evaluation(subject, source)
        self._registration(tokenizer)
        return Plan(self.recipe, self.root, self.steps, tokenizer, model, self._start())

    def _given_card(self) -> ModelCard | None:
        """Return the card of the model that is given instead of being trained, if one is; its content identifies it."""
        if not self.recipe.checkpoint:
            return None
        folder = location(self.recipe.checkpoint)
        card = read_card(folder)
        self.given["checkpoint"] = content_digest(folder)
        return card

    def _start(self) -> UPath | None:
        """Return the directory of the model that training starts from; None where it starts from random weights."""
        train = self.recipe.train
        return model_folder(train.start_from, self.compute) if train.start_from and not self.recipe.checkpoint else None

    def _model_path(self) -> str:
        return str(location(self.recipe.checkpoint) if self.recipe.checkpoint else self._path("checkpoint"))

    def _add(
        self,
        name: str,
        config: object,
        inputs: Mapping[str, str],
        make: Callable[[UPath], R],
        result: type[R],
        version: int = 1,
        label: str = "",
        root: UPath | None = None,
    ) -> Step[R]:
        """Add a step. What several recipes can share has a `label` that does not name the recipe."""
        step = Step(
            root=root or self.root, name=name, label=label or self.recipe.name, config=config, inputs=inputs, make=make,
            result=result, code=CODE[name], version=version, recipe=canonical(self.recipe, identity=False),
            again=name in self.again, is_shared=name == "latents",
        )  # fmt: skip
        self.steps[name] = step
        return step

    def _path(self, name: str) -> UPath:
        return self.steps[name].path

    def _source(self, given: ModelCard | None) -> Source:
        images = images_seen(self.recipe, given)
        if isinstance(images, Emoji):
            step = self._add(
                "pictures", images, {}, lambda out: draw(images, out), PicturesResult, version=2, label="emoji"
            )
            path = self._path("pictures")

            def listed() -> Images:
                train = scan(str(path / "train"))
                return Images(train, scan(str(path / "heldout")), train, "")

            drawn = {"pictures": step.fingerprint}
            return Source(drawn, images.classes, listed, heldout=drawn)
        if images not in self.scanned:
            self.scanned[images] = scan_images(images)
            stage("pictures", self.scanned[images].told)
        return Source.of(self.scanned[images])

    def _tokenizer(self, source: Source, given: ModelCard | None = None) -> TokenizerFile:
        config, size = self.recipe.tokenizer, self.image_size
        if not isinstance(config, Fit):
            found = tokenizers.find(config.kind, config.path)
            return found if given is None else as_trained_with(found, given)
        config.check(size)

        def make(out: UPath) -> TokenizerResult:
            from tokenize_jobs.job.fit_job import fit_tokenizer

            return fit_tokenizer(config, source.images(), size, out, self.compute)

        step = self._add(
            "tokenizer", {"fit": canonical(config), "image_size": size},
            {**source.inputs, **source.rule.identity}, make, TokenizerResult, version=2, label=f"{config.kind}-{size}",
        )  # fmt: skip
        return TokenizerFile(config.kind, str(self._path("tokenizer")), step.fingerprint)

    def _latents(self, source: Source, weights: TokenizerFile) -> None:
        if self.recipe.latents:
            from tokenize_jobs.store.audit import require_store

            kind = tokenizers.geometry(self.recipe.tokenizer).of_image(self.image_size)
            self.given["latents"] = require_store(location(self.recipe.latents), kind, weights, source.classes)
            return

        def make(out: UPath) -> LatentsResult:
            from tokenize_jobs.job.latents_job import tokenize

            return tokenize(self.recipe.tokenize, weights, source.images().all, out, self.compute)

        inputs = {**source.inputs, "tokenizer": weights.hash}
        label, root = self.recipe.tokenize.label(weights.kind), location(self.compute.latents or self.compute.out)
        self._add("latents", self.recipe.tokenize, inputs, make, LatentsResult, label=label, root=root)

    def _checkpoint(self, source: Source, weights: TokenizerFile) -> None:
        latents = location(self.recipe.latents) if self.recipe.latents else self._path("latents")
        on_log, start = TrainingProgress(self.recipe.train.train_steps, self.on_log), self._start()

        def make(out: UPath) -> CheckpointResult:
            from tokenize_jobs.job.heldout_job import tokenize_heldout
            from train.heldout_loss import IMAGES
            from train.loop import Data
            from train.trainer import train

            begin = shorter(self.steps["checkpoint"], self.recipe.train.train_steps)
            images, held = source.images().heldout, None
            if images is not None and not source.rule.share:  # a share's latents are among the others
                held = tokenize_heldout(self.recipe.tokenize, weights, images, IMAGES, out / HELDOUT, self.compute)
            measured = measured_meanwhile(self.recipe.evaluate, weights, self.steps["reference"], out)
            data = Data(latents, source.rule, held, weights)
            return train(self.recipe.train, data, out, self.compute, on_log, begin, start, measured)

        inputs = {**self._inputs("latents"), **source.rule.identity}
        inputs |= {"start": content_digest(start)} if start else {}
        self._add("checkpoint", self.recipe.train, inputs, make, CheckpointResult)

    def _reference(self, source: Source) -> None:
        """Add the reference: of what the recipe names, else of its images, or of a file of statistics alone."""
        config, size = self.recipe.reference, self.image_size
        if config.path:
            config, source = named_reference(config)

        def make(out: UPath) -> ReferenceResult:
            from evaluate.reference import make_reference
            from tokenize_jobs.sources.samples import evenly

            if source is NO_IMAGES:
                return make_reference(config, None, size, out, self.compute)
            images = source.images()
            if images.heldout is not None and (not source.rule.share or len(evenly(images.heldout, size, 2)) == 2):
                make_reference(replace(config, statistics=""), images.heldout, size, out / HELDOUT, self.compute)
            used = None if config.statistics and not config.path else images.train
            return make_reference(config, used, size, out, self.compute)

        inputs = {**source.inputs, **source.heldout, **config.identity}
        label, identity = f"{config.features.name}-{size}", {"reference": canonical(config), "image_size": size}
        self._add("reference", identity, inputs, make, ReferenceResult, label=label)

    def _sweep(self, sweep: SamplingSweep, subject: Subject) -> None:
        base, reference = self.recipe.evaluate.generate.sampling, self._path("reference")

        def make(out: UPath) -> SweepResult:
            from tune.sampling_sweep import sampling_sweep

            return sampling_sweep(sweep, base, subject, reference, out, self.compute)

        config = {"sweep": canonical(sweep), "base": canonical(base)} | ({} if subject.use_ema else {"use_ema": False})
        self._add("sweep", config, self._inputs("reference", "checkpoint"), make, SweepResult)

    def _training_sweep(self, sweep: TrainingSweep, source: Source) -> None:
        """Add a sweep whose trials are the checkpoints of this recipe with other fields."""
        planned = planned_trainings(
            self.recipe, sweep, self.steps["reference"].fingerprint, self.compute.train,
            lambda recipe: Planner(recipe, self.compute, again=self.again, scanned=self.scanned).plan(),
        )  # fmt: skip
        rule = rule_of(planned, sweep, is_held_out=bool(source.heldout))
        generate = replace(self.recipe.evaluate.generate, images=sweep.images, seed=sweep.seed)
        config, reference = replace(self.recipe.evaluate, generate=generate, keep="none"), self._path("reference")

        def make(out: UPath) -> TrainingSweepResult:
            from tune.training_sweep import training_sweep

            own = self.steps["checkpoint"].fingerprint
            trainings = trainings_of(planned, own, self.image_size, self.compute, self.again)
            return training_sweep(trainings, rule, config, reference, out, self.compute)

        inputs = {**self._inputs("reference"), **checkpoints_of(planned)}
        identity = {"sweep": canonical(sweep), "generate": canonical(generate)}
        self._add("sweep", identity, inputs, make, TrainingSweepResult)
        self.steps["checkpoint"] = self.steps.pop("checkpoint")  # a sweep does not need the recipe's own model

    def _evaluation(self, subject: Subject, source: Source) -> None:
        """Add the evaluation: of the sweep's winner, or of the recipe's own settings where nothing is swept."""
        reference, config = self._path("reference"), self.recipe.evaluate
        swept = ("sweep",) if isinstance(self.recipe.tune, SamplingSweep) else ()

        def make(out: UPath) -> EvaluationResult:
            from evaluate.evaluate import evaluate

            heldout = reference / HELDOUT if (reference / HELDOUT).exists() else None
            images = None if source is NO_IMAGES else source.images()
            sweep = self.steps["sweep"].find() if swept else None
            sampling = sweep.result.best if sweep else config.generate.sampling
            return evaluate(config, subject, reference, heldout, sampling, out, self.compute, images)

        inputs = {**self._inputs("reference", "checkpoint", *swept), **config.classifier.identity}
        self._add("evaluation", config, inputs, make, EvaluationResult)

    def _registration(self, tokenizer: TokenizerFile) -> None:
        uri = tracking_uri(self.compute, self.root)

        def make(out: UPath) -> RegistrationResult:  # noqa: ARG001  what is made lies in MLflow
            from pipeline.registry import Candidate, register

            evaluation = self.steps["evaluation"].find()
            assert evaluation is not None
            return register(
                Candidate(
                    name=f"mar-{self.recipe.name}", run_name=self.recipe.name, run=run_identity(self.steps),
                    model=Path(self._model_path()), checkpoint=self._inputs("checkpoint")["checkpoint"],
                    tokenizer=tokenizer, image_size=self.image_size,
                    evaluation=evaluation.fingerprint, measured=evaluation.result,
                    lineage={"mar.model": self._model_path(), **lineage(self.recipe, self.steps, evaluation)},
                ),
                uri, self.root,
            )  # fmt: skip

        self._add("registration", {"store": uri}, self._inputs("checkpoint", "evaluation"), make, RegistrationResult)

    def _inputs(self, *names: str) -> dict[str, str]:
        return {name: self.steps[name].fingerprint if name in self.steps else self.given[name] for name in names}
