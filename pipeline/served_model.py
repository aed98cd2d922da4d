# ruff: noqa: E402  the code that was registered with a model has to be found before it is imported
"""The registered model as MLflow loads it: class ids in, images out. Code, safetensors and JSON; nothing pickled.

MLflow itself drops parameters that it does not know, and columns too where a signature names those there are; so the
signature names none, and every column is looked at here.
"""

import base64
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

sys.path[:0] = map(str, Path(__file__).parent.glob("code/rooms.zip"))  # the code that was registered with the model

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.generate import Generator
from infra.errors import InputError, nearest
from infra.from_json import from_json
from tokenize_jobs.config import TokenizerFile

CLASS, SEED, FORMAT = "class_id", "seed", "image_format"
_BATCH = 64
_LARGEST_SEED = 2**63 - 1


def _whole(value: Any, least: int, most: float) -> int:  # noqa: ANN401
    if not isinstance(value, int | float | np.number) or value != int(value) or not least <= value <= most:
        raise ValueError(f"must be a whole number from {least}" + (f" to {most}" if most < math.inf else ""))
    return int(value)


def _number(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
        raise ValueError("must be a number, 0 or more")
    return float(value)


def _steps(value: Any) -> int:  # noqa: ANN401
    return _whole(value, 0, math.inf)


SETTINGS: Mapping[str, Callable[[Any], float]] = {
    "cfg_scale": _number, "temperature": _number, "ar_steps": _steps, "diffusion_steps": _steps,
    SEED: lambda value: _whole(value, 0, _LARGEST_SEED),
}  # fmt: skip
"""Settings that a call or a row may change, and what reads them; 0 steps are those that the model was measured with."""


@dataclass(frozen=True)
class _Row:
    """An image to draw."""

    label: int
    index: int
    seed: int
    sampling: Sampling


class SampledImages(mlflow.pyfunc.PythonModel):
    """Draws an image for each row of the input."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401  MLflow passes it by this name
        """Load weights, tokenizer and the sampling settings that were measured."""
        package = Path(context.artifacts["package"])
        saved = json.loads((package / "sampling.json").read_text())
        self.sampling = from_json(json.dumps(saved["sampling"]), Sampling, "sampling.json")
        tokenizer = saved["tokenizer"]
        weights = TokenizerFile(tokenizer["kind"], str(package / tokenizer["file"]) if tokenizer["file"] else "")
        self.generator = Generator(str(package), weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:  # noqa: ANN401, ARG002
        """Return images uint8 (rows, H, W, 3) or, with `image_format` png, a list of PNG files in base64.

        A row has the column class_id, and may have columns of the SETTINGS, which go before `params`; an empty cell
        leaves a setting as it is. Image i of a call is that of (seed, i); a row with a seed of its own is the first
        image of that seed, whatever stands beside it. Raises MlflowException (HTTP 400) naming row and column.
        """
        try:
            rows, answer = self._rows(model_input, dict(params or {}))
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        images = self._draw(rows)
        return images if answer == "array" else [_png(image) for image in images]

    def _rows(self, model_input: Any, params: dict[str, Any]) -> tuple[list[_Row], str]:  # noqa: ANN401
        answer = params.pop(FORMAT, "array")
        if answer not in ("array", "png"):
            raise InputError(f"params.{FORMAT} is {answer!r}; it must be 'array' or 'png'")
        _refuse_unknown(params, SETTINGS, "parameter")
        chosen = {name: _read(name, value, f"params.{name}") for name, value in params.items()}
        table = _table(model_input)
        _refuse_unknown(table.columns, (CLASS, *SETTINGS), "column")
        if CLASS not in table:
            raise InputError(f"the input has no column {CLASS}: give a class id for each image")
        records = [
            {name: _plain(cell) for name, cell in row.items()} for row in table.astype(object).to_dict("records")
        ]
        return [self._row(place, record, chosen) for place, record in enumerate(records)], answer

    def _row(self, place: int, record: Mapping[str, Any], chosen: Mapping[str, Any]) -> _Row:
        where = f"row {place}"
        given = {name: value for name, value in record.items() if name != CLASS and not _is_empty(value)}
        own = {name: _read(name, value, f"{where}, {name}") for name, value in given.items()}
        settings = {**chosen, **own}
        seed, steps = int(settings.pop(SEED, 0)), int(settings.pop("diffusion_steps", 0))
        changes = {name: value for name, value in settings.items() if name != "ar_steps" or value}
        if steps:
            changes["diffusion_steps"] = DiffusionSteps(first=steps, last=steps)
        sampling, model = replace(self.sampling, **changes), self.generator.card.model
        try:
            sampling.check(model)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        label = self._label(record[CLASS], where)
        return _Row(label, 0 if SEED in own else place, seed, sampling)

    def _label(self, value: Any, where: str) -> int:  # noqa: ANN401
        classes = self.generator.card.model.num_classes
        if _is_empty(value):
            raise InputError(f"{where}, {CLASS}: is missing")
        try:
            return _whole(value if not isinstance(value, bool) else None, 0, classes - 1)
        except (ValueError, OverflowError):
            raise InputError(
                f"{where}, {CLASS}: is {value!r}; this model has the classes 0 to {classes - 1}, as whole numbers"
            ) from None

    def _draw(self, rows: list[_Row]) -> np.ndarray:
        """Draw those together that are drawn alike."""
        size = self.generator.card.model.latent_size * self.generator.tokenizer.stride
        images = np.empty((len(rows), size, size, 3), np.uint8)
        alike: dict[tuple[int, Sampling], list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault((row.seed, row.sampling), []).append(place)
        for (seed, sampling), places in alike.items():
            for start in range(0, len(places), _BATCH):
                some = places[start : start + _BATCH]
                labels = torch.tensor([rows[place].label for place in some])
                images[some] = self.generator.draw(labels, [rows[place].index for place in some], seed, sampling)
        return images


def _table(model_input: Any) -> pd.DataFrame:  # noqa: ANN401
    try:
        return model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
    except ValueError as error:
        raise InputError(f"the input is no table with a column {CLASS} ({error})") from None


def _plain(cell: Any) -> Any:  # noqa: ANN401
    """Return a cell's value: the scoring server makes arrays without dimensions of some."""
    return cell.item() if isinstance(cell, np.ndarray) and cell.ndim == 0 else cell


def _is_empty(value: Any) -> bool:  # noqa: ANN401
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value))


def _refuse_unknown(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"unknown {what} {name!r}.{nearest(str(name), known)} There are {', '.join(known)}.")


def _read(name: str, value: Any, where: str) -> float:  # noqa: ANN401
    try:
        return SETTINGS[name](value if not isinstance(value, bool) else None)
    except (ValueError, OverflowError, TypeError) as error:
        told = str(error) if type(error) is ValueError and str(error).startswith("must") else "must be a number"
        raise InputError(f"{where}: is {value!r}; it {told}") from None


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(SampledImages())
