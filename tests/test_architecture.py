"""The rules of the house that can be checked by reading the code."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("infra", "tokenize_jobs", "train", "evaluate", "tune", "pipeline")
SOURCES = [path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_file_is_at_most_300_lines_and_its_functions_at_most_60(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_training_step_is_one_function_of_at_most_30_lines_and_knows_no_ray():
    text = (REPOSITORY / "train" / "step.py").read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert len(functions) == 1
    assert functions[0].end_lineno - functions[0].lineno <= 30
    assert "import ray" not in text


def test_no_file_is_a_dumping_ground():
    assert not {path.stem for path in SOURCES} & {"util", "utils", "misc", "common", "helpers", "base", "core"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_no_package_names_a_thing_as_one_of_its_files_which_importing_the_file_would_replace(path):
    named = {alias.asname or alias.name for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    named |= {node.name for node in ast.parse(path.read_text()).body
              if isinstance(node, ast.FunctionDef | ast.ClassDef)}  # fmt: skip
    assert not named & {file.stem for file in path.parent.iterdir()}
