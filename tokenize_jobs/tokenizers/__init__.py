"""Tokenizers, one file a kind: images <-> tokens.

`load(kind, path)` is the one door; `Tokenizer` the interface that encoding and decoding rely on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infra.errors import InputError
from tokenize_jobs.config import WITHOUT_WEIGHTS, Fit, PretrainedTokenizer, TokenizerFile
from tokenize_jobs.tokens import Grid, TokenKind, code_grid, gaussian_grid, multi_scale_grid, plain_grid, sub_pixel_grid
from tokenize_jobs.tokens.multiscale import PUBLISHED_SCALES

if TYPE_CHECKING:  # torch takes seconds to import, and a cached answer needs none
    from torch import Tensor


class Tokenizer(Protocol):
    """Encodes images (B, 3, H, W) in [-1, 1] to what its kind of token stores of them, and decodes what it draws."""

    stride: int
    tokens: Grid
    """The kind of token, by the side of the grid."""

    def encode(self, images: "Tensor") -> "Tensor":
        """Return the values (B, *kind.shape) to store."""

    def decode(self, latents: "Tensor") -> "Tensor":
        """Return images in [-1, 1] from unscaled latents (B, C, h, w), as the kind draws them."""

    def to(self, device: str) -> "Tokenizer":
        """Move the weights."""


def load(kind: str, path: str) -> Tokenizer:
    """Return the tokenizer of this kind, its weights read from `path`, on the CPU.

    Raises InputError naming the file when it is missing or holds other tensors.
    """
    return _LOADERS[kind](path)


@dataclass(frozen=True)
class Geometry:
    """What a tokenizer makes of images of any size."""

    stride: int
    """Pixels a side for one of the latents."""
    tokens: Grid
    """The kind of token, by the side of the grid."""

    def of_image(self, image_size: int) -> TokenKind:
        """Return what an image of this size becomes. Raises InputError unless the stride divides the size, above 0."""
        if image_size < 1:
            raise InputError(f"--tokenize.image-size {image_size} is below 1")
        if image_size % self.stride:
            below = image_size // self.stride * self.stride
            raise InputError(
                f"--tokenize.image-size {image_size}: the tokenizer's stride {self.stride} does not divide it; the "
                f"nearest sizes are {below} and {below + self.stride}."
            )
        return self.tokens(image_size // self.stride)


def geometry(config: PretrainedTokenizer | Fit) -> Geometry:
    """Return what a tokenizer makes of images without reading its weights. Raises InputError naming the file."""
    if isinstance(config, Fit):
        return Geometry(config.stride, _grid_of_fitted(vars(config)))
    return _GEOMETRIES[config.kind](config.path)


def find(kind: str, path: str) -> TokenizerFile:
    """Return which tokenizer lies at `path`, made absolute, by a digest of its files: workers have other directories.

    Raises InputError when there is nothing.
    """
    if kind in WITHOUT_WEIGHTS:
        return TokenizerFile(kind, hash=kind)
    root = Path(path).expanduser().absolute()
    if not path or not root.exists():
        raise InputError(f"tokenizer {kind}: {path!r} does not exist; give the file or folder of its weights")
    digest = hashlib.sha256(kind.encode())
    files = (
        [root]
        if root.is_file()
        else sorted(p for p in root.rglob("*") if p.suffix in (".safetensors", ".json", ".bin"))
    )
    for file in files:
        if file.name == "artifact.json":
            continue
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return TokenizerFile(kind, str(root), digest.hexdigest()[:16])


def parse(text: str) -> PretrainedTokenizer:
    """Read 'kl16:/path/kl16.ckpt', 'diffusers:/folder', 'taef2:/folder' or 'pixels'."""
    kind, _, path = text.partition(":")
    if kind not in _LOADERS:
        raise InputError(f"--tokenizer {text}: kind must be one of {', '.join(_LOADERS)}, as in 'kl16:/path/kl16.ckpt'")
    return PretrainedTokenizer(kind=kind, path=path)


def _load_kl16(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.kl import KLTokenizer, read_kl16

    return KLTokenizer(read_kl16(path))


def _load_diffusers(path: str) -> Tokenizer:
    import diffusers

    from tokenize_jobs.tokenizers.consistency import ConsistencyTokenizer
    from tokenize_jobs.tokenizers.kl import KLTokenizer, read_diffusers
    from tokenize_jobs.tokenizers.plain import PlainTokenizer
    from tokenize_jobs.tokenizers.vq import VQTokenizer

    kinds: dict[str, Callable[[Any], Tokenizer]] = {
        "AutoencoderKL": KLTokenizer, "VQModel": VQTokenizer, "AutoencoderTiny": PlainTokenizer,
        "AutoencoderDC": PlainTokenizer, "ConsistencyDecoderVAE": ConsistencyTokenizer,
    }  # fmt: skip
    name = _class_in_diffusers(path)
    return kinds[name](read_diffusers(path, getattr(diffusers, name)))


def _load_taef2(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.taef2 import TAEF2

    return TAEF2.read(path)


def _load_fit(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.patch_pca import PatchPCA
    from tokenize_jobs.tokenizers.small_kl import SmallKL
    from tokenize_jobs.tokenizers.small_multiscale import SmallMultiScale
    from tokenize_jobs.tokenizers.small_vq import SmallVQ

    kinds = {"kl": SmallKL, "vq": SmallVQ, "multi-scale": SmallMultiScale, "pca": PatchPCA}
    return kinds[_form_of_fitted(_fitted_shape(path))].read(path)


def _load_vq16(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.vq import VQTokenizer, read_vq16

    return VQTokenizer(read_vq16(path))


def _load_var16(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.var import read_var16

    return read_var16(path)


def _load_vq16_latents(path: str) -> Tokenizer:
    from tokenize_jobs.tokenizers.vq import VQLatents, read_vq16

    return VQLatents(read_vq16(path))


def _load_pixels(path: str) -> Tokenizer:  # noqa: ARG001  pixels have no weights
    from tokenize_jobs.tokenizers.pixels import Pixels

    return Pixels()


_IN_DIFFUSERS: dict[str, tuple[str, Callable[[int], Grid], str]] = {
    "AutoencoderKL": ("latent_channels", gaussian_grid, "block_out_channels"),
    "VQModel": ("num_vq_embeddings", code_grid, "block_out_channels"),
    "AutoencoderTiny": ("latent_channels", plain_grid, "encoder_block_out_channels"),
    "AutoencoderDC": ("latent_channels", plain_grid, "encoder_block_out_channels"),
    "ConsistencyDecoderVAE": ("latent_channels", gaussian_grid, "encoder_block_out_channels"),
}
"""What of the config of each of diffusers' autoencoders tells the tokens, and its levels, each of half the size."""


