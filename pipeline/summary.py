"""What the console says when a run is done: the numbers with their conditions, what was made, where to look."""

from collections.abc import Iterable

from upath import UPath

from evaluate.metrics import frechet
from evaluate.results import GRID, REPORT, EvaluationResult, ReconstructionResult
from infra.artifact import Artifact
from infra.console import say, table
from pipeline.steps import Finished, Plan
from train.models.config import Model


def say_distances(evaluation: EvaluationResult, model: Model | None) -> None:
    """Print what an evaluation measured, of a model or of given images, beside its anchors and with its conditions."""
    conditions = evaluation.conditions
    measured = "given images" if evaluation.sampling is None else "trained model"
    rows = [(measured, evaluation.numbers), ("  standard error", evaluation.errors)]
    rows += [("untrained model (ceiling)", evaluation.ceiling)] if evaluation.ceiling else []
    rows += [("held-out real images (floor)", evaluation.floor)] if evaluation.floor else []
    names = [frechet.NAME, *(name for name in evaluation.numbers if name != frechet.NAME)]  # a record sorts them
    cells = [(row, *(f"{of[name]:.5g}" if name in of else "" for name in names)) for row, of in rows]
    deficient = ", rank-deficient" if evaluation.rank_deficient else ""
    say()
    say(table(cells, ("against real images", evaluation.metric + deficient, *names[1:])))
    say(
        f"  {conditions.reference_images} reference images, {evaluation.heldout_images} held out; "
        + _how(evaluation, model)
        + ("; fewer images than features: compare with as many images only" if evaluation.rank_deficient else "")
    )
    if evaluation.likelihood:
        say(f"  bits: {evaluation.likelihood}; but for bits per dimension, of this tokenizer's tokens alone")


def _how(evaluation: EvaluationResult, model: Model | None) -> str:
    """Return how the images were drawn."""
    if (sampling := evaluation.sampling) is None or model is None:
        return f"{evaluation.conditions.images} images as they were given"
    return (
        f"{'EMA' if evaluation.ema else 'raw'} weights; {sampling.told(model.head)}; {sampling.precisions}, "
        f"seed {evaluation.seed}"
    )


def say_links(pages: Iterable[tuple[str, str]], when: str = "") -> None:
    """Print the addresses of MLflow's pages."""
    say(f"MLflow{when}:")
    for name, url in pages:
        say(f"  {name + ':':10}{url}")


def served(uri: str, root: UPath) -> str:
    """Return what has to be done first, in words, where no server shows the store at `uri`."""
    return "" if uri.startswith("http") else f" (after `mar ui --compute.out {root}`)"


def say_reconstruction(found: ReconstructionResult) -> None:
    """Print what a tokenizer was measured to be."""
    cells = [
        (name, f"{value:.5g}", f"{found.errors[name]:.2g}" if name in found.errors else "")
        for name, value in found.numbers.items()
    ]
    deficient = "; fewer images than features: compare with as many images only" if found.rank_deficient else ""
    say()
    say(table(cells, (f"tokenizer {found.tokenizer_kind}", found.metric, "standard error")))
    say(f"  {found.conditions.images} images, {found.conditions.reference_images} reference images{deficient}")


def summary(plan: Plan, done: dict[str, Finished]) -> None:
    """Print what a run that measured something made."""
    evaluation = (done.get("evaluation") or done["reconstruction"]).artifact
    if "evaluation" in done:
        say_distances(evaluation.result, plan.model)
    else:
        say_reconstruction(evaluation.result)
    if "sweep" in done:
        say(f"  {done['sweep'].artifact.result.headline()}")
    say()
    say(table([(name, "cached" if f.was_cached else "made", f.artifact.record["seconds"]) for name, f in done.items()],
              ("step", "", "seconds")))  # fmt: skip
    say()
    _say_places(plan, done, evaluation)


def _say_places(plan: Plan, done: dict[str, Finished], evaluation: Artifact) -> None:
    say(f"samples:    {evaluation.path / GRID}")
    say(f"report:     {evaluation.path / REPORT}")
    if "registration" in done:
        say(f"model:      {done['registration'].artifact.result.headline()}")
    if "pictures" in done:
        say(f"pictures:   {done['pictures'].artifact.result.attribution}")
    say(f"MLflow UI:  mar ui --compute.out {plan.root}")
