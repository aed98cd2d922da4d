"""Gaussian diffusion with learned-range variances: the equations of Ho et al. 2020 and Nichol & Dhariwal 2021.

Only what MAR uses: the noising, the training loss, and the reverse steps. Rows are tokens (N, C); the
network's output (N, 2C) holds the predicted noise, then the variance fractions.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor, nn

from train.models.noise_schedule import NoiseSchedule, cosine_schedule, respaced_schedule

_HALF_BIN = 1 / 255  # of the discretised likelihood at t = 0


class TrainingTables(nn.Module):
    """The tables of the 1000-step process that the loss reads, float32; they move with the model, and are not saved."""

    def __init__(self) -> None:
        super().__init__()
        schedule = cosine_schedule()
        columns = [
            schedule.alpha_bar.sqrt(),
            (1 - schedule.alpha_bar).sqrt(),
            (1 / schedule.alpha_bar).sqrt(),
            (1 / schedule.alpha_bar - 1).sqrt(),
            schedule.posterior_mean_coef_x0,
            schedule.posterior_mean_coef_xt,
            schedule.posterior_log_variance,
            schedule.betas.log(),
        ]
        self.register_buffer("_table", torch.stack(columns, 1).float(), persistent=False)

    def at(self, t: Tensor) -> tuple[Tensor, ...]:
        """Return the eight columns at timesteps t (N,), each (N, 1)."""
        return self._table[t].split(1, dim=1)


def q_sample(x0: Tensor, noise: Tensor, t: Tensor, tables: TrainingTables) -> Tensor:
    """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. eq. 4)."""
    sqrt_alpha_bar, sqrt_one_minus, *_ = tables.at(t)
    return sqrt_alpha_bar * x0 + sqrt_one_minus * noise


def row_losses(
    output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, tables: TrainingTables
) -> tuple[Tensor, Tensor]:
    """Return (mse, vb) of each row (N,): the noise's squared error, and the variational bound in bits.

    The bound trains the variances only: the predicted noise enters it detached (Nichol & Dhariwal, L_hybrid).
    Its tail is heavy: at t = 999 an error d of the noise costs about 720 d^2 bits.
    """
    predicted, fraction = output.chunk(2, dim=-1)
    mse = (noise - predicted).square().mean(-1)
    true_mean, true_log_variance, mean, log_variance = _posteriors(predicted.detach(), fraction, x0, x_t, tables.at(t))
    kl = 0.5 * (
        log_variance - true_log_variance - 1
        + torch.exp(true_log_variance - log_variance)
        + (true_mean - mean).square() * torch.exp(-log_variance)
    )  # fmt: skip
    likelihood = _discretised_log_likelihood(x0, mean, 0.5 * log_variance)
    vb = torch.where(t == 0, -likelihood.mean(-1), kl.mean(-1)) / math.log(2)
    return mse, vb


def _posteriors(
    predicted: Tensor, fraction: Tensor, x0: Tensor, x_t: Tensor, columns: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and log variance of q(x_{t-1} | x_t, x_0), then of p(x_{t-1} | x_t)."""
    _, _, recip, recip_minus_one, coef_x0, coef_xt, log_variance_min, log_beta = columns
    predicted_x0 = recip * x_t - recip_minus_one * predicted
    mean = coef_x0 * predicted_x0 + coef_xt * x_t
    true_mean = coef_x0 * x0 + coef_xt * x_t
    log_variance = _between(fraction, log_variance_min, log_beta)
    return true_mean, log_variance_min, mean, log_variance


def _between(fraction: Tensor | float, log_variance_min: Tensor, log_beta: Tensor) -> Tensor:
    """Interpolate the log variance between beta~ and beta (Nichol & Dhariwal eq. 15); fraction is in [-1, 1]."""
    share = (fraction + 1) / 2
    return share * log_beta + (1 - share) * log_variance_min


