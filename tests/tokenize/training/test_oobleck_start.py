import pytest
import torch

from tokkata.core.schema import VaeModel
from tokkata.tokenize.fidelity import si_sdr
from tokkata.tokenize.training.oobleck_start import start_as_transform
from tokkata.tokenize.training.oobleck_vae import OobleckVae


def partials(num_channels: int) -> torch.Tensor:
    """[B, C, N]: decaying partials in the lowest quarter of the spectrum, louder on one side."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(3200) / 16000
    pitches = 80 + 500 * torch.rand(6, num_channels, 1, generator=generator)
    sines = [torch.sin(2 * torch.pi * pitches * n * time) / n for n in (1, 2, 3)]
    gains = torch.tensor([0.2, 0.1])[:num_channels, None]
    return gains * torch.stack(sines).sum(0) * torch.exp(-3 * time)


def vae(**settings) -> OobleckVae:
    torch.manual_seed(0)
    return OobleckVae(VaeModel(kind="vae", **{"latent_dim": 32, "decoder_dim": 32, **settings})).eval()


@pytest.mark.parametrize(
    ("rates", "multiples", "channels"),
    [([8, 8, 5], [1, 2, 4], 1), ([2, 4, 5, 8], [1, 1, 2, 4], 1), ([4, 4, 5], [1, 2, 4], 2)],
)
@torch.no_grad()
def test_a_fresh_vae_follows_the_waveform(rates, multiples, channels):
    fresh = vae(encoder_rates=rates, channel_multiples=multiples, channels=channels, latent_dim=32)
    audio = partials(channels)
    random = fresh(audio).audio
    start_as_transform(fresh, audio)
    out = fresh(audio)
    assert out.audio.shape == audio.shape
    for side in range(channels):
        assert si_sdr(random[:, side], audio[:, side]).median() < 0
        assert si_sdr(out.audio[:, side], audio[:, side]).median() > 10
    assert out.mean.std().item() == pytest.approx(1, rel=0.1)  # as the prior
    torch.testing.assert_close(out.scale, torch.full_like(out.scale, 0.1), rtol=0.0, atol=0.05)


@torch.no_grad()
def test_what_is_decoded_is_the_mean_or_what_the_noise_makes_of_the_posterior():
    fresh, audio = vae(), partials(1)[:2]
    start_as_transform(fresh, audio)
    mean = fresh(audio)
    noise = torch.randn(mean.mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fresh(audio, torch.zeros_like(noise)).audio, mean.audio)
    heard = fresh(audio, noise)
    assert torch.equal(heard.mean, mean.mean)
    assert not torch.equal(heard.audio, mean.audio)
    decoded = fresh.oobleck.decoder(mean.mean + mean.scale * noise)
    assert torch.equal(heard.audio[..., : decoded.shape[-1]], decoded)


def test_a_network_too_narrow_for_its_strides_is_refused():
    with pytest.raises(ValueError, match="2 channels cannot hold the 8 samples of a frame at stride 1"):
        start_as_transform(
            vae(latent_dim=4, decoder_dim=2, encoder_rates=[8, 8], channel_multiples=[1, 1]), partials(1)
        )
