"""What a user can write for a source, and which files it names, on a disk and on another filesystem."""

import threading
import time

import numpy as np
import pytest
from upath import UPath
from webdataset.shardlists import expand_urls

from infra.errors import InputError
from tests.tokenize_jobs.test_splits import class_folders, labels_by_key, picture, tar
from tokenize_jobs.sources import patterns
from tokenize_jobs.sources.listing import ImageFiles, scan, scan_images
from tokenize_jobs.sources.patterns import find_files
from tokenize_jobs.sources.samples import read_shard

NAMES = [f"train-{n:03d}.tar" for n in range(12)] + ["val-000.tar", "notes.txt", "sub/more.tar"]


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path):
    path = UPath(tmp_path) if request.param == "disk" else UPath(f"memory://{tmp_path.name}")
    for name in NAMES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    return path


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("", sorted(NAMES)),
        ("/train-003.tar", ["train-003.tar"]),
        ("/train-{002..004}.tar", [f"train-{n:03d}.tar" for n in (2, 3, 4)]),
        ("/{train,val}-000.tar", ["train-000.tar", "val-000.tar"]),
        ("/train-*.tar", NAMES[:12]),
        ("/train-00[89].tar", ["train-008.tar", "train-009.tar"]),
        ("/val-000.tar::ROOT/train-01{0..1}.tar", ["train-010.tar", "train-011.tar", "val-000.tar"]),
        ("/sub::ROOT/val-*.tar", ["sub/more.tar", "val-000.tar"]),
    ],
)
def test_source_as_written_names_these_files_below_one_folder(root, written, names):
    text = f"{root}{written}".replace("ROOT", str(root))
    folder, infos = find_files(text)
    assert list(infos) == names
    assert [(folder / name).read_bytes() for name in names] == [name.encode() for name in names]
    assert str(folder).rstrip("/") == str(root).rstrip("/")


def braces(random, deep=2):
    """Return a word of letters, numbers, ranges and lists, some in each other."""
    first, width, step = int(random.integers(12)), int(random.integers(1, 4)), random.integers(1, 3)
    numbers = f"{first:0{width}d}..{first + int(random.integers(4)):0{width}d}"
    plain = ["ab-c", f"{{{numbers}}}", f"{{{numbers}..{step}}}", "{e..g}"]
    if deep and random.random() < 0.5:
        return "{" + ",".join(braces(random, deep - 1) for _ in range(random.integers(2, 4))) + "}"
    return "_".join(random.choice(plain, random.integers(1, 4)))


@pytest.mark.parametrize("seed", range(100))
def test_braces_and_lists_expand_as_the_webdataset_library_expands_them(seed):
    random = np.random.default_rng(seed)
    start = ["/data/", "memory://bucket/"][seed % 2]
    text = "::".join(f"{start}{braces(random)}-{braces(random)}.tar" for _ in range(random.integers(1, 4)))
    expected = [str(UPath(url)) for url in expand_urls(text)]
    assert [str(path) for path in patterns._expanded(text)] == expected
    assert len(expected) >= text.count("::") + 1


@pytest.mark.parametrize("seed", range(20))
def test_wildcards_match_what_pythons_own_match(seed, tmp_path):
    random = np.random.default_rng(seed)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    name = list(NAMES[random.integers(len(NAMES))])
    for place in random.choice(len(name), 3, replace=False):
        if name[place] != "/":
            name[place] = ["*", "?", f"[{name[place]}x]", "[!x]"][random.integers(4)]
    pattern = "".join(name).replace("**", "*?")
    folder, infos = find_files(f"{tmp_path}/{pattern}")
    matched = [[of] if of.is_file() else of.rglob("*") for of in tmp_path.glob(pattern)]
    assert {str(folder / name) for name in infos} == {str(file) for files in matched for file in files}


