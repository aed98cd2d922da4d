"""What is known of a tokenizer before its weights are read is what its weights are."""

import typing

import pytest

from infra.errors import InputError
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.tokenizers import _GEOMETRIES, _LOADERS, geometry, load
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
