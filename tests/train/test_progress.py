"""Which checkpoint a training goes on from: the newest that is whole, whatever happened to those after it."""

import json

import numpy as np
import pytest
import torch

from infra.errors import InputError
from train.progress import MODEL, Piece, check_same, folder_for, newest_whole, read_weights, step_of, write_progress


def write(folder, value, workers=2, of=None):
    """A progress whose workers have two rows of one tensor each."""
    for rank in range(workers):
        piece = Piece(torch.full((2, 25), float(value)), [2 * rank, 0])
        write_progress(folder, {"model.w": piece}, rank, workers, of)


def weights(folder):
    return read_weights(folder, MODEL)["w"]


@pytest.fixture
def root(tmp_path):
    for step in (4, 8, 12):
        write(tmp_path / f"step_{step:08d}", step)
    return tmp_path


def one(folder, random, ending):
    """The file of one worker."""
    return sorted(folder.glob(f"*.{ending}"))[random.integers(2) % len(list(folder.glob(f"*.{ending}")))]


def truncate(folder, random):
    file = one(folder, random, "safetensors")
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(len(content))])


def flip(folder, random):
    file = one(folder, random, "safetensors")
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)


def lose_part(folder, random):
    one(folder, random, "safetensors").unlink()


def lose_record(folder, random):
    one(folder, random, "json").unlink()


def tear_record(folder, random):
    file = one(folder, random, "json")
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(len(content) - 2)])


def lose_all(folder, random):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damage", [truncate, flip, lose_part, lose_record, tear_record, lose_all])
def test_damaged_checkpoint_is_named_and_the_one_before_it_taken(damage, seed, root):
    damage(root / "step_00000012", np.random.default_rng(seed))
    told = []
    folder = newest_whole(root, told.append)
    assert step_of(folder) == 8
    assert weights(folder).shape == (4, 25)
    assert weights(folder).eq(8).all()
    assert len(told) == 1
    assert "step_00000012" in told[0]


def hit(file, random):
    """Damage a file as disks and kills do: bits, bytes, a torn end, zeros from somewhere on, or nothing left."""
    content, kind = bytearray(file.read_bytes()), random.integers(5)
    at = int(random.integers(len(content)))
    if kind == 0:
        content[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        content[at] = (content[at] + int(random.integers(1, 256))) % 256
    elif kind == 2:
        content = content[:at]
    elif kind == 3:
        content[at:] = bytes(len(content) - at)
    else:
        content = bytearray()
    damages = bytes(content) != file.read_bytes()
    file.write_bytes(content)
    return damages


OF = {"train": {"lr": 0.1, "batch_size": 16, "model": {"trunk": {"width": 32}}}, "latent_scale": 0.25}


@pytest.mark.parametrize("seed", range(120))
def test_of_checkpoints_hit_anywhere_the_newest_whole_one_is_taken_and_none_is_that_of_another_training(seed, tmp_path):
    """Any bytes of any files of any of them: tensors, their header, the records, and what these say of the training."""
    random, hits, told = np.random.default_rng(seed), set(), []
    for step in (4, 8, 12, 16):
        write(tmp_path / f"step_{step:08d}", step, workers=int(random.integers(1, 3)), of=OF)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for file in random.choice(np.array(files), random.integers(1, 5), replace=False):
        if hit(file, random):
            hits.add(step_of(file.parent))
    check_same(tmp_path, OF)
    found = newest_whole(tmp_path, told.append)
    left = [step for step in (16, 12, 8, 4) if step not in hits]
    assert (found and step_of(found)) == (left[0] if left else None)
    assert len(told) == len([step for step in hits if not left or step > left[0]])
    if found:
        assert weights(found).eq(left[0]).all()


def test_records_of_no_checksum_of_their_own_are_taken_and_those_with_more_in_them_are_not(root):
    for more, taken in (({}, 12), ({"chfck": "0"}, 8), ({"check": "0"}, 8)):
        for path in (root / "step_00000012").glob("*.json"):
            record = {
                name: value for name, value in json.loads(path.read_text()).items() if name in ("bytes", "sha256", "of")
            }
            path.write_text(json.dumps(record | more))
        assert step_of(newest_whole(root)) == taken


def test_newest_is_taken_in_silence_where_all_are_whole(root):
    told = []
    assert step_of(newest_whole(root, told.append)) == 12
    assert not told
    assert newest_whole(root / "nothing") is None


def test_step_that_is_made_again_has_a_folder_of_its_own_that_counts_as_newer(root):
    flip(root / "step_00000012", np.random.default_rng(0))
    for count in range(1, 12):
        name = folder_for(root, 12)
        assert name == f"step_00000012-{count}"
        write(root / name, 100 + count)
        assert newest_whole(root).name == name
    assert folder_for(root, 16) == "step_00000016"


def test_progress_of_another_training_is_refused_field_by_field_and_a_damaged_one_is_not_asked(root):
    of = {"train": {"lr": 0.1, "batch_size": 16, "model": {"trunk": {"width": 32}}}}
    write(root / "step_00000016", 16, of=of)
    check_same(root, of)
    other = {"train": {"lr": 0.1, "batch_size": 32, "model": {"trunk": {"width": 64, "depth": 2}}}}
    said = r"step_00000016.*\n  train.batch_size: 16 -> 32\n.*width: 32 -> 64\n.*depth: \(absent\) -> 2\n"
    with pytest.raises(InputError, match=said):
        check_same(root, other)
    for record in (root / "step_00000016").glob("*.json"):
        record.write_text("{")
    check_same(root, other)


def test_progress_of_an_earlier_version_is_named(tmp_path):
    (tmp_path / "step_00000004").mkdir()
    (tmp_path / "step_00000004" / "progress.pt").touch()
    told = []
    assert newest_whole(tmp_path, told.append) is None
    assert "earlier version" in told[0]
