"""What is measured of checkpoints while their training goes on: handed down, since training knows no evaluation."""

from dataclasses import replace
from typing import TYPE_CHECKING

from upath import UPath

from evaluate.config import Evaluate
from evaluate.results import ReferenceResult
from infra.artifact import Step
from infra.console import stage
from infra.fingerprint import canonical, fingerprint
from tokenize_jobs.config import TokenizerFile
from train.results import GRIDS

if TYPE_CHECKING:  # it needs Ray
    from train.validation import Validation


def measured_meanwhile(
    config: Evaluate, weights: TokenizerFile, reference: Step[ReferenceResult], out: UPath
) -> "Validation | None":
    """Return how checkpoints are measured; None where nobody asked for it. Makes the reference where there is none."""
    asked = config.meanwhile
    if not asked.every:
        return None
    from evaluate.meanwhile import Meanwhile
    from train.validation import Validation

    _ = reference.find() or reference.build()
    generate = replace(config.generate, images=asked.images)
    measure = Meanwhile(generate, weights, str(reference.path), str(out / GRIDS))
    stage("checkpoint", f"{measure.title} of checkpoints, every {asked.every} steps")
    under = fingerprint([canonical(generate), reference.fingerprint])
    return Validation(measure, asked.every, asked.gpus, under)
