"""What `mar source` tells of pictures, before anything runs."""

import numpy as np
import pytest
from PIL import Image

from infra.errors import InputError
from pipeline.commands.source import main
from tests.tokenize_jobs.test_sources import encoded, write_tar


def picture(side):
    return encoded(Image.fromarray(np.full((side, side, 3), 90, np.uint8)))


def told(capsys, tmp_path, path, *words):
    main([str(path), "--grid", str(tmp_path / "grid.png"), "--image-size", "32", *words])
    return capsys.readouterr().out


def test_class_folders_are_counted_and_their_faults_named(capsys, tmp_path):
    for name, sides in {"cat": (16, 16, 64), "dog": (64,)}.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for index, side in enumerate(sides):
            (tmp_path / "in" / name / f"{index}.png").write_bytes(picture(side))
    (tmp_path / "in" / "dog" / "bad.png").write_bytes(b"no picture")
    text = told(capsys, tmp_path, tmp_path / "in")
    assert "folder, 2 classes" in text
    assert "5 pictures" in text
    assert [line.split() for line in text.splitlines() if "cat" in line or "dog" in line][-2:] == [
        ["0", "cat", "3"], ["1", "dog", "2"],
    ]  # fmt: skip
    assert "smaller than 32: 50.0% of 4 opened" in text
    assert "1 of 5 opened" in text
    assert "1 x cannot be decoded: not an image" in text
    assert Image.open(tmp_path / "grid.png").size == (4 * 32, 32)


def test_the_sample_is_seeded_and_no_larger_than_asked_for(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(30):
        (tmp_path / "in" / f"{index}.png").write_bytes(picture(8 + index))
    texts = [told(capsys, tmp_path, tmp_path / "in", "--sample", "5", "--seed", seed) for seed in "001"]
    assert texts[0] == texts[1] != texts[2]
    assert "of 5 opened" in texts[0]


def test_a_tar_is_told_by_what_was_opened(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "a.tar", [("x.png", picture(32)), ("x.cls", b"1"), ("y.png", picture(32))])
    text = told(capsys, tmp_path, tmp_path / "in", "--num-classes", "2")
    assert "webdataset, 2 classes" in text
    assert "1 x no label" in text


def test_a_source_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no"):
        main([str(tmp_path)])


def test_picture_grid_takes_the_place_of_no_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.png").write_bytes(b"mine")
    for name, side in (("a", 16), ("b", 24)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture(side))
    for path, size in (("a", "32"), ("b", "32"), ("a", "16"), ("a", "32")):
        main([f"./{path}", "--image-size", size])
    grids = [line.removeprefix("picture grid: ") for line in capsys.readouterr().out.splitlines() if "grid" in line]
    assert len(set(grids)) == 3
    assert grids[0] == grids[3]
    assert {str(path) for path in tmp_path.glob("*.png")} == {*grids, str(tmp_path / "source.png")}
    assert (tmp_path / "source.png").read_bytes() == b"mine"
