"""The registered model as MLflow loads it: class ids in, images out. Code, safetensors and JSON; nothing pickled."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.generate import Generator
from infra.fingerprint import from_json
from tokenize_jobs.config import TokenizerFile

_PARAMS = ("cfg_scale", "temperature", "ar_steps", "diffusion_steps", "seed")


class SampledImages(mlflow.pyfunc.PythonModel):
    """Draws one image uint8 (H, W, 3) for each row's class_id."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401  MLflow passes it by this name
        """Load weights, tokenizer and the best sampling settings."""
        package = Path(context.artifacts["package"])
        saved = json.loads((package / "sampling.json").read_text())
        self.sampling = from_json(json.dumps(saved["sampling"]), Sampling, "sampling.json")
        tokenizer = saved["tokenizer"]
        weights = TokenizerFile(tokenizer["kind"], str(package / tokenizer["file"]) if tokenizer["file"] else "")
        self.generator = Generator(str(package), weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ANN401, ARG002
        """Return images uint8 (rows, H, W, 3); `params` are cfg_scale, temperature, ar_steps, diffusion_steps and seed.

        diffusion_steps 0 keeps the registered schedule.
        """
        chosen = dict(params or {})
        unknown = set(chosen) - set(_PARAMS)
        if unknown:
            raise ValueError(f"unknown parameters {sorted(unknown)}; there are {_PARAMS}")
        seed, steps = int(chosen.pop("seed", 0)), int(chosen.pop("diffusion_steps", 0))
        if steps:
            chosen["diffusion_steps"] = DiffusionSteps(first=steps, last=steps)
        labels = torch.tensor(model_input["class_id"].tolist())
        return self.generator.draw(labels, range(len(labels)), seed, replace(self.sampling, **chosen))


mlflow.models.set_model(SampledImages())
