"""What README and docs tell people to type is typed: commands on the real command line, examples in Python."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from infra.storage import location
from tests.small_model import randomised
from tokenize_jobs.store.shards import commit_shard, publish, to_table
from tokenize_jobs.tokens import GaussianLatents
from train.card import ModelCard
from train.checkpoint import write_model
from train.models.config import tiny

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
MAKES_STEPS = ("run", "tokenize", "train", "evaluate", "tune")
ABSENT = (
    "no such file|no such registered model|no such folder|Could not connect|cannot be read|does not exist|no trained checkpoint|no latent store|no runs are recorded|"
    "not the directory of a model|matches no file"
)
"""What a command says whose words are right, but whose data or weights are not at hand."""


def blocks(kind, document):
    return re.findall(rf"^```{kind}\n(.*?)^```", document.read_text(), re.M | re.S)


def typed():
    """Return (document, words) of every `mar` command in a block of shell."""
    found = []
    for document in DOCUMENTS:
        for line in "\n".join(blocks("sh", document)).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            command = (
                words[words.index("pipeline") + 1 :]
                if "pipeline" in words
                else words[1:]
                if words[:1] == ["mar"]
                else []
            )
            if command:
                found.append((document.name, command))
    return found


def test_commands_are_found_in_the_documents():
    assert len(typed()) > 10
    assert {"README.md", "latents.md", "changing.md"} <= {document for document, _ in typed()}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("document", "words"), typed(), ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_command_is_taken_as_it_is_written(document, words, mar_here, tmp_path, monkeypatch, free_port):
    monkeypatch.chdir(tmp_path)
    unserved = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    done = mar_here(*words, *(["--plan"] if words[0] in MAKES_STEPS and "--plan" not in words else []), **unserved)
    told = done.stdout + done.stderr
    assert done.returncode == 0 or (done.returncode == 2 and done.stderr.startswith("error: ")), told
    if done.returncode:
        assert re.search(ABSENT, done.stderr), done.stderr


def test_make_targets_in_the_documents_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    for document in DOCUMENTS:
        for target in re.findall(r"^make (\w+)|`make (\w+)`", document.read_text(), re.M):
            assert f"\n{''.join(target)}:" in makefile, f"{document.name}: make {''.join(target)}"


def test_links_lead_to_files_that_exist():
    for document in (*DOCUMENTS, *(REPOSITORY / "docs" / "results").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)[#)]", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_files_named_in_the_documents_exist():
    rooms = "infra|tokenize_jobs|train|evaluate|tune|pipeline|benchmarks|tests|docs"
    for document in DOCUMENTS:
        for target in re.findall(rf"`((?:{rooms})/[\w/]*(?:/|\.py|\.md))`", document.read_text()):
            assert (REPOSITORY / target).exists(), f"{document.name}: {target}"


def test_store_is_read_by_the_example(tmp_path, monkeypatch):
    layout, moments = (
        GaussianLatents(4, 3, 3),
        np.random.default_rng(0).standard_normal((2, 5, 8, 3, 3)).astype(np.float16),
    )
    keys = [f"k{i}" for i in range(5)]
    commit_shard(location(tmp_path), "a", to_table(layout, keys, [0] * 5, moments[0], moments[1]), layout, [])
    source = {"format": "webdataset", "shards": 1, "digest": "d" * 64, "bytes": 1}
    publish(
        location(tmp_path),
        ["a"],
        layout,
        {"tokenizer": {"kind": "pixels", "weights": "w"}, "image_size": 3, "classes": ["a"], "source": source},
    )
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", REPOSITORY / "docs" / "latents.md")
    found = {}
    exec(example, found)
    np.testing.assert_array_equal(found["moments"], moments[0, 0])
    assert found["table"]["key"].to_pylist() == keys


def test_images_are_drawn_by_the_example(tmp_path, monkeypatch):
    shape = tiny(32, 2, 4, 32, 2).on(latent_size=4, latent_channels=3, num_classes=208)
    card = ModelCard(
        model=shape, latent_scale=1.0, classes=tuple(map(str, range(208))), tokenizer_kind="pixels", tokenizer_hash="pixels",
        train_steps=1, images_seen=1, ema_decay=0.9,
    )  # fmt: skip
    weights = randomised(shape).state_dict()
    write_model(tmp_path / "model", card, weights, weights)
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks("python", REPOSITORY / "README.md") if "Generator(" in block)
    for written, meant in (('"kl16", "/weights/kl16.ckpt"', '"pixels", ""'), ("Sampling(", "Sampling(ar_steps=4, ")):
        assert written in example
        example = example.replace(written, meant)
    found = {}
    exec(example, found)
    assert found["images"].shape == (2, 4, 4, 3)
    assert found["images"].dtype == np.uint8
