"""Versions are ranked, promoted and rolled back on their numbers' error bars, never across conditions."""

import json
from dataclasses import replace

import mlflow
import pytest
from safetensors.torch import load_file, save_file
from upath import UPath

from infra.errors import InputError
from infra.tracking import Tracker
from pipeline.commands.registry import _list
from pipeline.promotion import differing, is_better, promote, ranked
from pipeline.registry import _gather, register
from tests.pipeline.registered import CONDITIONS, candidate, registered
from train.card import EMA_WEIGHTS, WEIGHTS


def tags(fd, error=None, **conditions):
    of = {"fd": str(fd), "conditions": json.dumps({**CONDITIONS, **conditions})}
    return of if error is None else {**of, "fd_error": str(error)}


def test_smaller_number_is_better_only_beyond_the_error_of_the_difference():
    assert is_better(tags(40, 1), tags(50, 1))
    assert not is_better(tags(49, 3), tags(50, 3))
    assert not is_better(tags(50, 1), tags(40, 1))
    assert is_better(tags(47, 1), tags(50, 1))
    assert not is_better(tags(47.3, 1), tags(50, 1))  # 1.96 x sqrt(2) is 2.77


def test_without_errors_five_percent_are_asked_for():
    assert not is_better(tags(48), tags(50))
    assert is_better(tags(47), tags(50))


@pytest.mark.parametrize(
    ("field", "other"),
    [("images", 128), ("reference", "2" * 16), ("extractor", "vgg16"), ("precision", "bf16"), ("image_size", 8)],
)
def test_numbers_of_other_conditions_are_not_compared_and_the_field_is_named(field, other):
    assert len(differing(tags(1), tags(2, **{field: other}))) == 1
    with pytest.raises(InputError, match=f"{field} .* and {other}"):
        is_better(tags(1), tags(50, **{field: other}))


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [("fd", "4,5", "tag fd is '4,5'"), ("fd", "nan", "tag fd is 'nan'"), ("fd_error", "", "tag fd_error is ''"),
     ("conditions", "[]", "expected fields by name")],
)  # fmt: skip
def test_tag_that_somebody_spoilt_is_named_and_nothing_is_promoted(tag, value, told, tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", UPath(tmp_path))
    run, client = tracker.open("small", "run"), tracker.client
    client.create_registered_model("small")
    for spoilt in ({}, {tag: value}):
        client.create_model_version(
            "small", f"{tmp_path}/model", run, tags={**tags(50 - 9 * bool(spoilt), 1), **spoilt}
        )
    client.set_registered_model_alias("small", "champion", "1")
    for attempt in (lambda: promote(client, "small", "2"), lambda: _list(client, ["small"])):
        with pytest.raises(InputError, match=told):
            attempt()
    assert str(client.get_registered_model("small").aliases["champion"]) == "1"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Version 1 of 50, 2 a tie, 3 better, 4 measured otherwise."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    numbers = [{"fd": 50.0}, {"fd": 49.5}, {"fd": 40.0}, {"fd": 1.0, "images": 32}]
    results = [registered(folder, uri, number, **of) for number, of in enumerate(numbers)]
    assert [result.alias for result in results] == ["champion", "challenger", "champion", "challenger"]
    return folder, uri


@pytest.mark.e2e
def test_champion_is_promoted_rolled_back_and_promoted_again(store, mar_here):
    folder, uri = store
    client = mlflow.MlflowClient(uri)

    def champion():
        return str(client.get_model_version_by_alias("small", "champion").version)

    def mar_registry(*words):
        return mar_here("registry", *words, "--compute.out", str(folder))

    assert champion() == "3"
    assert [[str(v.version) for v in group] for group in ranked(client.search_model_versions("name = 'small'"))] in (
        [["4"], ["3", "2", "1"]], [["3", "2", "1"], ["4"]],
    )  # fmt: skip
    rolled = mar_registry("rollback", "small")
    assert (rolled.returncode, champion()) == (0, "1"), rolled.stderr
    assert mar_registry("rollback", "small").returncode == 2
    again = register(candidate(folder, 2, fd=40.0), uri, UPath(folder))
    assert (again.version, again.alias, champion()) == (
        3,
        "challenger",
        "1",
    )  # what a person took back stays taken back
    assert mar_registry("list", "smal").returncode == 2
    for version, told in (("2", "not better by more than 2.77"), ("4", "images 32 and 64"), ("9", "no version 9")):
        refused = mar_registry("promote", "small", version)
        assert refused.returncode == 2
        assert told in refused.stderr
        assert champion() == "1"
    client.set_model_version_tag("small", "2", "mar.rolled_back", "yes")
    client.set_model_version_tag("small", "2", "mar.checkpoint", "checkpoint2")
    assert mar_registry("promote", "small", "3").returncode == 0
    assert champion() == "3"
    assert "mar.rolled_back" not in client.get_model_version("small", "2").tags  # of the same checkpoint
    assert register(candidate(folder, 2, fd=40.0), uri, UPath(folder)).alias == "champion"
    listed = mar_registry("list").stdout
    assert "@champion" in listed
    assert "40 ± 1, rank-deficient" in listed
    assert "checkpoint checkpoint2" in listed
    rows = [line.split() for line in listed.splitlines()]
    assert [row[-1] for row in rows if row and row[0] in ("1", "2", "3")] == ["best", "worse", "worse"]


@pytest.mark.e2e
def test_registry_that_cannot_be_reached_is_one_line_and_code_2(mar_here, tmp_path):
    for words in (("list",), ("promote", "small", "1"), ("rollback", "small")):
        away = mar_here("registry", *words, "--compute.tracking-uri", "http://127.0.0.1:9")
        missing = mar_here("registry", *words, "--compute.out", str(tmp_path))
        assert (away.returncode, missing.returncode) == (2, 2)
        assert "nothing answers there" in away.stderr
        assert "no runs are recorded there" in missing.stderr
    assert not list(tmp_path.iterdir())


def test_registered_name_without_versions_is_listed_as_empty_and_stops_no_other(tmp_path, capsys):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", UPath(tmp_path))
    run = tracker.open("small", "run")
    for name in ("another", "empty", "small"):
        tracker.client.create_registered_model(name)
    tags_of = {**tags(50, 1), "metric": "FD"}
    tracker.client.create_model_version("small", f"{tmp_path}/model", run, tags=tags_of)
    _list(tracker.client, [])
    listed = capsys.readouterr().out.split()
    assert listed[: listed.index("small")] == ["another", "no", "versions", "empty", "no", "versions"]
    assert "@" not in listed
    assert run in listed
    _list(tracker.client, ["empty"])
    assert capsys.readouterr().out.split() == ["empty", "no", "versions"]
    with pytest.raises(InputError, match="registered model emty: there is none"):
        _list(tracker.client, ["emty"])


def test_package_has_the_weights_that_were_measured(tmp_path):
    of = candidate(tmp_path, 0)
    folder = of.model
    save_file({name: of + 1 for name, of in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert (folder / WEIGHTS).read_bytes() != (folder / EMA_WEIGHTS).read_bytes()
    kept = {name: (folder / name).read_bytes() for name in (WEIGHTS, EMA_WEIGHTS)}
    for ema, source in ((None, EMA_WEIGHTS), (True, EMA_WEIGHTS), (False, WEIGHTS)):
        package = _gather(replace(of, measured=replace(of.measured, ema=ema)), tmp_path / str(ema))
        assert (package / EMA_WEIGHTS).read_bytes() == kept[source], ema
