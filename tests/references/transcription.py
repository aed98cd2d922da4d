"""MAR and its Diffusion Loss transcribed formula by formula, with nothing saved: a reference for tests and benchmarks.

Li et al. 2024, Nichol & Dhariwal 2021. Every token goes through the encoder's input and the head, masked or not;
each block of the head projects its own modulation; the whole decoder runs in every autoregressive step. Tensors
have the published names, so that both sides compute with the same numbers. It shares no code with `train/models/`
but the shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.config import Model


class Plain(nn.Module):
    """A module tree that only holds tensors under their published names."""

    def __init__(self, state: dict[str, Tensor], config: Model) -> None:
        super().__init__()
        self.config = config
        self.names = list(state)
        self.tensors = nn.ParameterList(nn.Parameter(tensor.clone()) for tensor in state.values())

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return dict(zip(self.names, self.tensors, strict=True))


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return x W^T + b."""
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return the layer norm with its affine part."""
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def block(w: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-norm transformer block on (B, N, D)."""
    batch, rows, width = x.shape
    qkv = linear(w, f"{name}.attn.qkv", norm(w, f"{name}.norm1", x)).reshape(batch, rows, 3, heads, width // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, rows, width)
    x = x + linear(w, f"{name}.attn.proj", attended)
    hidden = F.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x)))
    return x + linear(w, f"{name}.mlp.fc2", hidden)


def conditions(w: dict[str, Tensor], config: Model, tokens: Tensor, class_vectors: Tensor, mask: Tensor) -> Tensor:
    """Return z (B, L, D) of all tokens; mask (B, L) is True where a token is hidden, equally often in each row."""
    batch, buffer = len(tokens), config.trunk.buffer_size
    x = linear(w, "z_proj", tokens)
    x = torch.cat([class_vectors.unsqueeze(1).expand(-1, buffer, -1), x], 1)
    keep = torch.cat([torch.zeros(batch, buffer, dtype=torch.bool, device=mask.device), mask], 1).logical_not()
    x = norm(w, "z_proj_ln", x + w["encoder_pos_embed_learned"])
    x = x[keep].reshape(batch, -1, x.shape[-1])
    for index in range(config.trunk.encoder_depth):
        x = block(w, f"encoder_blocks.{index}", x, config.trunk.encoder_heads)
    x = linear(w, "decoder_embed", norm(w, "encoder_norm", x))
    canvas = w["mask_token"].expand(batch, keep.shape[1], -1).clone().to(x.dtype)
    canvas[keep] = x.reshape(-1, x.shape[-1])
    x = canvas + w["decoder_pos_embed_learned"]
    for index in range(config.trunk.decoder_depth):
        x = block(w, f"decoder_blocks.{index}", x, config.trunk.decoder_heads)
    return norm(w, "decoder_norm", x)[:, buffer:] + w["diffusion_pos_embed_learned"]


def head(w: dict[str, Tensor], config: Model, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Return the head's output (N, 2C) for noisy tokens x (N, C), timesteps t (N,), conditions z (N, D)."""
    net = "diffloss.net"
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=t.device).float() / 128)
    angles = t.float()[:, None] * frequencies
    time = torch.cat([angles.cos(), angles.sin()], -1)
    time = linear(w, f"{net}.time_embed.mlp.2", F.silu(linear(w, f"{net}.time_embed.mlp.0", time)))
    y = F.silu(time + linear(w, f"{net}.cond_embed", z))
    h = linear(w, f"{net}.input_proj", x)
    for index in range(config.head.depth):
        name = f"{net}.res_blocks.{index}"
        shift, scale, gate = linear(w, f"{name}.adaLN_modulation.1", y).chunk(3, -1)
        u = norm(w, f"{name}.in_ln", h) * (1 + scale) + shift
        h = h + gate * linear(w, f"{name}.mlp.2", F.silu(linear(w, f"{name}.mlp.0", u)))
    shift, scale = linear(w, f"{net}.final_layer.adaLN_modulation.1", y).chunk(2, -1)
    h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return linear(w, f"{net}.final_layer.linear", h).float()


class Process:
    """The diffusion process on float64 tables, of which each use gathers rows."""

    def __init__(self, steps: int = 1000) -> None:
        def curve(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - curve((i + 1) / 1000) / curve(i / 1000), 0.999) for i in range(1000)]
        kept = torch.linspace(0, 999, steps, dtype=torch.float64).round().long() if steps < 1000 else torch.arange(1000)
        self.timesteps = kept
        self.alpha_bar = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)[kept]
        self.previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.betas = 1 - self.alpha_bar / self.previous
        variance = self.betas * (1 - self.previous) / (1 - self.alpha_bar)
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()

    def take(self, table: Tensor, t: Tensor) -> Tensor:
        """Return the table's rows (N, 1), float32, where t lives."""
        return table.to(t.device)[t].float()[:, None]

    def x0(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)."""
        recip, recipm1 = (1 / self.alpha_bar).sqrt(), (1 / self.alpha_bar - 1).sqrt()
        return self.take(recip, t) * x - self.take(recipm1, t) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the mean of q(x_{t-1} | x_t, x_0)."""
        of_x0 = self.betas * self.previous.sqrt() / (1 - self.alpha_bar)
        of_xt = (1 - self.previous) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        return self.take(of_x0, t) * x0 + self.take(of_xt, t) * x

    def model_log_variance(self, fraction: Tensor, t: Tensor) -> Tensor:
        """Return the learned log variance between beta~ and beta."""
        share = (fraction + 1) / 2
        return share * self.take(self.betas.log(), t) + (1 - share) * self.take(self.log_variance, t)


