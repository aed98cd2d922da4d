"""Images that any code made: measured as torch-fidelity measures them, whatever the workers; none is passed over."""

import io
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import ray
from PIL import Image
from torch_fidelity import calculate_metrics

from evaluate.config import Evaluate, Reference
from evaluate.extractors import CIFAR_RESNET
from evaluate.features import Extractor
from evaluate.given_images import _labelled, evaluate_images, side_of
from evaluate.networks import Classifier, Features
from evaluate.reference import make_reference
from infra.cluster import Compute, Stage
from infra.errors import InputError
from infra.storage import location
from tests.evaluate.random_images import random_images, random_resnet
from tests.evaluate.test_metrics import THEIRS, Images
from tests.tokenize_jobs.test_sources import write_tar
from tokenize_jobs.sources.listing import scan, scan_samples

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
EACH = 7
"""Images of a class."""


def write_folder(root, seed=0, names=NAMES):
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(random_images([seed, label], EACH)):
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


def compute(workers):
    return Compute(generate=Stage(workers=workers, cpus=1))


def test_folders_are_labelled_by_the_references_classes_by_name_or_number(tmp_path):
    write_folder(tmp_path / "named", names=("c", "a"))
    write_folder(tmp_path / "numbered", names=("2", "0"))
    for name in ("named", "numbered"):
        listing = scan_samples(str(tmp_path / name), NAMES[:3])
        (images, labels, faults), *_ = _labelled(listing, listing.shards[0], 32, 0)
        assert listing.classes == NAMES[:3]
        assert (labels.tolist(), faults) == ([0] * EACH + [2] * EACH, [])
        assert images.shape == (2 * EACH, 32, 32, 3)
    with pytest.raises(InputError, match="'x' is no class"):
        scan_samples(str(write_folder(tmp_path / "strange", names=("a", "x"))), NAMES[:3])


def test_flat_folders_and_tars_without_labels_have_no_classes(tmp_path):
    (tmp_path / "flat").mkdir()
    shutil.copy(next(write_folder(tmp_path / "x", names=("a",)).rglob("*.png")), tmp_path / "flat" / "y.png")
    write_tar(tmp_path / "a.tar", [("0.png", (tmp_path / "flat" / "y.png").read_bytes())])
    for path in ("flat", "a.tar"):
        listing = scan_samples(str(tmp_path / path), NAMES)
        (images, labels, faults), *_ = _labelled(listing, listing.shards[0], 32, 0)
        assert (len(images), labels.tolist(), faults) == (1, [-1], [])


def test_images_that_a_layout_would_leave_out_are_refused(tmp_path):
    root = write_folder(tmp_path / "x", names=("a",))
    shutil.copy(root / "a" / "0.png", root / "grid.png")
    with pytest.raises(InputError, match="mixes layouts"):
        scan_samples(str(root), ())


@pytest.mark.parametrize("seed", range(8))
def test_damaged_and_missized_images_are_named_never_passed_over(tmp_path, seed):
    root, random = write_folder(tmp_path / "x", names=NAMES[:3]), np.random.default_rng(seed)
    files = sorted(root.rglob("*.png"))
    cut, small = random.choice(len(files), 2, replace=False)
    files[cut].write_bytes(files[cut].read_bytes()[: random.integers(0, 200)])
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(files[small])
    listing = scan_samples(str(root), ())
    parts = list(_labelled(listing, listing.shards[0], 32, 0))
    faults = [fault for part in parts for fault in part[2]]
    assert sum(len(part[0]) for part in parts) == len(files) - 2
    assert len(faults) == 2
    for place in (cut, small):
        assert any(str(files[place].relative_to(root)) in fault for fault in faults)


def test_size_is_that_of_the_first_image_and_squares_are_asked_for(tmp_path):
    assert side_of(scan_samples(str(write_folder(tmp_path / "x")), ())) == 32
    (tmp_path / "y").mkdir()
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(tmp_path / "y" / "0.png")
    with pytest.raises(InputError, match="32x16"):
        side_of(scan_samples(str(tmp_path / "y"), ()))


