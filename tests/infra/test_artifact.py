"""Artifacts and fingerprints: what a result depends on, and nothing of where it ran."""

import json
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest

from infra.artifact import Step
from infra.errors import InputError, nearest
from infra.fingerprint import added, canonical, differences, fingerprint, where
from infra.from_json import from_json
from infra.result import Result
from infra.seeding import stream
from infra.storage import location, require_writable
from pipeline.recipe import Recipe
from pipeline.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3
    rate: float = 0.1
    folder: str = where(default="/here")


@dataclass(frozen=True, kw_only=True)
class Made(Result):
    n: int = 1


def step(root, config, make=lambda out: Made(), **more):
    return Step(
        root=location(root),
        name="thing",
        label="test",
        config=config,
        inputs={"from": "abc"},
        make=make,
        result=Made,
        **more,
    )


def test_build_writes_the_record_last_and_find_returns_it(tmp_path):
    def make(out):
        (out / "data").write_text("made")
        assert step(tmp_path, Config()).find() is None
        return Made(n=7)

    artifact = step(tmp_path, Config(), make).build()
    assert artifact.result == Made(n=7)
    found = step(tmp_path, Config()).find()
    assert found is not None
    assert (found.record, found.result) == (artifact.record, artifact.result)


def test_build_interrupted_leaves_no_artifact(tmp_path):
    def killed(out):
        (out / "data").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(tmp_path, Config(), killed).build()
    assert step(tmp_path, Config()).find() is None


def test_fingerprint_ignores_where_and_sees_what():
    assert fingerprint(Config()) == fingerprint(Config(folder="/there"))
    assert fingerprint(Config()) != fingerprint(Config(steps=4))


@dataclass(frozen=True, kw_only=True)
class Grown(Config):
    momentum: float = added(default=0.9)
    more: Config = added(default_factory=Config)


def test_added_field_at_its_default_leaves_the_fingerprint_and_any_other_value_changes_it():
    assert fingerprint(Grown()) == fingerprint(Config())
    assert fingerprint(Grown(more=Config(folder="/there"))) != fingerprint(Config())  # compared whole, not by identity
    assert len({fingerprint(c) for c in (Grown(), Grown(momentum=0.5), Grown(more=Config(steps=9)))}) == 3
    assert from_json(json.dumps(canonical(Grown())), Grown, "x") == Grown()


def test_record_of_another_identity_is_not_believed_for_its_fingerprint_nor_overwritten(tmp_path):
    artifact = step(tmp_path, Config()).build()
    record = artifact.path / "artifact.json"
    record.write_text(json.dumps({**artifact.record, "config": {"steps": 4, "rate": 0.1}}))
    assert step(tmp_path, Config()).find() is None
    with pytest.raises(InputError, match="not the record of what belongs there"):
        step(tmp_path, Config()).build()


def test_record_damaged_anywhere_is_never_taken_for_another_result(tmp_path):
    artifact = step(tmp_path, Config()).build()
    record = artifact.path / "artifact.json"
    whole, draws = record.read_bytes(), stream("damage", 0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draws.integers(len(whole))] = draws.integers(256)
        record.write_bytes(bytes(damaged[: draws.integers(1, len(whole) + 1)]))
        found = step(tmp_path, Config()).find()
        assert found is None or {key: found.record[key] for key in ("config", "inputs")} == {
            key: artifact.record[key] for key in ("config", "inputs")
        }


@pytest.mark.parametrize("key", ["step", "version", "config", "inputs", "fingerprint", "finished"])
def test_record_whose_key_is_damaged_is_none(key, tmp_path):
    artifact = step(tmp_path, Config()).build()
    record = {"?" if name == key else name: value for name, value in artifact.record.items()}
    (artifact.path / "artifact.json").write_text(json.dumps(record))
    assert step(tmp_path, Config()).find() is None
    assert step(tmp_path, Config(steps=4)).explain_stale() == []


def code_step(root, file, **more):
    return step(root / "out", Config(), code=(str(file),), **more)


