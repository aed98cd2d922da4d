"""[flags]: MLflow in a browser: compare runs, see grids and registered models

The server ends with everything it started when the command is interrupted.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

from infra.cluster import Compute, recorded_at
from infra.console import say
from infra.storage import location
from pipeline.flags import parse
from pipeline.links import PORT, links
from pipeline.summary import say_links


@dataclass(frozen=True, kw_only=True)
class UI:
    """Show runs and registered models in a browser."""

    port: int = PORT
    """Port of the page on 127.0.0.1."""
    compute: Compute = field(default_factory=Compute)
    """Where the runs are recorded."""


def main(words: list[str]) -> int:
    """Serve until interrupted; returns the server's exit code. Raises InputError when there is no store."""
    config = parse(UI(), words, "mar ui")
    root = location(config.compute.out)
    uri = recorded_at(config.compute, root)
    if uri.startswith("http"):
        _say_pages(uri, config)
        return 0
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1",
        "--backend-store-uri", uri, "--default-artifact-root", f"{root}/mlartifacts",
        "--host", "127.0.0.1", "--port", str(config.port),
    ]  # fmt: skip
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"  # noqa: PTH120  MLflow finds uvicorn by PATH
    say(f"MLflow UI: http://127.0.0.1:{config.port}  (Ctrl-C ends it)")
    _say_pages(uri, config)
    server = subprocess.Popen(command, start_new_session=True, env={**os.environ, "PATH": path})
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end_group(server)


def _say_pages(uri: str, config: UI) -> None:
    """Print the pages of the newest run."""
    from infra.tracking import Tracker, answering

    tracker = Tracker(uri, location(config.compute.out))
    with answering(uri):
        if run := tracker.newest():
            say_links(links(tracker, run, port=config.port), ", newest run")


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, ending)
            server.wait(timeout=10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
