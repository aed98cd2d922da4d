"""How likely a model finds real images, by the chain rule over its tokens; only of heads that have a density.

Of tokens, not of pictures: bits of other tokenizers are bits of something else. Neither guidance nor filters count.
"""

import math
from itertools import accumulate, pairwise

import numpy as np
import ray
import torch
from torch import Tensor
from upath import UPath

from evaluate.config import Sampling
from evaluate.results import Likelihood
from evaluate.sampling.orders import generation_order, reveal_counts
from evaluate.subject import Subject
from infra.cluster import Compute, connected
from infra.console import stage
from infra.seeding import stream
from infra.storage import location
from tokenize_jobs.config import Tokenize
from tokenize_jobs.job.heldout_job import tokenize_heldout
from tokenize_jobs.sources.listing import Images
from tokenize_jobs.store.reader import LatentStore
from train.card import ModelCard, read_card
from train.checkpoint import read_model
from train.heldout_loss import IMAGES
from train.models.autoregressor import Autoregressor
from train.models.config import Model
from train.models.patchify import patchify
from train.models.transformer import take_rows

_TOKENS_AT_ONCE = 4096  # of 16384 codes their logits take 0.3 GB


def likelihood(
    subject: Subject, images: Images, sampling: Sampling, out: UPath, compute: Compute, *, ema: bool
) -> Likelihood:
    """Return how likely up to `IMAGES` held-out images are, or images of the reference where none are held out.

    Nothing where their classes are not the model's, or none can be used. Their tokens are left in `out`. Does not
    depend on the number of workers.
    """
    card = read_card(location(subject.model))
    listing, they = (images.train, "reference") if images.heldout is None else (images.heldout, "held-out")
    if tuple(listing.classes) != card.classes:
        stage("evaluation", f"no likelihood: the {they} images have other classes than the model")
        return Likelihood()
    with connected(compute) as cluster:
        workers = cluster.generate
        cropped = Tokenize(image_size=subject.image_size)
        store = tokenize_heldout(cropped, subject.weights, listing, IMAGES, out / "likelihood", compute)
        if store is None:
            stage("evaluation", f"no likelihood: none of the {they} images can be used")
            return Likelihood()
        job = ray.remote(_nats).options(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=2)
        nats = ray.get(job.remote(subject.model, str(store), sampling, workers.cpus, ema=ema))
    return told(card, nats, f"{len(nats)} {they} images, {_steps_told(card.model, sampling)}")


def told(card: ModelCard, nats: np.ndarray, of: str) -> Likelihood:
    """Return the names of nats a token (N,) of images, with standard errors over these."""
    mean, error = float(nats.mean()), float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else math.nan
    factors = card.model.tokens.likelihoods(card.model.token_channels)
    numbers, errors = ({name: round(nat * factor, 6) for name, factor in factors.items()} for nat in (mean, error))
    return Likelihood(numbers, {} if math.isnan(error) else errors, of)


def _steps_told(model: Model, sampling: Sampling) -> str:
    if model.trunk.teacher_forced:
        return "token by token"
    return f"drawn in {sampling.ar_steps} steps" + (", in random order" if sampling.order == "confidence" else "")


def _nats(model: str, store: str, sampling: Sampling, cores: int, *, ema: bool) -> np.ndarray:
    """Return the negative log-likelihood of each image of a store, in nats a token (N,)."""
    torch.set_num_threads(cores)
    device, folder, opened = "cuda" if torch.cuda.is_available() else "cpu", location(model), LatentStore(store)
    network, scale = read_model(folder, ema=ema).to(device), np.float32(read_card(folder).latent_scale)
    config, found = network.config, []
    rows = np.array_split(np.arange(len(opened)), -(-len(opened) * config.num_tokens // _TOKENS_AT_ONCE))
    for indices in (of for of in rows if len(of)):
        draws = [stream("likelihood", int(index)) for index in indices]
        latents = opened.kind.draw(opened.stored(indices, np.zeros_like(indices)), draws) * scale
        tokens = patchify(torch.from_numpy(latents), config.patch_size).to(device)
        random = torch.from_numpy(np.stack([of.permutation(config.num_tokens) for of in draws]))
        labels = torch.from_numpy(opened.labels[indices]).to(device)
        found.append(nats_a_token(network, tokens, labels, random, sampling).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def nats_a_token(
    model: Autoregressor, tokens: Tensor, labels: Tensor, random_order: Tensor, sampling: Sampling
) -> Tensor:
    """Return -log p / L (B,) of tokens (B, L, C) of these labels (B,), as the sampler draws them.

    A teacher-forced trunk tells all conditions in one pass. Of others each step's tokens are independent given those
    of the steps before, as they are when drawn; `random_order` (B, L) is one draw of the order, which bounds the
    likelihood of all orders together from below. An order by confidence depends on what is drawn: it is random here.
    """
    config, vectors = model.config, model.class_vectors(labels, len(tokens))
    order = generation_order(sampling.order, random_order).to(tokens.device)
    counts = [config.num_tokens] if config.trunk.teacher_forced else _counts(config, sampling)
    rank, total = order.argsort(1), torch.zeros(len(tokens), device=tokens.device)
    for start, stop in pairwise(accumulate(counts, initial=0)):
        condition = model.training_conditions(tokens, vectors, order, start)
        positions = order[:, start:].sort(1).values
        density = model.head.log_density(take_rows(tokens, positions).flatten(0, 1), condition.flatten(0, 1))
        is_drawn = rank.gather(1, positions) < stop
        total -= (density.view_as(is_drawn) * is_drawn).sum(1)
    return total / config.num_tokens


def _counts(config: Model, sampling: Sampling) -> list[int]:
    return reveal_counts(sampling.order, config.num_tokens, sampling.ar_steps)
