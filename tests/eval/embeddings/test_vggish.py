"""VGGish: its front end against transformers' and librosa's functions, how patches lie, its weights."""

import functools
import math

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tokkata.core.errors import UserError
from tokkata.core.released_file import ReleasedFile, sha256_of
from tokkata.eval.embedding import embed_clips, load_embedding
from tokkata.eval.embeddings import vggish as module
from tokkata.eval.embeddings.vggish import URL, VggishFrontEnd, VggishNetwork, published_weights

CPU = torch.device("cpu")


def noise(*shape, seed=0, scale=0.2):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sine(hertz, seconds, amplitude=1.0):
    time = torch.arange(round(16000 * seconds), dtype=torch.float64) / 16000
    return (amplitude * torch.sin(2 * math.pi * hertz * time)).float()[None, None]


@functools.cache
def front_end(google=False):
    return VggishFrontEnd(google, CPU)


def transformers_log_mel(samples):
    """The same features from the library's own functions: `[F, 64]` of samples `[N]`."""
    filters = mel_filter_bank(
        257, 64, 125.0, 7500.0, 16000, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    mels = spectrogram(
        samples.double().numpy(),
        window_function(400, "hann", periodic=True),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=1.0,
        center=False,
        mel_filters=filters,
        mel_floor=0.0,
    )
    return np.log(mels.T + 0.01)


# --- the front end


def test_three_seconds_of_a_sine():
    patches = front_end().patches(sine(1000, 3))
    assert patches.shape == (1, 3, 96, 64)
    # The band whose centre is nearest to 1 kHz on a scale that is straight in mel.
    edges = np.linspace(1127 * np.log1p(125 / 700), 1127 * np.log1p(7500 / 700), 66)
    nearest = np.abs(700 * np.expm1(edges[1:-1] / 1127) - 1000).argmin()
    assert (patches.mean((0, 1, 2)).argmax()) == nearest
    # A sine over whole periods of the window: a quarter of 400 samples at the peak, 100 times its weight.
    assert patches.max() < math.log(100 * 1.6)
    torch.testing.assert_close(patches[0, 0], patches[0, 2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("signal", [noise(1, 1, 20000), sine(440, 1.2, 0.3), torch.zeros(1, 1, 16000)])
def test_features_are_those_of_transformers_functions(signal):
    ours = front_end().log_mel(signal[:, 0])[0]
    np.testing.assert_allclose(ours, transformers_log_mel(signal[0, 0]), rtol=0, atol=2e-4)


def test_features_are_those_of_librosas_fft_and_the_published_formula():
    samples = noise(1, 12345)
    magnitudes = np.abs(
        librosa.stft(
            np.pad(samples[0].numpy(), (56, 200)),  # librosa centres its window of 400 in the 512
            n_fft=512,
            win_length=400,
            hop_length=160,
            center=False,
            dtype=np.complex128,
        )
    )
    filters = np.zeros((257, 64))
    mels = [1127 * math.log(1 + hertz / 700) for hertz in np.arange(257) * 8000 / 256]
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (125, 7500))
    step = (high - low) / 65
    for band in range(64):
        centre = low + (band + 1) * step
        for number in range(1, 257):
            filters[number, band] = max(0.0, 1 - abs(mels[number] - centre) / step)
    expected = np.log(magnitudes.T @ filters + 0.01)
    ours = front_end().log_mel(samples)[0]
    np.testing.assert_allclose(ours, expected[: len(ours)], rtol=0, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(num_samples=st.integers(1, 60000), google=st.booleans())
def test_patches_are_as_many_as_told(num_samples, google):
    patches = front_end(google).patches(noise(1, 1, num_samples))
    assert patches.shape == (1, front_end(google).num_patches(num_samples), 96, 64)
    least = 16000 if google else 15600
    assert bool(patches.numel()) == (num_samples >= least)


def test_patches_of_the_torch_ports_follow_each_other():
    audio = noise(1, 1, 48000)
    mels = transformers_log_mel(audio[0, 0])
    for number, patch in enumerate(front_end().patches(audio)[0]):
        np.testing.assert_allclose(patch, mels[96 * number : 96 * number + 96], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("scale", "divisor"), [(0.001, 0.1), (0.03, None), (3.0, None)])
def test_googles_patches_begin_each_half_second_of_normalised_audio(scale, divisor):
    audio = noise(1, 1, 40000, scale=scale)
    audio[0, 0, 7] = -10 * scale  # a trough is no peak
    louder = audio / (divisor or audio.max())
    patches = front_end(google=True).patches(audio)[0]
    assert len(patches) == 4
    for number, patch in enumerate(patches):
        second = louder[0, 0, 8000 * number : 8000 * number + 16000]
        np.testing.assert_allclose(patch, transformers_log_mel(second)[:96], rtol=0, atol=2e-4)


# --- the network


def test_the_published_sizes():
    with torch.device("meta"):
        network = VggishNetwork()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 72_141_184
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight")}
    assert weights == {
        "features.0.weight": (64, 1, 3, 3),
        "features.3.weight": (128, 64, 3, 3),
        "features.6.weight": (256, 128, 3, 3),
        "features.8.weight": (256, 256, 3, 3),
        "features.11.weight": (512, 256, 3, 3),
        "features.13.weight": (512, 512, 3, 3),
        "embeddings.0.weight": (4096, 12288),
        "embeddings.2.weight": (4096, 4096),
        "embeddings.4.weight": (128, 4096),
    }


def test_channels_come_last_and_nothing_is_cut_off():
    torch.manual_seed(0)
    network = VggishNetwork((2, 2, 3, 3, 4, 4), 8, 5)
    patches = noise(3, 96, 64)
    maps = network.features(patches[:, None])
    assert maps.shape == (3, 4, 6, 4)
    hidden = torch.stack([maps[:, c, t, f] for t in range(6) for f in range(4) for c in range(4)], dim=1)
    output = network(patches)
    torch.testing.assert_close(output, network.embeddings(hidden))
    assert (output < 0).any(), "there is no ReLU at the end"


# --- its weights


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A network of small sizes stands for the published one, which takes 289 MB."""
    build = functools.partial(VggishNetwork, (2, 2, 3, 3, 4, 4), 8, 5)
    monkeypatch.setattr(module, "VggishNetwork", build)
    monkeypatch.setattr(module, "PATCHES_AT_ONCE", 3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    return build()


def sentence(**options):
    with pytest.raises(UserError) as caught:
        load_embedding("vggish", device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["vggish", "vggish-google"])
def test_a_given_file(tiny, tmp_path, suffix, name):
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(tiny.state_dict(), path)
    embedding = load_embedding(name, weights=path, device="cpu")
    assert (embedding.info.name, embedding.info.width) == (name, 5)
    assert embedding.info.version == sha256_of(path)[:12]
    assert embedding.info.hop_s == (0.5 if name == "vggish-google" else 0.96)
    audio = noise(2, 1, 90000)
    patches = front_end(name == "vggish-google").patches(audio)
    expected = torch.stack([tiny(clip) for clip in patches]).detach()
    torch.testing.assert_close(embedding.embed(audio), expected, rtol=1e-5, atol=1e-6)
    assert embedding.frames(90000) == expected.shape[1]
    (too_short,) = embed_clips(embedding, [np.ones((1, 15599), np.float32)], 16000)
    assert too_short.shape == (0, 5)


def test_the_published_file_is_taken_from_torch_hubs_folder_and_checked(tiny, tmp_path, monkeypatch):
    file = published_weights()
    assert file == ReleasedFile(URL, tmp_path / "hub/checkpoints/vggish-10086976.pth", "10086976")
    assert sentence() == (
        "embedding vggish has no weights on this machine, and they cannot be downloaded now (HF_HUB_OFFLINE"
        f" is set): download {URL} where there is a network, and put it at {file.path}"
    )
    file.path.parent.mkdir(parents=True)
    torch.save(tiny.state_dict(), file.path)
    assert "their hash is not that of" in sentence()
    digest = sha256_of(file.path)
    monkeypatch.setattr(module, "published_weights", lambda: ReleasedFile(URL, file.path, digest[:8]))
    assert load_embedding("vggish", device="cpu").info.version == digest[:12]


def test_files_that_are_not_its_weights(tiny, tmp_path):
    path = tmp_path / "x.pth"
    assert (
        sentence(weights=path)
        == f"embedding vggish: there is no file {path}; the weights are published at {URL}"
    )
    damaged = f"{path} is no file of weights, or a damaged one: delete it, and get it from {URL}"
    for content in (b"", b"<html>not found</html>", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        assert sentence(weights=path) == damaged
    torch.save([1, 2], path)
    assert sentence(weights=path) == damaged
    state = tiny.state_dict()
    torch.save(
        {key: value for key, value in state.items() if key != "embeddings.4.bias"}
        | {"x": state["features.0.bias"]},
        path,
    )
    assert sentence(weights=path) == (
        f"{path} holds no weights of VGGish; missing: embeddings.4.bias; not expected: x"
    )


class Trap:
    """What a pickled file can do to whoever reads it whole."""

    def __reduce__(self):
        return (pytest.fail, ("code of a downloaded file was run",))


def test_code_in_a_file_is_not_run(tiny, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"features.0.weight": Trap()}, path)
    assert "is no file of weights, or a damaged one" in sentence(weights=path)
