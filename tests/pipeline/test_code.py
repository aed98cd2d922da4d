"""Each step names all project code that its numbers can depend on."""

import ast
from pathlib import Path

import pytest

from infra.code import ROOT, digests
from pipeline.deciding import CODE, DECIDES_NOTHING

ENTRIES = {
    "pictures": ["tokenize_jobs/sources/emoji.py"],
    "tokenizer": ["tokenize_jobs/job/fit_job.py"],
    "latents": ["tokenize_jobs/job/latents_job.py"],
    "checkpoint": ["train/trainer.py"],
    "reference": ["evaluate/reference.py"],
    "evaluation": ["evaluate/evaluate.py", "evaluate/given_images.py"],
    "reconstruction": ["evaluate/reconstruct.py"],
    "sweep": ["tune/sampling_sweep.py", "tune/training_sweep.py"],
}


def imported(path: Path) -> set[Path]:
    """Return the project's files that a file imports, by reading it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            base = ROOT / name.replace(".", "/")
            found |= {file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()}
    return found


def reached(entries: list[str]) -> set[str]:
    todo, seen = [ROOT / entry for entry in entries], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += () if path.name == "config.py" else imported(path)  # values: part of the identity themselves
    return {path.relative_to(ROOT).as_posix() for path in seen}


@pytest.mark.parametrize("step", ENTRIES)
def test_step_names_every_file_that_it_imports_and_that_decides_numbers(step):
    named, before = (
        set(digests(CODE[step])),
        set(digests(CODE["checkpoint"]) if step in ("evaluation", "reconstruction", "sweep") else ()),
    )
    missing = reached(ENTRIES[step]) - named - before - set(digests(DECIDES_NOTHING))
    assert not {name for name in missing if not name.endswith("/config.py")}
    assert not named & set(digests(DECIDES_NOTHING))


def test_all_files_named_are_there_and_the_console_is_not_among_them():
    assert all(digests(names) for names in CODE.values() if names)
    assert "infra/console.py" in digests(DECIDES_NOTHING)
    assert "train/step.py" in digests(CODE["checkpoint"])
