"""RECIPE|MODEL [flags]: the steps up to the evaluation, or a model against real images

mar evaluate ./model --tokenizer kl16:/weights/kl16.ckpt --images.path /data/train
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from evaluate.config import Evaluate, Reference, Subject
from evaluate.results import EvaluationResult
from infra.artifact import Step
from infra.cluster import Compute, check_tracking, tracking_uri
from infra.console import say, stage
from infra.errors import InputError
from infra.fingerprint import fingerprint
from infra.storage import local_root, require_writable
from pipeline.deciding import CODE
from pipeline.flags import parse
from pipeline.make import make_until
from pipeline.record import record_step
from pipeline.summary import say_distances
from pipeline.target import is_recipe
from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer, TokenizerFile
from tokenize_jobs.sources.listing import ImageFiles, scan_images
from train.checkpoint import EMA_WEIGHTS, MODEL, WEIGHTS, ModelCard, read_card


@dataclass(frozen=True, kw_only=True)
class EvaluateModel:
    """Draw images from a model directory and measure their distance to real ones."""

    images: ImageFiles = field(default_factory=ImageFiles)
    """The real images that the model is measured against."""
    tokenizer: PretrainedTokenizer = field(default_factory=PretrainedTokenizer)
    """The tokenizer that the model was trained with."""
    name: str = "imported"
    """Label of the evaluation."""
    reference: Reference = field(default_factory=Reference)
    """The real images that generated ones are measured against."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """How the model is measured."""
    compute: Compute = field(default_factory=Compute)
    """Where it is measured, and where the results lie."""


def main(words: list[str]) -> None:
    """Make the evaluation of a recipe, or of a model directory."""
    if is_recipe(words[0]):
        make_until("evaluation", "evaluate", words)
    else:
        evaluate_model(Path(words[0]), parse(EvaluateModel(), words[1:], f"mar evaluate {words[0]}"))


def evaluate_model(folder: Path, own: EvaluateModel) -> None:
    """Measure the model, or say that it was measured; the evaluation is recorded in MLflow."""
    card = read_card(folder)
    weights = tokenizers.find(own.tokenizer.kind, own.tokenizer.path)
    # whatever the model was trained on, it was not a share of these
    images = scan_images(replace(own.images, num_classes=card.model.num_classes, heldout_share=0))
    real, heldout = images.train, images.heldout
    subject = Subject(str(folder.absolute()), weights, _image_size(card, weights))

    def make(out):  # noqa: ANN001
        from evaluate.evaluate import evaluate
        from evaluate.reference import make_reference

        if heldout is not None:
            make_reference(own.reference, heldout, subject.image_size, out / "heldout", own.compute)
        make_reference(own.reference, real, subject.image_size, out / "reference", own.compute)
        floor = out / "heldout" if heldout else None
        return evaluate(
            own.evaluate, subject, out / "reference", floor, own.evaluate.generate.sampling, out, own.compute
        )

    inputs = {
        "checkpoint": _digest(folder),
        "images": real.digest[:16],
        "reference": fingerprint(own.reference),
        "heldout": heldout.digest[:16] if heldout else "",
    }
    root = local_root(own.compute.out)
    step = Step(root=root, name="evaluation", label=own.name, config=own.evaluate, inputs=inputs, make=make,
                result=EvaluationResult, code=CODE["evaluation"])  # fmt: skip
    require_writable(root)
    uri = tracking_uri(own.compute, root)
    check_tracking(uri)
    artifact = step.find()
    stage("evaluation", "cached" if artifact else f"making {step.path}")
    artifact = artifact or step.build()
    from infra.tracking import Tracker

    tracker = Tracker(uri, root)
    parent = tracker.open(own.name, step.fingerprint)
    record_step(tracker, parent, step, artifact)
    tracker.finish(parent)
    say_distances(artifact.result)
    say(f"samples:    {artifact.path / 'grid.png'}")


def _image_size(card: ModelCard, weights: TokenizerFile) -> int:
    return card.model.latent_size * tokenizers.load(weights.kind, weights.path).stride


def _digest(folder: Path) -> str:
    """Return a digest of the model's description and weights."""
    digest = hashlib.sha256()
    for name in (MODEL, WEIGHTS, EMA_WEIGHTS):
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read ({error})") from None
    return digest.hexdigest()[:16]
