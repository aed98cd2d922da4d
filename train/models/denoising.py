"""What heads that walk from noise to a token share: the loop of sampling. A single step of it is the head's own."""

import torch
from torch import Tensor

from train.models.head import Guidance, TokenHead
from train.models.head_mlp import HeadMLP, Modulations
from train.models.heads import HeadSampling
from train.models.replay import Replays


class DenoisingHead(TokenHead):
    """A head whose network is evaluated at each of `settings.steps` times."""

    net: HeadMLP
    replays: Replays | None = None

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
        Of `settings` only what all steps share counts: not how many there are, nor where they start.
        """
        raise NotImplementedError

    def sampling_draws(self, settings: HeadSampling) -> int:
        """Return the number of steps: the initial noise, and that of each step but the last."""
        return settings.steps

    def compile_sampling(self) -> None:
        """Compile the denoising step, once for all steps, token counts and guidance scales; on a GPU, replay it.

        What is replayed reads the weights where and as they are now: after a change of them, call this again.
        """
        self.denoise = torch.compile(self.denoise, fullgraph=True, dynamic=True)
        if next(self.parameters()).is_cuda:
            self.replays = Replays(self.denoise)

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
        last = len(rows) - 1  # the last step gives the noise no weight
        steps = [(rows[i], embedded[i : i + 1], noise[i + 1 if i < last else 0]) for i in range(last + 1)]
        if self.replays is not None:
            return self.replays.walk(noise[0], steps, guidance, layers, settings)
        x = noise[0].to(torch.float32, copy=True)  # no view: every step is then one and the same graph
        older = torch.zeros_like(x)
        for row, time, fresh in steps:
            x, older = self.denoise(x, older, fresh, row, time, guidance, layers, settings)
        return x