def test_long_listing_of_one_folder_says_that_it_goes_on(tmp_path, monkeypatch, capsys):
    root = UPath(f"memory://{tmp_path.name}")
    (root / "a.png").write_bytes(picture(1))

    def slow(call):
        def later(self, path, **options):
            time.sleep(0.3)
            return call(self, path, **options)

        return later

    for name in ("ls", "glob"):
        monkeypatch.setattr(type(root.fs), name, slow(getattr(type(root.fs), name)))
    monkeypatch.setattr(patterns, "_EVERY_SECONDS", 0.05)
    for text in (str(root), f"{root}/*.png"):
        assert len(find_files(text)[1]) == 1
        assert f"listing /{tmp_path.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("/none", "no such file or folder"),
        ("/train-{011..012}.tar", r"train-012\.tar: no such file or folder"),
        ("/none-*.tar", "matches no file"),
        ("/train-{000..002.tar", "image source"),
    ],
)
def test_source_that_matches_nothing_is_refused(root, written, message):
    with pytest.raises(InputError, match=message):
        scan(f"{root}{written}", 3)


def test_list_over_two_filesystems_is_refused(tmp_path):
    with pytest.raises(InputError, match="several filesystems"):
        find_files(f"{tmp_path}::memory://x")


def test_pattern_of_shards_is_the_source_that_the_folder_of_them_is(tmp_path):
    for number in range(3):
        tar(tmp_path / f"part-{number}.tar", [f"{number}"])
    assert scan(f"{tmp_path}/part-{{0..2}}.tar", 1) == scan(f"{tmp_path}/*.tar", 1) == scan(str(tmp_path), 1)
    one = scan(str(tmp_path / "part-1.tar"), 1)
    assert labels_by_key(one) == {"1": 0}


def test_pattern_over_splits_is_split(tmp_path):
    for name in ("c-train-0", "c-train-1", "c-test-0"):
        tar(tmp_path / f"{name}.tar", [name])
    images = scan_images(ImageFiles(path=f"{tmp_path}/c-{{train-0,train-1,test-0}}.tar", num_classes=1))
    assert [len(images.train.shards), len(images.heldout.shards)] == [2, 1]