def diffusion_loss(
    w: dict[str, Tensor], config: Model, target: Tensor, z: Tensor, mask: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Return the loss over all rows of M draws (M, B, L), of which only the masked ones (B, L) count."""
    draws, channels = len(t), target.shape[-1]
    x0, z = target.reshape(-1, channels).repeat(draws, 1), z.reshape(-1, z.shape[-1]).repeat(draws, 1)
    weight, t, noise = mask.reshape(-1).repeat(draws).float(), t.reshape(-1), noise.reshape(-1, channels)
    process = Process()
    alpha_bar = process.take(process.alpha_bar, t)
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    predicted, fraction = head(w, config, x, t, z).chunk(2, -1)
    mean = process.posterior_mean(process.x0(x, t, predicted.detach()), x, t)
    log_variance, true_log_variance = process.model_log_variance(fraction, t), process.take(process.log_variance, t)
    gap = process.posterior_mean(x0, x, t) - mean
    kl = 0.5 * (
        log_variance - true_log_variance - 1
        + (true_log_variance - log_variance).exp() + gap.square() * (-log_variance).exp()
    )  # fmt: skip
    vb = torch.where(t == 0, -_likelihood(x0, mean, 0.5 * log_variance).mean(-1), kl.mean(-1)) / math.log(2)
    rows = (noise - predicted).square().mean(-1) + vb
    return (rows * weight).sum() / weight.sum()


def _likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    def cdf(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    upper = cdf((x0 - mean + 1 / 255) / log_scale.exp())
    lower = cdf((x0 - mean - 1 / 255) / log_scale.exp())
    inside = torch.where(x0 > 0.999, 1 - lower, upper - lower)
    return torch.where(x0 < -0.999, upper, inside).clamp(min=1e-12).log()


@torch.no_grad()
def sample(
    w: dict[str, Tensor], config: Model, labels: Tensor, order: Tensor, counts: list[int],
    noises: list[Tensor], cfg_scale: float,
) -> Tensor:  # fmt: skip
    """Return tokens (B, L, C): counts[k] tokens of `order` (B, L) in step k, with noises[k] (T, B * count, C).

    Linear guidance, temperature 1, ancestral steps.
    """
    batch, length = order.shape
    tokens = torch.zeros(batch, length, config.token_channels, device=order.device)
    mask = torch.ones(batch, length, dtype=torch.bool, device=order.device)
    guided, done = cfg_scale != 1, 0
    vectors = w["class_emb.weight"][labels]
    if guided:
        vectors = torch.cat([vectors, w["fake_latent"].expand(batch, -1)])
    for count, noise in zip(counts, noises, strict=True):
        twice = 2 if guided else 1
        z = conditions(w, config, tokens.repeat(twice, 1, 1), vectors, mask.repeat(twice, 1))
        chosen = torch.zeros_like(mask).scatter(1, order[:, done : done + count], value=True)
        done += count
        scale = 1 + (cfg_scale - 1) * (length - max(length - done, 1)) / length
        z = z[chosen.repeat(twice, 1)]
        x = noise[0].repeat(twice, 1)
        process = Process(len(noise))
        for used, index in enumerate(reversed(range(len(noise))), start=1):
            output = head(w, config, x, torch.full((len(x),), int(process.timesteps[index]), device=x.device), z)
            x = _reverse_step(process, x, index, output, scale, noise[used] if index else None)
        tokens[chosen] = x[: batch * count]
        mask = mask & ~chosen
    return tokens


def _reverse_step(
    process: Process, x: Tensor, index: int, output: Tensor, scale: float, fresh: Tensor | None
) -> Tensor:
    """Take one ancestral step; when the rows are conditional and null ones, both go on with the guided noise."""
    t = torch.full((len(x),), index, device=x.device)
    predicted, fraction = output.chunk(2, -1)
    if scale != 1:
        conditional, null = predicted.chunk(2)
        guided = null + scale * (conditional - null)
        predicted = torch.cat([guided, guided])
    mean = process.posterior_mean(process.x0(x, t, predicted), x, t)
    if fresh is None:
        return mean
    stepped = mean + (0.5 * process.model_log_variance(fraction, t)).exp() * fresh.repeat(len(x) // len(fresh), 1)
    return torch.cat([stepped[: len(fresh)]] * (len(x) // len(fresh)))
