"""Bad input on the real command line: one clear line, the right exit code, no traceback, nothing half-written."""

import json
import re

import pytest

from pipeline.cli import described
from pipeline.commands import COMMANDS
from tests.pipeline.tiny import REPOSITORY

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["run", "emoji-33"], {}, "Did you mean 'emoji-32'"),
        (["rnu", "emoji-32"], {}, "Did you mean 'run'"),
        (["sample", "model"], {}, "A path has a '/': ./model"),
        (["sample", "./model"], {}, "not the directory of a model"),
        (["run", "emoji-32", "--tokenizer.kind", "kl17"], {}, "--tokenizer.kind kl17: the kind must be one of"),
        (["run", "emoji-32", "--train.trian-steps", "3"], {}, "--train.train-steps"),
        (["latents", "./tests", "--verfy"], {}, "--verify"),
        (["run", "./nowhere.json"], {}, "nowhere.json: cannot be read"),
        (["run", "imagenet-256-mar-b", "--images.path", "/nowhere"], {}, "/nowhere: no such file or folder"),
        (["tokenize", "/nowhere", "--tokenizer", "pixels"], {}, "no such file or folder"),
        (["tokenize", "./tests", "--tokenizer", "kl16:/nowhere"], {}, "holds no .tar"),
        (["run", "emoji-32", "--compute.out", "/proc/here"], {}, "cannot be written"),
        (["run", "emoji-32", "--compute.tracking-uri", "http://127.0.0.1:9"], {}, "nothing answers"),
        (["run", "emoji-32"], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "nothing answers"),
        (["run", "emoji-32", "--compute.address", "127.0.0.1:9"], {}, "nothing answers"),
        (["run", "emoji-32"], {"RAY_ADDRESS": "127.0.0.1:9"}, "nothing answers"),
        (["run", "emoji-32", "--tune.ar-steps", "4", "17"], {}, "from 1 to the 16 tokens to generate"),
        (["run", "emoji-32", "--train.model.patch-size", "3"], {}, "does not divide the size of the latents, 8"),
        (
            ["run", "emoji-32", "--reference.features.name", "inception-v3-compat"],
            {"TORCH_HOME": "/nowhere"},
            "put it at /nowhere/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth",
        ),
        (["sample", "emoji-32"], {}, "no trained checkpoint"),
        (["latents", "./tests"], {}, "no latent store"),
        (["ui"], {}, "no runs are recorded"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_two(no_cluster, mar_here, tmp_path, words, environment, message):
    takes_out = words[0] in ("run", "tokenize", "sample", "ui") and "--compute.out" not in words
    out = ["--compute.out", str(tmp_path)] if takes_out else []
    done = mar_here(*words, *out, **environment)
    assert done.returncode == 2, done.stderr
    plain = re.sub(r"[│╭╮╰╯─\s]+", " ", done.stderr + done.stdout)
    assert message in plain
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("artifact.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "emoji-33"], "Did you mean 'emoji-32'"),
        (["run", "emoji-32", "--train.train-step", "3"], "--train.train-steps"),
    ],
)
def test_bad_input_ends_the_process_with_exit_code_two(mar, words, message):
    done = mar(*words, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenize.image-size", "33"], "stride 4 does not divide it"),
        (["--compute.generate.gpus", "1"], "and 0 GPUs on 1 nodes, which hold 0 such workers"),
        (["--compute.train.workers", "4", "--compute.train.cpus", "50"], "hold 0 such workers. Ask for fewer"),
    ],
)
def test_impossible_settings_are_refused_before_work(mar, tmp_path, flags, message):
    done = mar(
        "run", "emoji-32", "--images.images-per-class", "20", "--compute.out", str(tmp_path), *flags, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_recipes_and_help_are_listed(mar):
    assert "imagenet-256-mar-b" in mar("recipes").stdout
    usage = mar("--help").stdout
    assert "mar run RECIPE" in usage
    assert len(usage.splitlines()) <= 24
    assert max(map(len, usage.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_well_without_a_target(mar_here, command):
    done = mar_here(command, "--help")
    assert done.returncode == 0
    assert f"usage: mar {command}" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if described(name)[0][:1].isupper()])
def test_command_without_its_target_says_what_it_needs(mar_here, command):
    for words in ([], ["--compute.out", "x"]):
        done = mar_here(command, *words)
        assert done.returncode == 2
        assert f"mar {command} needs {described(command)[0].split()[0]}" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_file_that_says_what_it_does(mar_here, command):
    takes, line, _ = described(command)
    assert f"mar {command} {takes}".rstrip() in mar_here("--help").stdout
    assert len(line.split()) > 2


def test_every_file_of_the_commands_is_listed():
    files = {path.stem.rstrip("_") for path in (REPOSITORY / "pipeline" / "commands").glob("*.py")}
    assert files - {"__init"} == set(COMMANDS)


def test_status_of_nothing_made_lists_every_step_as_missing(mar, tmp_path):
    lines = mar("status", "emoji-32", "--compute.out", str(tmp_path)).stdout.splitlines()
    states = dict(line.split()[:2] for line in lines[2:])
    assert {"pictures", "tokenizer", "latents", "reference", "checkpoint", "evaluation", "sweep"} <= states.keys()
    assert set(states.values()) == {"missing"}


def test_saved_recipe_runs_as_the_named_one(mar, tmp_path):
    from infra.fingerprint import canonical
    from pipeline.recipes import emoji_32

    (tmp_path / "recipe.json").write_text(json.dumps(canonical(emoji_32(), identity=False)))
    named, saved = (
        mar("status", name, "--compute.out", str(tmp_path)).stdout
        for name in ("emoji-32", str(tmp_path / "recipe.json"))
    )
    assert named == saved