def killed_once(seen):
    """Kill a worker once the features of a group are there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::_Measurer" in " ".join(p.info["cmdline"] or [])]
        if seen() and workers:
            workers[0].kill()
            return
        time.sleep(0.05)
    raise AssertionError("no worker was there to be killed")


@pytest.fixture
def three_cores(no_cluster):
    """A cluster that says it has three, whatever the machine has."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_numbers_are_torch_fidelitys_whatever_the_workers_and_though_one_is_killed(three_cores, tmp_path, monkeypatch):
    """Folders of many shards of three images, on 1, 2 and 3 workers; one of two dies."""
    monkeypatch.setattr("tokenize_jobs.sources.folder._SHARD_IMAGES", 3)
    weights = random_resnet(tmp_path)
    samples, real = write_folder(tmp_path / "samples", 0), write_folder(tmp_path / "real", 1)
    features = Features(name=CIFAR_RESNET, weights=weights)
    config = Evaluate(classifier=Classifier(name=CIFAR_RESNET, weights=weights))
    make_reference(Reference(features=features), scan(str(real)), 32, location(tmp_path / "reference"), compute(1))
    listing, found = scan_samples(str(samples), NAMES), {}
    for case, workers in (("1", 1), ("2", 2), ("3", 3), ("killed", 2)):
        out = location(tmp_path / case)
        out.mkdir()
        if case == "killed":
            killing = ThreadPoolExecutor().submit(killed_once, lambda out=out: any((out / "features").glob("*")))
        found[case] = evaluate_images(config, listing, location(tmp_path / "reference"), None, out, compute(workers))
        assert (out / "report.html").exists()
        assert (out / "grid.png").exists()
    killing.result()
    Extractor(features)  # tells torch-fidelity of the network, in this process too
    theirs = _theirs(listing, scan(str(real)), weights)
    for result in found.values():
        assert result.numbers == pytest.approx(found["1"].numbers, rel=1e-8, abs=1e-6)
        for name, key in THEIRS.items():
            assert result.numbers[name] == pytest.approx(theirs[key], rel=1e-8, abs=1e-6), name
    assert found["1"].rank_deficient == (len(NAMES) * EACH <= 64)
    assert found["1"].sampling is None
    assert set(found["1"].seconds) == {"reading", "features", "numbers", "errors", "page"}


def _theirs(listing, real, weights):
    both = [
        np.concatenate([part[0] for shard in of.shards for part in _labelled(of, shard, 32, 0)])
        for of in (listing, real)
    ]
    layers = {f"feature_layer_{metric}": "64" for metric in ("fid", "kid", "prc")}
    return calculate_metrics(
        input1=Images(both[0]), input2=Images(both[1]), fid=True, kid=True, prc=True, isc=True,
        kid_subset_size=len(NAMES) * EACH, feature_extractor=CIFAR_RESNET, **layers, feature_layer_isc="logits",
        feature_extractor_weights_path=weights, cuda=False, verbose=False, save_cpu_ram=True, batch_size=3, cache=False,
    )  # fmt: skip


@pytest.mark.ray
def test_nothing_is_measured_where_an_image_is_damaged_and_all_is_when_it_is_mended(cluster, tmp_path):
    weights, samples = random_resnet(tmp_path), write_folder(tmp_path / "samples", 0, NAMES[:2])
    features, broken = Features(name=CIFAR_RESNET, weights=weights), samples / "b" / "3.png"
    make_reference(Reference(features=features), scan(str(samples)), 32, location(tmp_path / "reference"), compute(1))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    out = location(tmp_path / "out")
    out.mkdir()
    with pytest.raises(InputError, match=r"1 images cannot be measured.*b/3\.png"):
        evaluate_images(
            Evaluate(), scan_samples(str(samples), ()), location(tmp_path / "reference"), None, out, compute(1)
        )
    broken.write_bytes(whole)
    found = evaluate_images(
        Evaluate(), scan_samples(str(samples), ()), location(tmp_path / "reference"), None, out, compute(1)
    )
    assert found.numbers["fd"] == pytest.approx(0, abs=1e-4)
    assert found.conditions.images == 2 * EACH


@pytest.mark.ray
def test_shard_without_images_adds_none_to_those_of_the_others(cluster, tmp_path):
    weights, images = random_resnet(tmp_path), random_images([0, 0], 12)
    (tmp_path / "samples").mkdir()
    encoded = [io.BytesIO() for _ in images]
    for file, image in zip(encoded, images, strict=True):
        Image.fromarray(image).save(file, "png")
    write_tar(tmp_path / "samples" / "a.tar", [])
    write_tar(tmp_path / "samples" / "b.tar", [(f"{n}.png", of.getvalue()) for n, of in enumerate(encoded)])
    listing = scan_samples(str(tmp_path / "samples"), ())
    features = Features(name=CIFAR_RESNET, weights=weights)
    real = scan(str(write_folder(tmp_path / "real", 1)))
    make_reference(Reference(features=features), real, 32, location(tmp_path / "reference"), compute(1))
    out = location(tmp_path / "out")
    out.mkdir()
    found = evaluate_images(Evaluate(), listing, location(tmp_path / "reference"), None, out, compute(1))
    assert found.conditions.images == 12
