"""The cluster that work runs on."""

import os

import pytest
import ray

from infra.cluster import quiet_environment


@pytest.mark.parametrize("token", [True, False])
def test_environment_of_a_machine_with_a_token_is_in_token_mode(token, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123")
    quiet_environment()
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if token else None)


@pytest.mark.ray
def test_worker_that_was_lent_no_gpu_sees_none(cluster):
    @ray.remote
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(visible.remote()) == ""
