"""Fits a tokenizer on the user's own images.

An autoencoder learns by L1 + L2 on pixels, a term of its kind, and what its config adds. Progress is saved every few
hundred steps, so a killed fit goes on where it was.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from infra.seeding import stream
from infra.storage import write_atomic
from tokenize_jobs.config import Fit, FitAutoencoder, FitPCATokenizer
from tokenize_jobs.tokenizers.added_terms import Added
from tokenize_jobs.tokenizers.fitted import Fitted
from tokenize_jobs.tokenizers.patch_pca import PatchPCA
from tokenize_jobs.tokenizers.pixels import from_uint8
from tokenize_jobs.tokenizers.small import SmallAutoencoder
from tokenize_jobs.tokenizers.small_kl import SmallKL
from tokenize_jobs.tokenizers.small_multiscale import SmallMultiScale
from tokenize_jobs.tokenizers.small_vq import SmallVQ

_SAVE_EVERY = 200
_FITTED: Mapping[str, type[SmallAutoencoder]] = {
    "fit": SmallKL, "fit-vq": SmallVQ, "fit-multiscale": SmallMultiScale,
}  # fmt: skip


def fit(config: Fit, images: np.ndarray, out: Path, report: Callable[[int, float], None]) -> Fitted:
    """Fit on images uint8 (N, H, W, 3), writing the tokenizer below `out`; returns it on the CPU.

    `report` gets each gradient step's number and the PSNR in dB of its batch.
    """
    if isinstance(config, FitPCATokenizer):
        model = PatchPCA.fitted(config, images)
    elif isinstance(config, FitAutoencoder):
        model = _trained(config, images, out, report)
    else:
        raise TypeError(f"no fit of a {type(config).__name__}")
    model.write(out)
    (out / "progress.pt").unlink(missing_ok=True)
    return model.eval().cpu()


def _trained(
    config: FitAutoencoder, images: np.ndarray, out: Path, report: Callable[[int, float], None]
) -> SmallAutoencoder:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    model = _FITTED[config.kind].new(config)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.train_steps + 1, pct_start=0.05
    )
    added = Added.of(config, device)
    parts = (model, optimizer, schedule, *added.parts)
    for step in range(_resume(out, *parts), config.train_steps):
        draws = stream("fit", config.seed, step)
        rows = images[draws.integers(len(images), size=config.batch_size)]
        rows = np.where(draws.random((len(rows), 1, 1, 1)) < 0.5, rows, rows[:, :, ::-1])
        batch = from_uint8(rows, device)
        decoded, of_latents = model.reconstruct(batch, draws)
        error = F.mse_loss(decoded, batch)
        loss = F.l1_loss(decoded, batch) + error + of_latents
        loss = loss + added.loss(step, batch, decoded, loss, model.last_layer)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        added.learn(step, batch, decoded)
        report(step + 1, psnr(error.item()))
        if (step + 1) % _SAVE_EVERY == 0:
            _save(out, step + 1, *parts)
    return model


def psnr(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1] with this mean squared error."""
    return float(10 * np.log10(4 / max(squared_error, 1e-12)))


def reconstruction_psnr(model: Fitted, images: np.ndarray) -> float:
    """Return the mean PSNR in dB of images uint8 (N, H, W, 3) decoded from their likeliest latents."""
    likeliest = model.tokens(images.shape[1] // model.stride).likeliest
    values = []
    for start in range(0, len(images), 256):
        batch = from_uint8(images[start : start + 256])
        decoded = model.decode(likeliest(model.encode(batch)))
        values += [psnr(error) for error in (decoded - batch).square().mean((1, 2, 3)).tolist()]
    return round(float(np.mean(values)), 2)


def _save(out: Path, step: int, *parts: object) -> None:
    buffer = io.BytesIO()
    states = [_on_cpu(part.state_dict()) for part in parts]  # type: ignore[attr-defined]
    torch.save({"step": step, "parts": states}, buffer)
    write_atomic(out / "progress.pt", buffer.getvalue())


def _on_cpu(state: Any) -> Any:  # noqa: ANN401  a tree of dicts and lists with tensors in it
    """Return the state with its tensors on the CPU, so that a machine without a GPU can go on."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


def _resume(out: Path, *parts: object) -> int:
    """Load the last saved progress, if any, and return its step."""
    path = out / "progress.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load_state_dict(state)  # type: ignore[attr-defined]
    return saved["step"]
