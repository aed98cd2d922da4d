"""`mar sample` of a model directory: its own order and steps, and few images at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.config import DiffusionSteps, Sampling
from evaluate.sampling.generate import Generator
from evaluate.sampling.known import known_from_pictures
from infra.cluster import Compute
from infra.errors import InputError
from infra.storage import write_json
from pipeline.commands.sample import Draw, Edit, Sampled, _subject, draw, main
from pipeline.given import measurable_at
from tests.small_model import TRUNKS, small, written
from tests.train.test_var import SHAPE
from tokenize_jobs.config import PretrainedTokenizer, TokenizerFile

PIXELS = TokenizerFile("pixels", hash="pixels")
SAMPLING = Sampling(ar_steps=4, diffusion_steps=DiffusionSteps(first=3, last=3))


@pytest.mark.parametrize("edited", [False, True])
def test_images_drawn_a_few_at_once_are_those_of_one_batch(edited, tmp_path, monkeypatch):
    generator, sizes, whole = (
        Generator(written(tmp_path / "model", replace(small(), latent_size=8)), PIXELS),
        [],
        Generator.draw,
    )
    edit, known = Edit(), None
    if edited:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        mask = np.zeros((8, 8), np.uint8)
        mask[:4] = 255
        for name, picture in (("image", pixels), ("mask", mask)):
            Image.fromarray(picture).save(tmp_path / f"{name}.png")
        edit = Edit(image=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"))
        one = known_from_pictures(
            tmp_path / "image.png", tmp_path / "mask.png", generator.card.model, 1, generator.encode
        )
        known = replace(one, latents=one.latents.expand(38, -1, -1, -1))
    labels = torch.tensor([1] * 19 + [3] * 19)
    expected = generator.draw(labels, range(38), 5, SAMPLING, known)
    monkeypatch.setattr(Generator, "draw", lambda *args, **named: sizes.append(len(args[2])) or whole(*args, **named))
    options = Draw(classes=(1, 3), per_class=19, seed=5, sampling=SAMPLING, edit=edit, to=str(tmp_path / "drawn"))
    draw(Sampled(str(tmp_path / "model"), PIXELS, SAMPLING), options)
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "drawn").glob("0*.png"))]
    np.testing.assert_array_equal(np.stack(drawn), expected)
    assert sizes == [16, 16, 6]


@pytest.mark.parametrize("config", [*map(small, TRUNKS), SHAPE], ids=[*TRUNKS, "next-scale"])
def test_model_directory_is_drawn_and_measured_in_the_order_and_steps_of_its_trunk(config, tmp_path):
    folder = written(tmp_path / "model", config)
    options = Draw(tokenizer=PretrainedTokenizer(kind="pixels"))
    for sampling in (
        _subject(folder, None, options).sampling, measurable_at(folder, Compute()).evaluate.generate.sampling,
    ):  # fmt: skip
        sampling.check(config)


def test_recipe_without_a_checkpoint_names_another_training_and_the_registered_model(tmp_path):
    words = ["emoji-32", "--compute.out", str(tmp_path)]
    with pytest.raises(
        InputError, match=r"`mar train emoji-32` first.*`mar sample models:/mar-emoji-32@champion`"
    ) as none:
        main(words)
    assert "Another training" not in str(none.value)
    record = tmp_path / "artifacts" / "checkpoint" / "emoji-32" / "0123abcd" / "artifact.json"
    write_json(record, {})
    with pytest.raises(InputError, match=f"Another training of that name is drawn from by `mar sample {record}`"):
        main(words)