def _geometry_of_diffusers(path: str) -> Geometry:
    file, name = Path(path).expanduser() / "config.json", _class_in_diffusers(path)
    size, grid, levels = _IN_DIFFUSERS[name]
    try:
        found = json.loads(file.read_text())
        return Geometry(2 ** (len(found[levels]) - 1), grid(int(found[size])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"tokenizer {file}: not the config of a diffusers {name} ({error!r})") from None


def _class_in_diffusers(path: str) -> str:
    """Return which of diffusers' autoencoders a folder holds, by its own config: AutoencoderKL where that is silent."""
    file = Path(path).expanduser() / "config.json"
    try:
        named = json.loads(file.read_text()).get("_class_name", "AutoencoderKL")
    except (OSError, ValueError, AttributeError):
        return "AutoencoderKL"  # a hub's name, or damage that reading tells
    if named not in _IN_DIFFUSERS:
        raise InputError(f"tokenizer {file}: holds a diffusers {named}; {', '.join(_IN_DIFFUSERS)} can be taken")
    return named


def _geometry_of_fitted(path: str) -> Geometry:
    shape = _fitted_shape(path)
    return Geometry(shape["stride"], _grid_of_fitted(shape))


def _form_of_fitted(shape: Mapping[str, Any]) -> str:
    """Return which of the fitted kinds has this shape."""
    marks = {"scales": "multi-scale", "codebook_size": "vq", "components": "pca"}
    return next((form for mark, form in marks.items() if mark in shape), "kl")


def _grid_of_fitted(shape: Mapping[str, Any]) -> Grid:
    form = _form_of_fitted(shape)
    if form == "multi-scale":
        return multi_scale_grid(shape["codebook_size"], shape["channels"], [shape["scales"]], shape["phis"])
    if form == "vq":
        return code_grid(shape["codebook_size"])
    return plain_grid(shape["components"]) if form == "pca" else gaussian_grid(shape["channels"])


_NUMBERS_OF_FITTED = {
    "kl": ("stride", "channels"), "pca": ("stride", "components"), "vq": ("stride", "channels", "codebook_size"),
    "multi-scale": ("stride", "channels", "codebook_size", "phis"),
}  # fmt: skip


def _fitted_shape(path: str) -> dict[str, Any]:
    file = Path(path).expanduser() / "tokenizer.json"
    try:
        found = json.loads(file.read_text())
        shape = {name: int(found[name]) for name in _NUMBERS_OF_FITTED[_form_of_fitted(found)]}
        if min(shape.values()) < 1:
            raise ValueError(f"sizes {shape}, of which one is below 1")
        return shape | ({"scales": tuple(map(int, found["scales"]))} if "scales" in found else {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"tokenizer {file}: not the shape of a fitted tokenizer ({error!r})") from None


def _load_sub_pixels(path: str) -> Tokenizer:  # noqa: ARG001
    from tokenize_jobs.tokenizers.sub_pixels import SubPixelValues

    return SubPixelValues()


_GEOMETRIES: dict[str, Callable[[str], Geometry]] = {
    "kl16": lambda _: Geometry(16, gaussian_grid(16)),
    "diffusers": _geometry_of_diffusers,
    "taef2": lambda _: Geometry(8, plain_grid(32)),
    "vq16": lambda _: Geometry(16, code_grid(16384)),
    "vq16-latents": lambda _: Geometry(16, plain_grid(8)),
    "var16": lambda _: Geometry(16, multi_scale_grid(4096, 32, PUBLISHED_SCALES, 4)),
    "fitted": _geometry_of_fitted,
    "pixels": lambda _: Geometry(1, plain_grid(3)),
    "sub-pixels": lambda _: Geometry(1, sub_pixel_grid),
}
_LOADERS: dict[str, Callable[[str], Tokenizer]] = {
    "kl16": _load_kl16,
    "diffusers": _load_diffusers,
    "taef2": _load_taef2,
    "pixels": _load_pixels,
    "sub-pixels": _load_sub_pixels,
    "vq16": _load_vq16,
    "vq16-latents": _load_vq16_latents,
    "var16": _load_var16,
    "fit": _load_fit,
    "fit-pca": _load_fit,
    "fit-vq": _load_fit,
    "fit-multiscale": _load_fit,
    "fitted": _load_fit,
}
