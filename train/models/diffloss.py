"""The Diffusion Loss (Li et al. 2024, section 3): a small diffusion model of each token given its condition."""

from torch import Tensor, nn

from train.models.diffusion import SamplingTables, TrainingTables, q_sample, row_losses, sampling_tables
from train.models.head import Guidance, HeadSampling, LossTerms
from train.models.head_mlp import HeadMLP
from train.models.noise_schedule import TRAIN_TIMESTEPS


class DiffusionLoss(nn.Module):
    """Predicts the noise in a token, and where its variance lies between beta and beta~."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = HeadMLP(channels, condition_width, 2 * channels, width, depth)
        self.tables = TrainingTables()

    def loss(self, target: Tensor, condition: Tensor, uniform: Tensor, noise: Tensor) -> LossTerms:
        """Return the loss of tokens target (N, C) given condition (N, D), mean over M draws and N tokens.

        uniform (M, N) in [0, 1) chooses the timesteps, noise (M, N, C) is standard normal.
        """
        terms = self.row_terms(target, condition, uniform, noise)
        mse, vb = (term.mean() for term in terms)
        return LossTerms(loss=mse + vb, mse=mse.detach(), vb=vb.detach())

    def row_terms(self, target: Tensor, condition: Tensor, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mse, vb), each (M, N)."""
        draws, rows = uniform.shape
        t = (uniform.reshape(-1) * TRAIN_TIMESTEPS).long()
        x0, noise = target.float().repeat(draws, 1), noise.reshape(draws * rows, -1)
        x_t = q_sample(x0, noise, t, self.tables)
        embedded = self.net.cond_embed(condition).repeat(draws, 1)  # once a token, not once a draw
        output = self.net(x_t, self.net.time_embed(t), embedded)
        mse, vb = row_losses(output, x0, x_t, noise, t, self.tables)
        return mse.view(draws, rows), vb.view(draws, rows)

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
        tables = sampling_tables(settings.steps, settings.max_timestep, condition.device)
        return self.denoise(condition, noise, settings, tables, null_condition, cfg_scale)

    def denoise(
        self,
        condition: Tensor,
        noise: Tensor,
        settings: HeadSampling,
        tables: SamplingTables,
        null_condition: Tensor | None,
        cfg_scale: float,
    ) -> Tensor:
        """Do what `sample` does with tables at hand: one graph without a wait for the host, for `torch.compile`."""
        times = self.net.time_embed(tables.timesteps)  # one row a step, not one a token
        null = self.net.cond_embed(null_condition) if null_condition is not None and cfg_scale != 1.0 else None
        guidance = Guidance(self.net.cond_embed(condition), null, cfg_scale)
        x, older_x0 = noise[0].float(), None
        for used, index in enumerate(reversed(range(tables.steps)), start=1):
            output = self.net(guidance.repeat(x), times[index : index + 1], guidance.rows)
            predicted, fraction = guidance.combine(output, self.channels).chunk(2, dim=-1)
            if settings.solver == "ancestral":
                x, deviation = tables.ancestral(index, x, predicted, fraction)
                if index > 0:
                    x = x + settings.temperature * deviation * noise[used]
            elif settings.solver == "ddim":
                x = tables.ddim(index, x, predicted)
            else:
                x0 = tables.predicted_x0(index, x, predicted)
                x, older_x0 = tables.dpm_solver(index, x, x0, older_x0), x0
        return x
