"""The demo's recipe made small, as its overrides on the command line."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TINY = """
    --images.classes face flag
    --tokenizer.train-steps 20 --tokenizer.width 16
    --train.model.trunk.encoder-width 32 --train.model.trunk.decoder-width 32 --train.model.head.width 32
    --train.train-steps 12 --train.batch-size 16 --train.checkpoint-every 4 --train.log-every 2
    --evaluate.generate.images 24 --reference.images 40
    --evaluate.generate.sampling.diffusion-steps.first 5 --evaluate.generate.sampling.diffusion-steps.last 5
    --tune.temperature 1.0 --tune.cfg-scale 1.0 2.0 --tune.ar-steps 2 --tune.step-schedules 5 2 --tune.images 16
""".split()


def wait_until(reached: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until `reached` is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def is_served(url: str) -> bool:
    """Tell whether a server answers there."""
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False