def _discretised_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log probability of the bin of width 2/255 around x0, with open bins at -1 and 1."""

    def cdf(value: Tensor) -> Tensor:  # tanh approximation of the normal distribution function
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    inverse_scale = torch.exp(-log_scale)
    upper, lower = cdf(inverse_scale * (x0 - mean + _HALF_BIN)), cdf(inverse_scale * (x0 - mean - _HALF_BIN))
    inside = torch.where(x0 > 0.999, 1 - lower, upper - lower)
    return torch.where(x0 < -0.999, upper, inside).clamp(min=1e-12).log()


@dataclass(frozen=True)
class ReverseStep:
    """What one step of a respaced process reads: 0-d float32 tensors on one device, all of step i."""

    recip: Tensor
    recip_minus_one: Tensor
    coef_x0: Tensor
    coef_xt: Tensor
    log_variance_min: Tensor
    log_beta: Tensor
    sqrt_before: Tensor
    sqrt_one_minus_before: Tensor
    noisy: Tensor
    """Of the fresh noise: 1, but 0 in step 0."""
    dpm_x: Tensor
    dpm_data: Tensor
    dpm_older: Tensor

    def predicted_x0(self, x_t: Tensor, predicted: Tensor) -> Tensor:
        """Return x_0 as the predicted noise implies it."""
        return self.recip * x_t - self.recip_minus_one * predicted

    def ancestral(self, x_t: Tensor, x0: Tensor, fraction: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of p(x_{t-1} | x_t); step 0 takes the mean alone."""
        mean = self.coef_x0 * x0 + self.coef_xt * x_t
        return mean, torch.exp(0.5 * _between(fraction, self.log_variance_min, self.log_beta))

    def ddim(self, x0: Tensor, predicted: Tensor) -> Tensor:
        """Return x_{t-1} of the deterministic sampler (Song et al. 2021, eq. 12 with sigma = 0)."""
        return self.sqrt_before * x0 + self.sqrt_one_minus_before * predicted

    def dpm_solver(self, x_t: Tensor, x0: Tensor, older_x0: Tensor) -> Tensor:
        """Return x_{t-1} of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); first and last step ignore `older_x0`."""
        data = (1 + self.dpm_older) * x0 - self.dpm_older * older_x0
        return self.dpm_x * x_t - self.dpm_data * data


class SamplingTables:
    """The steps of a respaced process, on one device.

    `rows` (steps, 12), each to be read as a `ReverseStep`, are taken as views, so the loop neither copies from the host
    nor waits for the device.
    """

    def __init__(self, schedule: NoiseSchedule, device: torch.device) -> None:
        self.steps = len(schedule.alpha_bar)
        self.timesteps = schedule.timestep_map.to(device)
        before, now = schedule.alpha_bar_previous, schedule.alpha_bar
        log_snr = 0.5 * (now.log() - (1 - now).log())
        step = torch.cat([log_snr.new_full((1,), math.inf), log_snr[:-1]]) - log_snr  # the last one ends at x_0
        columns = {
            "recip": (1 / now).sqrt(),
            "recip_minus_one": (1 / now - 1).sqrt(),
            "coef_x0": schedule.posterior_mean_coef_x0,
            "coef_xt": schedule.posterior_mean_coef_xt,
            "log_variance_min": schedule.posterior_log_variance,
            "log_beta": schedule.betas.log(),
            "sqrt_before": before.sqrt(),
            "sqrt_one_minus_before": (1 - before).sqrt(),
            "noisy": (torch.arange(self.steps) > 0).double(),
            "dpm_x": ((1 - before) / (1 - now)).sqrt(),
            "dpm_data": before.sqrt() * torch.expm1(-step),
            "dpm_older": torch.cat([0.5 * step[:-1] / step[1:], step.new_zeros(1)]),
        }
        columns["dpm_older"][0] = 0  # first order, too
        self.rows = torch.stack([columns[field.name] for field in fields(ReverseStep)], 1).float().to(device)


@lru_cache(maxsize=256)
def sampling_tables(steps: int, max_timestep: int | None, device: torch.device) -> SamplingTables:
    """Return the tables of the process respaced to `steps`, on this device; made once a setting."""
    return SamplingTables(respaced_schedule(steps, max_timestep), device)
