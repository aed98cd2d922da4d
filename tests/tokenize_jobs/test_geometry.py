"""What is known of a tokenizer before its weights are read is what its weights are."""

import contextlib
import random
import shutil
import typing

import pytest

from infra.errors import InputError
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.tokenizers import _GEOMETRIES, _LOADERS, geometry, load
from tokenize_jobs.tokenizers.patch_pca import PatchPCA, PCAShape
from tokenize_jobs.tokenizers.small import Shape
from tokenize_jobs.tokenizers.small_kl import SmallKL
from tokenize_jobs.tokens import GaussianLatents

KINDS = set(typing.get_args(typing.get_type_hints(PretrainedTokenizer)["kind"]))


def test_every_kind_that_can_be_chosen_has_a_geometry_and_a_loader():
    assert set(_GEOMETRIES) == KINDS
    assert set(_LOADERS) - {"fit", "fit-pca", "fit-vq", "fit-multiscale"} == KINDS


def test_geometry_of_a_fitted_tokenizer_is_that_of_its_folder(tmp_path):
    SmallKL(Shape(stride=4, channels=6, width=8, depth=1)).write(tmp_path)
    known, loaded = geometry(PretrainedTokenizer(kind="fitted", path=str(tmp_path))), load("fitted", str(tmp_path))
    assert (known.stride, known.tokens(2)) == (loaded.stride, loaded.tokens(2)) == (4, GaussianLatents(6, 2, 2))


def test_geometry_of_a_folder_without_a_fitted_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: not the shape of a fitted tokenizer"):
        geometry(PretrainedTokenizer(kind="fitted", path=str(tmp_path)))


@pytest.mark.parametrize("changed", [b'"stride": 0', b'"stride": -4'])
def test_sizes_below_one_in_a_folder_are_refused(changed, tmp_path):
    PatchPCA(PCAShape(stride=4, components=7, whitening=0.6)).write(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"stride": 4', changed))
    with pytest.raises(InputError, match=r"tokenizer\.json: .* below 1"):
        geometry(PretrainedTokenizer(kind="fitted", path=str(tmp_path))).of_image(8)


@pytest.mark.parametrize("seed", range(100))
def test_fitted_tokenizer_damaged_anywhere_is_read_or_told_in_a_line(seed, tmp_path):
    draws, whole, folder = random.Random(seed), tmp_path / "whole", tmp_path / "damaged"
    PatchPCA(PCAShape(stride=4, components=7, whitening=0.6)).write(whole)
    shutil.copytree(whole, folder)
    file = folder / draws.choice(["tokenizer.json", "tokenizer.safetensors"])
    content = bytearray(file.read_bytes())
    at = draws.randrange(min(len(content), 600))
    damage = draws.choice(["flip", "cut", "insert"])
    if damage == "flip":
        content[at] ^= 1 << draws.randrange(8)
    elif damage == "cut":
        del content[at:]
    else:
        content[at:at] = draws.randbytes(draws.randint(1, 8))
    file.write_bytes(content)
    for read in (
        lambda: geometry(PretrainedTokenizer(kind="fitted", path=str(folder))).of_image(8),
        lambda: load("fitted", str(folder)),
    ):
        with contextlib.suppress(InputError):  # anything else is a traceback
            read()
