"""The GPU benchmark runs with torch and numpy alone."""

import pytest

WITHOUT = (
    "ray",
    "mlflow",
    "tyro",
    "cattr",
    "diffusers",
    "upath",
    "universal_pathlib",
    "fsspec",
    "pandas",
    "torchvision",
)


def test_gpu_benchmark_needs_only_torch_and_numpy_and_names_what_it_skips(python_without):
    done = python_without(WITHOUT, "-m", "benchmarks.gpu", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [9] * len(table)
    names = [line.split("|")[1].strip() for line in table[2:]]
    told = [name.split(";")[0] for name in names]
    assert told == [
        "small, training compiled, micro-batch 8", "small, training compiled, deterministic, micro-batch 8", "small, training step, batch 8", "small, sampling (2, 5) CFG 3, batch 2",
        "KL-16 encoder, 32 px",
    ]  # fmt: skip
    assert "noise" in names[3]
    assert "skipped: No module named" in table[-1]
    assert max(float(line.split("|")[8]) for line in table[4:6]) < 1e-4, table  # from the transcription, in fp32
    shares = [float(line[2:].split("%")[0]) for line in done.stdout.splitlines() if line.startswith("- ")]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5


def test_gpu_benchmark_without_a_gpu_says_so_and_fails(python_without):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = python_without(WITHOUT, "-m", "benchmarks.gpu")
    assert done.returncode == 1
    assert "no GPU" in done.stdout
