"""What heads that walk from noise to a token share: the loop of sampling. A single step of it is the head's own."""

import torch
from torch import Tensor

from train.models.head import Guidance, TokenHead
from train.models.head_mlp import HeadMLP, Modulations
from train.models.heads import HeadSampling


class DenoisingHead(TokenHead):
    """A head whose network is evaluated at each of `settings.steps` times."""

    net: HeadMLP

    def process(self, settings: HeadSampling, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the steps (S, R) in order of use, each a row for `denoise`, and the times (S,) of the network.

        Both on the device: the loop neither copies from the host nor waits for it.
        """
        raise NotImplementedError

    def denoise(
        self,
        x: Tensor,
        older: Tensor,
        fresh: Tensor,
        row: Tensor,
        time: Tensor,
        guidance: Guidance,
        layers: Modulations,
        settings: HeadSampling,
    ) -> tuple[Tensor, Tensor]:
        """Take one step: x (N, C) -> x, and what the next step is to get as `older` (N, C).

        Which step it is, `row` and the embedded `time` (1, W) tell: tensors, so that one compiled graph serves all.
        """
        raise NotImplementedError

    def sampling_draws(self, settings: HeadSampling) -> int:
        """Return the number of steps: the initial noise, and that of each step but the last."""
        return settings.steps

    def compile_sampling(self) -> None:
        """Compile the denoising step: one graph serves all steps, token counts and guidance scales."""
        self.denoise = torch.compile(self.denoise, fullgraph=True, dynamic=True)

    def sample(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        null_condition: Tensor | None = None,
        cfg_scale: float = 1.0,
    ) -> Tensor:
        """Draw tokens (N, C) float32 given condition (N, D).

        noise (steps, N, C): the initial noise, then that of each step but the last, in order of use.
        """
        rows, times = self.process(settings, condition.device)
        embedded = self.net.time_embed(times)  # one row a step, not one a token
        null = self.net.cond_embed(null_condition) if null_condition is not None and cfg_scale != 1.0 else None
        guidance = Guidance.of(self.net.cond_embed(condition), null, cfg_scale)
        layers = self.net.modulation_layers(len(guidance.rows))
        x = noise[0].to(torch.float32, copy=True)  # no view: every step is then one and the same graph
        older = torch.zeros_like(x)
        for step in range(len(rows)):
            fresh = noise[(step + 1) % len(rows)]  # the last step gives it no weight
            time = embedded[step : step + 1]
            x, older = self.denoise(x, older, fresh, rows[step], time, guidance, layers, settings)
        return x
