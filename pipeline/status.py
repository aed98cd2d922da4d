"""What is cached, what is stale and why, field by field, what is missing; makes nothing."""

from infra.cluster import Compute
from infra.console import table
from pipeline.plan import Planner
from pipeline.recipes import Recipe


def status(recipe: Recipe, compute: Compute) -> str:
    """Return a table of the recipe's steps."""
    plan = Planner(recipe, compute).plan()
    rows, reasons = [], []
    for name, step in plan.steps.items():
        artifact = step.find()
        stale = [] if artifact else step.explain_stale()
        state = "cached" if artifact else "stale" if stale else "missing"
        rows.append((name, state, step.fingerprint, artifact.record["finished"] if artifact else ""))
        reasons += [f"  {name}: {line}" for line in stale]
    text = table(rows, ("step", "state", "fingerprint", "finished"))
    return text + ("\n\nwhat changed since the newest artifact of the step:\n" + "\n".join(reasons) if reasons else "")
