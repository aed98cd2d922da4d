"""Recipes of published models on ImageNet, at the published sizes."""

from collections.abc import Callable
from typing import Literal

from evaluate.config import Evaluate, Generate, Sampling
from pipeline.recipe import Recipe
from tokenize_jobs.config import PretrainedTokenizer, Tokenize
from train.config import Train
from train.models.config import Architecture, mar_base, mar_huge, mar_large
from train.models.heads import CategoricalHead
from train.models.trunks import NextScaleTrunk


def _imagenet_256(name: str, model: Architecture, micro_batch: int, cfg_scale: float) -> Recipe:
    """ImageNet at 256 px as published: KL-16 latents, 400 epochs, 256 AR steps x 100 diffusion steps, FID-50K.

    What differs from the published code: bf16 in place of fp16 with a scaled loss, and norms, the head's output and the
    loss in fp32; one share of masked tokens a step for the whole batch, where each of its GPUs drew its own; only
    masked tokens go through the head, which the loss leaves as it is; a step that is not finite is skipped, where
    training ended; latents are scaled by their measured deviation instead of by 0.2325. The published FIDs are of 800
    epochs: give --train.train-steps 500000 for those.
    """
    sampling = Sampling(ar_steps=256, cfg_scale=cfg_scale, precision="bf16")
    train = Train(model=model, micro_batch=micro_batch)
    return Recipe(name=name, train=train, evaluate=Evaluate(generate=Generate(sampling=sampling)))


def imagenet_256_mar_b() -> Recipe:
    """MAR-B, 208 M parameters; published FID-50K 2.31 at CFG 2.9, of 800 epochs where this trains 400.

    1 to 32 GPUs take 64 images at once: 24 GiB each as counted (3.9 of weights and moments), 10 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-b", mar_base(), 64, 2.9)


def imagenet_256_mar_l() -> Recipe:
    """MAR-L, 479 M parameters; published FID-50K 1.78 at CFG 3.0, of 800 epochs where this trains 400.

    1 to 32 GPUs take 64 images at once: 43 GiB each as counted (8.9 of weights and moments), 18 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-l", mar_large(), 64, 3.0)


def imagenet_256_mar_h() -> Recipe:
    """MAR-H, 943 M parameters; published FID-50K 1.55 at CFG 3.2, of 800 epochs where this trains 400.

    1 to 64 GPUs take 32 images at once: 46 GiB each as counted (17.6 of weights and moments), 25 with activations
    computed again.
    """
    return _imagenet_256("imagenet-256-mar-h", mar_huge(), 32, 3.2)


def _next_scale(depth: int, gate_init: float, adaln: Literal["block", "shared"] = "block") -> NextScaleTrunk:
    return NextScaleTrunk(
        width=64 * depth, depth=depth, heads=depth, drop_path=0.1 * depth / 24, gate_init=gate_init, adaln=adaln
    )


def _imagenet_var(
    trunk: NextScaleTrunk, image_size: int = 256, *, epochs: int, base_lr: float, last_lr: float, batch: int = 768
) -> Recipe:
    """VAR on ImageNet as published: codes at ten scales, ten passes an image, FID-50K.

    What differs from the published code: codes are stored once, of centre crops and of their mirror images, where each
    step encoded random crops; bf16 in place of fp16 with a scaled loss; weight decay is constant and spares the head,
    which begins at zero. Sampling takes the raw weights, since none were averaged.
    """
    steps = epochs * (1_281_167 // batch)
    train = Train(
        model=Architecture(trunk=trunk, head=CategoricalHead()), train_steps=steps, batch_size=batch, micro_batch=32,
        lr=base_lr * batch / 256, lr_schedule="linear", last_lr=last_lr, warmup_steps=steps // 50, weight_decay=0.05,
        grad_clip=2.0,
    )  # fmt: skip
    sampling = Sampling(
        ar_steps=10, order="raster", cfg_scale=2.5, cfg_schedule="steps", top_k=900, top_p=0.96, precision="bf16"
    )
    return Recipe(
        name=f"imagenet-{image_size}-var-d{trunk.depth}", tokenizer=PretrainedTokenizer(kind="var16"),
        tokenize=Tokenize(image_size=image_size), train=train,
        evaluate=Evaluate(
            generate=Generate(sampling=sampling, use_ema=False, batch_size=64 if image_size == 256 else 16)
        ),
    )  # fmt: skip


def imagenet_256_var_d16() -> Recipe:
    """VAR-d16, 310 M parameters; published FID-50K 3.30 at guidance 1.5 (here CFG 2.5), of 200 epochs.

    The tokenizer is VAR's file: `--tokenizer.path vae_ch160v4096z32.pth`. 1 to 24 GPUs take 32 images at once: 26 GiB
    each as counted (5.8 of weights and moments), 8 with activations computed again.
    """
    return _imagenet_var(_next_scale(16, 1e-3), epochs=200, base_lr=1e-4, last_lr=0.1)


def imagenet_256_var_d20() -> Recipe:
    """VAR-d20, 601 M parameters; published FID-50K 2.57 at guidance 1.5 (here CFG 2.5), of 250 epochs.

    1 to 24 GPUs take 32 images at once: 42 GiB each as counted (11.2 of weights and moments), 15 with activations
    computed again.
    """
    return _imagenet_var(_next_scale(20, 1e-3), epochs=250, base_lr=1e-4, last_lr=0.1)


def imagenet_256_var_d24() -> Recipe:
    """VAR-d24, 1,033 M parameters; published FID-50K 2.09 at guidance 1.5 (here CFG 2.5), of 350 epochs.

    1 to 24 GPUs take 32 images at once: 64 GiB each as counted (19.2 of weights and moments), 25 with activations
    computed again.
    """
    return _imagenet_var(_next_scale(24, 1e-4), epochs=350, base_lr=8e-5, last_lr=0.01)


def imagenet_256_var_d30() -> Recipe:
    """VAR-d30, 2,010 M parameters; published FID-50K 1.92 at guidance 1.5 (here CFG 2.5), of 350 epochs.

    Its weight decay rose from 0.05 to 0.08; here it stays. 1 to 32 GPUs take 32 images at once: 108 GiB each as counted
    (37.4 of weights and moments), 47 with activations computed again.
    """
    return _imagenet_var(_next_scale(30, 1e-5), epochs=350, base_lr=8e-5, last_lr=0.01, batch=1024)


def imagenet_512_var_d36() -> Recipe:
    """VAR-d36 at 512 px, 2,354 M parameters, blocks that share a projection of the class; published FID-50K 2.63.

    Its weight decay rose from 0.05 to 0.08; here it stays. 1 to 24 GPUs take 32 images at once, with activations
    computed again: 73 GiB each as counted (43.8 of weights and moments).
    """
    return _imagenet_var(_next_scale(36, 5e-6, adaln="shared"), 512, epochs=350, base_lr=8e-5, last_lr=0.01)


PUBLISHED: dict[str, Callable[[], Recipe]] = {
    "imagenet-256-mar-b": imagenet_256_mar_b,
    "imagenet-256-mar-l": imagenet_256_mar_l,
    "imagenet-256-mar-h": imagenet_256_mar_h,
    "imagenet-256-var-d16": imagenet_256_var_d16,
    "imagenet-256-var-d20": imagenet_256_var_d20,
    "imagenet-256-var-d24": imagenet_256_var_d24,
    "imagenet-256-var-d30": imagenet_256_var_d30,
    "imagenet-512-var-d36": imagenet_512_var_d36,
}
