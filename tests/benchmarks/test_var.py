"""The benchmark against VAR's published code, which is no part of the project: what it lacks is named."""

import pytest

from benchmarks.var import main


@pytest.mark.parametrize(
    ("imported", "told"),
    [
        ("", "has no models/var.py; give a checkout of github.com/FoundationVision/VAR"),
        ("import not_there_at_all", "its code imports not_there_at_all, which is not installed"),
    ],
)
def test_folder_without_the_published_code_or_an_import_of_it_is_named(imported, told, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # what the benchmark adds is taken off again
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text(imported)
    for name in ("dist.py", "models/var.py", "models/vqvae.py") if imported else ("dist.py",):
        (tmp_path / name).touch()
    assert main(["--published", str(tmp_path)]) == 1
    assert f"--published {tmp_path}: {told}" in capsys.readouterr().out