def test_code_changed_since_is_named_and_made_anew_only_when_asked(tmp_path):
    file = tmp_path / "step.py"
    file.write_text("def f(x):\n    return x + 1\n")
    first = code_step(tmp_path, file).build()
    file.write_text('"""Adds."""\n\n\ndef f(x):  # one\n    return (x + 1)\n')
    assert code_step(tmp_path, file).changed_code(first) == []
    file.write_text("def f(x):\n    return x + 2\n")
    cached = code_step(tmp_path, file).find()
    assert cached is not None
    assert cached.path == first.path
    assert [Path(name).name for name in code_step(tmp_path, file).changed_code(cached)] == ["step.py"]
    again = code_step(tmp_path, file, again=True)
    assert again.find() is None
    second = again.build()
    assert second.path != first.path
    newest = code_step(tmp_path, file)
    assert (newest.path, newest.fingerprint) == (second.path, second.fingerprint)
    assert newest.changed_code(second) == []
    assert code_step(tmp_path, file, again=True).find() is not None  # the same code again: cached


def test_fingerprint_value_without_stable_form_is_refused():
    with pytest.raises(TypeError, match="no stable form"):
        fingerprint({"f": lambda: 1})


def test_number_that_is_none_or_without_end_is_refused_by_its_field():
    with pytest.raises(InputError, match=r"^sampling\.cfg-scale is nan: give a number"):
        fingerprint({"sampling": {"cfg_scale": math.nan}})
    with pytest.raises(InputError, match=r"^tune\.temperature is \[1\.0, inf\]"):
        fingerprint({"tune": {"temperature": (1.0, math.inf)}})


def test_stale_artifact_is_explained_field_by_field(tmp_path):
    step(tmp_path, Config()).build()
    assert step(tmp_path, Config(rate=0.2)).explain_stale() == ["config.rate: 0.1 -> 0.2"]


def test_differences_name_the_leaves():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}}) == ["a.b: 1 -> 3", "c: 2 -> (absent)"]


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe_written_as_json_loads_back_equal(name):
    recipe = RECIPES[name]()
    assert from_json(json.dumps(canonical(recipe, identity=False)), Recipe, "x") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x", "trian": {}}', "trian"),
        ('{"name": "x", "train": {"lr": "fast"}}', "lr"),
        ('{"name": "x", "images": {"kind": "video"}}', "must be one of"),
        ("not json", "Expecting value"),
        ('["x"]', "recipe.json: expected fields by name, got "),
        ("3", "recipe.json: expected fields by name, got '3'"),
    ],
)
def test_recipe_with_a_fault_is_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        from_json(text, Recipe, "recipe.json")


def leaves(config, path=()):
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield (*path, field.name), value, bool(field.metadata.get("where"))


def changed(config, path, value):
    if len(path) == 1:
        return replace(config, **{path[0]: value})
    return replace(config, **{path[0]: changed(getattr(config, path[0]), path[1:], value)})


@pytest.mark.parametrize("name", ["emoji-32", "imagenet-256-mar-b"])
def test_every_field_of_a_recipe_changes_the_fingerprint_unless_it_says_where(name):
    recipe = RECIPES[name]()
    for path, value, is_where in leaves(recipe):
        other = (not value) if isinstance(value, bool) else "other" if isinstance(value, str) or value is None else (
            (*value, 9) if isinstance(value, tuple) else value + 1
        )  # fmt: skip
        same = fingerprint(changed(recipe, path, other)) == fingerprint(recipe)
        assert same == is_where, path


def test_stream_depends_on_its_key_alone():
    assert stream("a", 1, 2).random() == stream("a", 1, 2).random()
    assert (
        len(
            {
                stream("a", 1, 2).random(),
                stream("a", 2, 1).random(),
                stream("b", 1, 2).random(),
                stream("a", 12).random(),
            }
        )
        == 4
    )


def test_nearest_suggests_a_close_word_only():
    assert "emoji-32" in nearest("emoji32", RECIPES)
    assert nearest("zzz", RECIPES) == ""


def test_root_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        require_writable(location(tmp_path / "file" / "below"))
