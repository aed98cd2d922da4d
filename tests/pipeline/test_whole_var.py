"""A family other than the demo's through every step: next-scale prediction, from pictures to images of the registry."""

import json
import math

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = ("pictures", "tokenizer", "latents", "reference", "checkpoint", "sweep", "evaluation", "registration")
TINY_VAR = """
    --images.classes face flag
    --tokenizer.train-steps 20 --tokenizer.width 16 --tokenizer.codebook-size 32
    --train.model.trunk.width 32 --train.model.trunk.depth 2 --train.model.trunk.heads 2
    --train.train-steps 12 --train.batch-size 16 --train.checkpoint-every 4 --train.log-every 2
    --evaluate.generate.images 24 --reference.images 40
    --tune.temperature 1.0 --tune.cfg-scale 2.0 --tune.top-k 0 8 --tune.images 16
""".split()


def test_next_scale_prediction_goes_through_every_step_once(mar_on_head, mar_here, tmp_path):
    out = tmp_path / "out"
    words = ["emoji-32-var", *TINY_VAR, "--compute.out", str(out)]
    done = mar_on_head("run", *words)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    folders = {step: next((out / "artifacts" / step).rglob("artifact.json")).parent for step in STEPS}
    results = {step: json.loads((of / "artifact.json").read_text())["result"] for step, of in folders.items()}

    store, scales = json.loads((folders["latents"] / "manifest.json").read_text()), [1, 2, 3, 4, 6, 8]
    layout = {"kind": "multi-scale codes", "codebook_size": 32, "channels": 8, "scales": scales, "phis": 4}
    assert store["layout"] == layout
    assert len(store["scale_usage"]) == len(store["scale_perplexity"]) == len(scales)
    told = mar_here("latents", str(folders["latents"]), "--verify")
    assert "shards are as the manifest says" in told.stdout, told.stderr
    codebooks = [
        load_file(next(folders[step].rglob(name)))[f"{of}scales.codebook.vectors"]
        for step, name, of in (
            ("tokenizer", "tokenizer.safetensors", ""), ("checkpoint", "model.safetensors", "z_proj."),
            ("checkpoint", "ema.safetensors", "z_proj."),
        )
    ]  # fmt: skip
    assert all(of.equal(codebooks[0]) for of in codebooks)

    numbers = results["evaluation"]["numbers"]
    assert numbers["fd"] > 0
    assert numbers["bits_a_code"] == pytest.approx(math.log2(32), rel=0.1)  # hardly trained
    assert sorted(trial["sampling"]["top_k"] for trial in results["sweep"]["trials"]) == [0, 8]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = mar_here("run", *words)
    assert again.stdout.count("cached (") == len(STEPS), again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before

    options = ["--classes", "1", "0", "--per-class", "2", "--compute.out", str(out)]
    models = {
        "registered": "models:/mar-emoji-32-var@champion",
        "trained": str(folders["checkpoint"] / "artifact.json"),
    }
    for name, model in models.items():
        drawn = mar_here("sample", model, *options, "--to", str(tmp_path / name))
        assert drawn.returncode == 0, drawn.stderr
        images = sorted(path.name for path in (tmp_path / name).iterdir())
        assert images == [*(f"{i:06d}-class{c}.png" for i, c in enumerate([1, 1, 0, 0])), "grid.png"]
