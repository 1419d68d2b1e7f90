import pytest
import torch

from tokkata.core.schema import DacModel
from tokkata.tokenize.families.codec_dac import build_original
from tokkata.tokenize.fidelity import si_sdr
from tokkata.tokenize.training.lapped_start import mdct, start_as_lapped_transform


@pytest.fixture
def audio() -> torch.Tensor:
    """[B, 1, N]: decaying partials below half the Nyquist frequency."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(8000) / 16000
    pitches = 80 + 500 * torch.rand(16, 1, 1, generator=generator)
    partials = [torch.sin(2 * torch.pi * pitches * n * time) / n for n in (1, 2, 3)]
    return 0.2 * torch.stack(partials).sum(0) * torch.exp(-3 * time)


def test_mdct_overlapped_and_added_is_the_identity() -> None:
    hop = 12
    basis = mdct(hop, hop)
    signal = torch.randn(10 * hop)
    rebuilt = torch.zeros_like(signal)
    for start in range(0, len(signal) - hop, hop):
        frame = slice(start, start + 2 * hop)
        rebuilt[frame] += basis.T @ (basis @ signal[frame])
    torch.testing.assert_close(rebuilt[hop:-hop], signal[hop:-hop])
    torch.testing.assert_close(basis @ basis.T, torch.eye(hop), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rates", [[5, 4, 4, 4], [2, 4, 5, 8], [4, 4]])
def test_a_fresh_autoencoder_follows_the_waveform(rates: list[int], audio: torch.Tensor) -> None:
    torch.manual_seed(0)
    config = DacModel(kind="dac", encoder_dim=16, encoder_rates=rates, decoder_dim=16 * 2 ** len(rates))
    codec = build_original(config).eval()
    with torch.no_grad():
        random = codec.decoder(codec.encoder(audio))
        start_as_lapped_transform(codec, audio)
        latents = codec.encoder(audio)
        started = codec.decoder(latents)
    n = started.shape[-1]
    assert si_sdr(random[:, 0], audio[:, 0, :n]).median() < 0
    assert si_sdr(started[:, 0], audio[:, 0, :n]).median() > 12
    assert latents.std().item() == pytest.approx(1, rel=1e-3)


def test_a_fresh_quantizer_reproduces_most_of_the_latents(audio: torch.Tensor) -> None:
    torch.manual_seed(0)
    codec = build_original(DacModel(kind="dac", codebook_size=64)).eval()
    with torch.no_grad():
        start_as_lapped_transform(codec, audio)
        latents = codec.encoder(audio)
        quantized = codec.quantizer(latents)[0]
    assert (quantized - latents).square().mean() < 0.3 * latents.square().mean()
    assert all(torch.isfinite(p).all() for p in codec.parameters())


def test_a_codec_too_narrow_for_its_strides_is_refused(audio: torch.Tensor) -> None:
    codec = build_original(DacModel(kind="dac", encoder_dim=2, encoder_rates=[8, 8], decoder_dim=16))
    with pytest.raises(ValueError, match="channels cannot hold the 8 samples of a frame at stride 1"):
        start_as_lapped_transform(codec, audio)