def test_pictures_without_labels_in_one_folder_are_one_class(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.PNG").write_bytes(picture(number))
    listing = scan(str(tmp_path))
    assert listing.classes == ("image",)
    assert labels_by_key(listing) == {f"{number}.PNG": 0 for number in range(3)}


def test_flat_folders_named_as_splits_are_splits_of_one_class(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(picture(1))
    images = scan_images(ImageFiles(path=str(tmp_path)))
    assert images.train.classes == images.heldout.classes == ("image",)
    assert images.train.root.endswith("train")


def test_some_class_folders_named_by_a_pattern_keep_their_names(tmp_path):
    class_folders(tmp_path, ["cat", "dog", "emu"])
    assert scan(f"{tmp_path}/{{cat,emu}}").classes == ("cat", "emu")
    assert scan(f"{tmp_path}/?[ao]*").classes == ("cat", "dog")


def test_folders_are_listed_side_by_side_and_give_what_find_gives(tmp_path, monkeypatch):
    root = UPath(tmp_path)
    for name in ("train", "val"):
        for number in range(20):
            (tmp_path / name / f"c{number}" / "deep" / "er").mkdir(parents=True)
            for place in ("x.png", "deep/y.png", "deep/er/z.png"):
                (tmp_path / name / f"c{number}" / place).write_bytes(b"1")
    (tmp_path / "top.txt").write_bytes(b"2")
    (tmp_path / "loop").symlink_to(tmp_path)
    expected = set(root.fs.find(root.path)) - {f"{tmp_path}/loop"}
    arrived, find = threading.Barrier(2, timeout=20), type(root.fs).find

    def waits_for_another(self, path, **options):
        if path.endswith(("train/c0", "val/c0")):
            arrived.wait()  # one after the other would wait for ever
        return find(self, path, **options)

    monkeypatch.setattr(type(root.fs), "find", waits_for_another)
    monkeypatch.setattr(patterns, "_AT_ONCE", 64)
    _, found = find_files(str(root))
    assert [f"{root.path}/{name}" for name in found] == sorted(expected)


ODD = [
    "cat",
    "Dog",
    "été",
    "e\u0301te\u0301",
    "a b",
    "x{1,2}",
    "o{pen",
    "[z]",
    "#h",
    "50%",
    "q?",
    "back\\slash",
    "-a",
    "~",
]


def odd_tree(random, root, elsewhere, depth=0):
    """Make folders of odd names, some empty and some links, with pictures, links to such and what is none; return all."""
    root.mkdir(parents=True, exist_ok=True)
    expected = dict[str, bytes]()
    for place in range(random.integers(4) * (depth > 0)):
        suffix = random.choice([".png", ".PNG", ".JpEg", ".webp", ".txt", ".png.bak"])
        name, content = f"{place} {random.choice(ODD)}{suffix}", picture(random.integers(256)) * random.integers(2)
        hidden = random.random() < 0.1
        path = root / f"{'._' * hidden}{name}"
        if random.random() < 0.2:
            target = elsewhere / f"{random.integers(2**60)}"
            target.write_bytes(content)
            path.symlink_to(target)
        else:
            path.write_bytes(content)
        if suffix.lower() in (".png", ".jpeg", ".webp") and not hidden:
            expected[name] = path.read_bytes()
    for name in random.choice(ODD, random.integers(1, 5), replace=False) if depth < 3 else ():
        made = root / str(name)
        if random.random() < 0.2:
            made = elsewhere / f"{random.integers(2**60)}"
            (root / str(name)).symlink_to(made)
        found = odd_tree(random, made, elsewhere, depth + 1)
        if random.random() < 0.2:
            (made / "loop").symlink_to(root)
        expected |= {f"{name}/{below}": content for below, content in found.items()}
    return expected


@pytest.mark.parametrize("seed", range(30))
def test_folders_of_any_names_and_links_give_every_picture_once_under_its_class(seed, tmp_path):
    random = np.random.default_rng(seed)
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / str(random.choice(ODD))
    expected = odd_tree(random, root, tmp_path / "elsewhere")
    if not expected:
        with pytest.raises(InputError, match="holds no"):
            scan(str(root))
        return
    classes = sorted({name.split("/")[0] for name in expected})
    is_plain = not set(root.name) & set("[?{\\")
    for text in (str(root), f"{root}::{root}/{classes[0]}", *[f"{root}/*"] * is_plain):
        listing = scan(text)
        assert listing.classes == tuple(classes)
        samples = [s for shard in listing.shards for s in read_shard(listing, shard)]
        assert {s.key: s.content for s in samples} == expected
        assert [classes[s.label] for s in samples] == [s.key.split("/")[0] for s in samples]
        assert len(samples) == len(expected)


def test_wildcard_names_links_to_files_as_the_cache_of_a_hub_has_them(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "data").mkdir()
    for number in range(3):
        tar(tmp_path / "blobs" / f"{number}", [f"{number}"])
        (tmp_path / "data" / f"train-{number}.tar").symlink_to(tmp_path / "blobs" / f"{number}")
    assert len(scan(f"{tmp_path}/data/train-*.tar", 1).shards) == 3


def test_remote_images_are_read_at_the_same_time_in_their_order_and_no_more_than_are_asked_for(tmp_path, monkeypatch):
    root, arrived, read = UPath(f"memory://{tmp_path.name}"), threading.Barrier(16, timeout=20), []
    for number in range(64):
        (root / f"{number:02d}.png").write_bytes(picture(number))
    listing, read_bytes = scan(str(root)), type(root).read_bytes

    def waits_for_others(path):
        read.append(path.name)
        arrived.wait()  # one after the other would wait for ever
        return read_bytes(path)

    monkeypatch.setattr(type(root), "read_bytes", waits_for_others)
    found = list(read_shard(listing, listing.shards[0]))
    assert [(s.key, s.content) for s in found] == [(f"{number:02d}.png", picture(number)) for number in range(64)]
    arrived = threading.Barrier(1)
    read.clear()
    assert next(read_shard(listing, listing.shards[0])).key == "00.png"
    assert len(read) <= 2 * 16
