"""A linear judge, fitted on features of real pictures, tells drawn ones of their classes from others."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.recognised import Linear, main
from tests.evaluate.random_images import random_resnet

SHADES = {"dark": 40, "light": 210}


def pictures(folder, names, seed):
    """Folders of classes, each of its shade with noise; `names` says which shade each class shows."""
    draws = np.random.default_rng(seed)
    for name, shade in names.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(SHADES[shade] + draws.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("shown", "share"), [({"dark": "dark", "light": "light"}, 1.0), ({"dark": "light", "light": "light"}, 0.5)]
)
def test_share_of_drawn_pictures_that_show_their_class_is_told_in_all_and_by_class(tmp_path, capsys, shown, share):
    real = pictures(tmp_path / "real", {name: name for name in SHADES}, 0)
    drawn = pictures(tmp_path / "drawn", shown, 1)
    weights = random_resnet(tmp_path)
    main([drawn, "--images", real, "--size", "32", "--features", "cifar-resnet-56", "--weights", weights])
    told = capsys.readouterr().out
    assert f"drawn: {share:.3f}" in told
    assert f"{'dark':20} {2 * share - 1:.2f} of 12" in told


def test_rare_class_counts_as_much_as_a_common_one():
    draws = np.random.default_rng(0)
    labels = np.array([0] * 400 + [1] * 8)
    features = draws.normal(size=(len(labels), 5)).astype(np.float32) + 3 * labels[:, None]
    told = Linear.fitted(features, labels, 3)(features)
    assert (told[labels == 1] == 1).mean() > 0.8
