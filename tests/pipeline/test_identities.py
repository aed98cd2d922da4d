"""Identities of what the named recipes make: what was made stays made when the code grows.

A new field is declared with `added()`, so that it leaves these as they are. Whoever changes one on purpose knows that
everybody's artifacts of that step are made anew, and writes the new digits here.
"""

from dataclasses import fields

import pytest

from infra.fingerprint import fingerprint
from pipeline.recipes import RECIPES

IDENTITIES = {
    "emoji-32": {
        "images": "46435de0",
        "tokenizer": "c55e8ab6",
        "tokenize": "6d9e45bc",
        "train": "82b5bfba",
        "reference": "8637a90c",
        "evaluate": "a6532cb2",
        "tune": "603664eb",
        "reconstruction": "27bf0cf0",
    },
    "cifar10-32": {
        "images": "0d7ec7a1",
        "tokenizer": "fff6cc7b",
        "tokenize": "6d9e45bc",
        "train": "9b2c57c8",
        "reference": "16dadc32",
        "evaluate": "1c63fc2d",
        "tune": "1ec93135",
        "reconstruction": "27bf0cf0",
    },
    "table1-raster-ce": {
        "images": "46435de0",
        "tokenizer": "0edeec8b",
        "tokenize": "6d9e45bc",
        "train": "06d8ee09",
        "reference": "8637a90c",
        "evaluate": "5cb66d2d",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "table1-raster-diff": {
        "images": "46435de0",
        "tokenizer": "c55e8ab6",
        "tokenize": "6d9e45bc",
        "train": "f8413c1e",
        "reference": "8637a90c",
        "evaluate": "fed99468",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "table1-random-ce": {
        "images": "46435de0",
        "tokenizer": "0edeec8b",
        "tokenize": "6d9e45bc",
        "train": "82ac59fa",
        "reference": "8637a90c",
        "evaluate": "c96429b2",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "table1-random-diff": {
        "images": "46435de0",
        "tokenizer": "c55e8ab6",
        "tokenize": "6d9e45bc",
        "train": "35308783",
        "reference": "8637a90c",
        "evaluate": "6c036f68",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "table1-mar-ce": {
        "images": "46435de0",
        "tokenizer": "0edeec8b",
        "tokenize": "6d9e45bc",
        "train": "f4644ef1",
        "reference": "8637a90c",
        "evaluate": "012b8747",
        "tune": "7f3e7990",
        "reconstruction": "27bf0cf0",
    },
    "table1-mar-diff": {
        "images": "46435de0",
        "tokenizer": "c55e8ab6",
        "tokenize": "6d9e45bc",
        "train": "517bf09d",
        "reference": "8637a90c",
        "evaluate": "93174379",
        "tune": "7f3e7990",
        "reconstruction": "27bf0cf0",
    },
    "emoji-16-pixelcnn": {
        "images": "46435de0",
        "tokenizer": "f6888075",
        "tokenize": "ef2debdb",
        "train": "6495cf70",
        "reference": "8637a90c",
        "evaluate": "f0999c2d",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "emoji-16-rnn": {
        "images": "46435de0",
        "tokenizer": "f6888075",
        "tokenize": "ef2debdb",
        "train": "e97b2b43",
        "reference": "8637a90c",
        "evaluate": "f0999c2d",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "emoji-32-vq-pixelcnn": {
        "images": "46435de0",
        "tokenizer": "0edeec8b",
        "tokenize": "6d9e45bc",
        "train": "5f3dd300",
        "reference": "8637a90c",
        "evaluate": "05045060",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "emoji-32-vq-rnn": {
        "images": "46435de0",
        "tokenizer": "0edeec8b",
        "tokenize": "6d9e45bc",
        "train": "887a73c9",
        "reference": "8637a90c",
        "evaluate": "05045060",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-mar-b": {
        "images": "ca3c58cc",
        "tokenizer": "370cf3e7",
        "tokenize": "ebf5e519",
        "train": "0d8254bb",
        "reference": "882a8fa3",
        "evaluate": "1c89ac22",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-mar-l": {
        "images": "ca3c58cc",
        "tokenizer": "370cf3e7",
        "tokenize": "ebf5e519",
        "train": "d5d67f5c",
        "reference": "882a8fa3",
        "evaluate": "b7a08b17",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-mar-h": {
        "images": "ca3c58cc",
        "tokenizer": "370cf3e7",
        "tokenize": "ebf5e519",
        "train": "a074e62b",
        "reference": "882a8fa3",
        "evaluate": "5bcb83ab",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "emoji-32-var": {
        "images": "46435de0",
        "tokenizer": "8a8ef9ab",
        "tokenize": "6d9e45bc",
        "train": "bed8146d",
        "reference": "8637a90c",
        "evaluate": "b7cf65aa",
        "tune": "6336d818",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-var-d16": {
        "images": "ca3c58cc",
        "tokenizer": "211d0d16",
        "tokenize": "ebf5e519",
        "train": "33f09b81",
        "reference": "882a8fa3",
        "evaluate": "19fe4226",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-var-d20": {
        "images": "ca3c58cc",
        "tokenizer": "211d0d16",
        "tokenize": "ebf5e519",
        "train": "d20e8b1c",
        "reference": "882a8fa3",
        "evaluate": "19fe4226",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-var-d24": {
        "images": "ca3c58cc",
        "tokenizer": "211d0d16",
        "tokenize": "ebf5e519",
        "train": "fbd2c6dc",
        "reference": "882a8fa3",
        "evaluate": "19fe4226",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-256-var-d30": {
        "images": "ca3c58cc",
        "tokenizer": "211d0d16",
        "tokenize": "ebf5e519",
        "train": "b088973d",
        "reference": "882a8fa3",
        "evaluate": "19fe4226",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
    "imagenet-512-var-d36": {
        "images": "ca3c58cc",
        "tokenizer": "211d0d16",
        "tokenize": "510b6552",
        "train": "629c3d4f",
        "reference": "882a8fa3",
        "evaluate": "19fe4226",
        "tune": "2ff9cdff",
        "reconstruction": "27bf0cf0",
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_identities_of_a_named_recipe_are_what_they_were(name):
    recipe = RECIPES[name]()
    parts = {
        part.name: fingerprint(getattr(recipe, part.name))
        for part in fields(recipe)
        if part.name not in ("name", "latents", "checkpoint", "samples")
    }
    assert parts == IDENTITIES[name]
