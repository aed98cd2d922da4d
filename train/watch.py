"""What steps returned, left on the device until it is asked for: one wait for many steps."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Watch:
    """Counts steps that were skipped because their gradient was not finite."""

    def __init__(self, most_in_a_row: int, mean: Callable[[Tensor], Tensor] = lambda of_one: of_one) -> None:
        """`mean` is that over all workers."""
        self._most, self._in_a_row, self._mean = most_in_a_row, 0, mean
        self._waiting: list[tuple[int, Mapping[str, Tensor]]] = []

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Keep what step number `step` (1-based) returned, without a wait for the device."""
        self._waiting.append((step, metrics))

    def fetch(self) -> dict[str, float]:
        """Return the terms of the newest step since the last call, of those that were taken if there are any.

        Where steps were skipped, `skipped` is their number and `skipped_step` the newest. Raises FloatingPointError
        when too many in a row were.
        """
        names = list(self._waiting[0][1])
        values = torch.stack([torch.stack([metrics[name].float() for name in names]) for _, metrics in self._waiting])
        terms, skipped = {}, []
        for (step, _), row in zip(self._waiting, self._mean(values).tolist(), strict=True):
            found = dict(zip(names, row, strict=True))
            if math.isfinite(found["grad_norm"]):
                terms, self._in_a_row = found, 0
                continue
            skipped.append(step)
            terms, self._in_a_row = terms or found, self._in_a_row + 1
            if self._in_a_row >= self._most:
                raise FloatingPointError(
                    f"{self._in_a_row} steps in a row without a finite gradient; step {step}: loss {found['loss']}, "
                    f"gradient norm {found['grad_norm']}"
                )
        self._waiting = []
        return terms | ({"skipped": len(skipped), "skipped_step": skipped[-1]} if skipped else {})
