"""What runs now, where and how far."""

import os
import socket

from infra.cluster import Compute
from infra.follow import append
from infra.hold import holding
from pipeline.plan import Planner
from pipeline.recipes import emoji_32
from pipeline.status import status


def test_running_step_says_who_makes_it_and_how_far_it_is(tmp_path):
    compute = Compute(out=str(tmp_path))
    plan = Planner(emoji_32(), compute).plan()
    training, latents = plan.path("checkpoint"), plan.path("latents")
    for folder in (training, latents / "commits"):
        folder.mkdir(parents=True)
    for step in (10, 20):
        append(training / "metrics.jsonl", {"step": step})
    (latents / "commits" / "a.json").write_text("{}")
    with holding(training), holding(latents):
        told = status(emoji_32(), compute)
    by = f"made by process {os.getpid()} on {socket.gethostname()} since"
    lines = [line for line in told.splitlines() if by in line]
    assert [(line.split(":")[0].strip(), line.rsplit(", ", 1)[1]) for line in lines] == [
        ("latents", "1 commits"),
        ("checkpoint", "step 20"),
    ]
    assert [line.split()[1] for line in told.splitlines() if line.startswith(("latents", "checkpoint"))] == [
        "running"
    ] * 2
    assert "running" not in status(emoji_32(), compute)
