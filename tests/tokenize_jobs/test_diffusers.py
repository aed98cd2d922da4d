"""diffusers' autoencoders that a folder may hold: each encodes and decodes as the library does."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderTiny, ConsistencyDecoderVAE

from tokenize_jobs import tokenizers
from tokenize_jobs.config import PretrainedTokenizer
from tokenize_jobs.tokens import GaussianLatents, PlainLatents


def tiny():
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), latent_channels=5,
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip


def deep_compression():
    return AutoencoderDC(
        latent_channels=8, attention_head_dim=8, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16, 16, 32), decoder_block_out_channels=(8, 16, 16, 32),
        encoder_layers_per_block=(1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((),) * 4, decoder_qkv_multiscales=((),) * 4,
    )  # fmt: skip


def consistency():
    return ConsistencyDecoderVAE(
        encoder_block_out_channels=(32, 32), encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1, decoder_block_out_channels=(32, 32), decoder_layers_per_block=1,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2, decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    )  # fmt: skip


def written(model, folder):
    """Save a model with every weight random; returns it, and the tokenizer of its folder after its geometry."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.eval().save_pretrained(folder)
    known = tokenizers.geometry(PretrainedTokenizer(kind="diffusers", path=str(folder)))
    loaded = tokenizers.load("diffusers", str(folder))
    assert (known.stride, known.tokens(4)) == (loaded.stride, loaded.tokens(4))
    return model, loaded


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


@pytest.mark.parametrize(("make", "stride", "channels"), [(tiny, 4, 5), (deep_compression, 8, 8)])
def test_autoencoder_without_a_posterior(make, stride, channels, tmp_path):
    torch.manual_seed(0)
    model, loaded = written(make(), tmp_path)
    assert (loaded.stride, loaded.tokens(2)) == (stride, PlainLatents(channels, 2, 2))
    with torch.no_grad():
        (expected,) = model.encode(IMAGES, return_dict=False)
        decoded = model.decode(expected).sample.clamp(-1, 1)
    latents = loaded.encode(IMAGES)
    assert latents.shape == (2, channels, 16 // stride, 16 // stride)
    assert torch.equal(latents, expected)
    assert torch.equal(loaded.decode(latents), decoded)


def test_consistency_decoder_whose_noise_is_an_images_own(tmp_path):
    torch.manual_seed(0)
    model, loaded = written(consistency(), tmp_path)
    assert (loaded.stride, loaded.tokens(8)) == (2, GaussianLatents(4, 8, 8))
    with torch.no_grad():
        posterior = model.encode(IMAGES).latent_dist
        decoded = [
            model.decode(of[None], generator=torch.Generator().manual_seed(0)).sample.clamp(-1, 1)
            for of in posterior.mean
        ]
    moments = loaded.encode(IMAGES)
    assert torch.equal(moments, posterior.parameters)
    torch.testing.assert_close(loaded.decode(moments[:, :4]), torch.cat(decoded))
