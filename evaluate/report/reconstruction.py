"""What a tokenizer was measured to be, as one self-contained HTML page."""

import base64
from dataclasses import asdict
from pathlib import Path

import numpy as np
from upath import UPath

from evaluate.metrics import frechet
from evaluate.report.figures import histogram
from evaluate.report.page import render
from evaluate.results import GRID, REPORT, ReconstructionResult
from infra.storage import write_atomic


def write_page(result: ReconstructionResult, psnr: np.ndarray, out: UPath) -> None:
    """Write report.html into `out`, where the picture of pairs lies already; `psnr` (N,) is that of each image."""
    grid = out / GRID
    rows = [
        (
            result.metric if name == frechet.NAME else name.replace("_", " "), f"{value:.5g}",
            f"{result.errors[name]:.2g}" if name in result.errors else "",
        )
        for name, value in result.numbers.items()
    ]  # fmt: skip
    about = {
        "tokenizer": f"{result.tokenizer_kind} {result.tokenizer_hash}",
        "LPIPS weights": result.lpips_weights or "none",
    }
    text = render(
        Path(__file__).with_name("reconstruction.html"),
        title=f"{result.metric} {result.numbers[frechet.NAME]:.4g}", result=result, rows=rows,
        conditions=[(name.replace("_", " "), value) for name, value in (about | asdict(result.conditions)).items()],
        grid=base64.b64encode(grid.read_bytes()).decode() if grid.exists() else "",
        histogram=histogram(psnr, "PSNR, dB"),
    )  # fmt: skip
    write_atomic(out / REPORT, text.encode())
