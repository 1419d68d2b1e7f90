"""The beginning of a recording as a prompt.

Shapes: C channels, N samples, K codebooks, T frames.
"""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import load_audio
from tokkata.core.errors import UserError
from tokkata.lm.language_model import LMConfig
from tokkata.lm.prompt import encode_prompt
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_original import wrap_encodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LMConfig):
    kind = "any"


def config(window_frames=500, codec=None):
    told = {} if codec is None else dataclasses.asdict(codec.info)
    shape = {"num_codebooks": 8, "codebook_size": 1024, "frame_rate": 50.0} | {
        name: told[name] for name in ("num_codebooks", "codebook_size", "frame_rate") if told
    }
    return Config(**shape, window_frames=window_frames, codec=told)


def sine(path, seconds, rate=22050, channels=2, hz=440.0):
    t = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * hz * t)] * channels, axis=1), rate)
    return path


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return load_codec(str(tiny_codec), num_codebooks=4)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 6)])
def test_a_prompt_of_any_rate_and_channels_is_the_codecs(tmp_path, codec, rate, channels):
    path = sine(tmp_path / "a.wav", 0.5, rate, channels)
    codes = encode_prompt(path, codec, config(codec=codec), 100)
    audio = torch.from_numpy(load_audio(path, 16000, 1))[None]
    assert codes.shape == (4, 25)
    assert torch.equal(codes, codec.encode(audio)[0])
    assert torch.equal(
        encode_prompt(path, codec, config(codec=codec), 100, 0.2), codec.encode(audio[..., :3200])[0]
    )


@settings(max_examples=20, deadline=None)
@given(num_samples=st.integers(1, 2000))
def test_no_frame_of_a_prompt_is_padding_unless_it_is_the_only_one(codec, num_samples):
    audio = torch.rand(1, 1, num_samples) - 0.5
    codes = codec.encode_beginning(audio)
    assert codes.shape[-1] == max(1, num_samples // codec.hop_length)
    whole = audio[..., : codes.shape[-1] * codec.hop_length]
    assert torch.equal(codes, codec.encode(whole))


def test_a_prompt_of_part_of_a_frame_is_one_frame(tmp_path):
    codec = load_codec("mulaw:10")  # a frame of a tenth of a second
    path = sine(tmp_path / "a.wav", 0.06, 16000, 1)
    model = config(codec=codec, window_frames=None)
    assert encode_prompt(path, codec, model, 100).shape == (1, 1)


@pytest.mark.parametrize(
    ("seconds", "asked", "num_frames", "sentence"),
    [
        (
            0.5,
            None,
            25,
            r"the prompt of 0.5 s leaves nothing to generate, as the clip of 0.5 s begins with it",
        ),
        (3.0, None, 200, r"the prompt of 3 s does not fit the model's window of 2 s: lower --prompt-seconds"),
        (0.5, 0.6, 100, r"--prompt-seconds 0.6: .*a.wav lasts only 0.5 s"),
        (0.5, -1.0, 100, r"--prompt-seconds -1 must be positive"),
        (0.01, None, 100, r"--prompt: .*a.wav cannot be used: too short"),
    ],
)
def test_prompts_that_leave_nothing(tmp_path, codec, seconds, asked, num_frames, sentence):
    path = sine(tmp_path / "a.wav", seconds, 16000, 1)
    with pytest.raises(UserError, match=sentence):
        encode_prompt(path, codec, config(codec=codec, window_frames=100), num_frames, asked)


def test_silence_and_what_is_no_audio_are_refused(tmp_path, codec):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    for name, reason in [("a.wav", "silent"), ("b.wav", "not audio"), ("c.wav", "there is no file")]:
        with pytest.raises(UserError, match=reason):
            encode_prompt(tmp_path / name, codec, config(codec=codec), 100)


def test_a_silent_beginning_is_a_prompt_like_others(tmp_path, codec):
    soundfile.write(tmp_path / "a.wav", np.r_[np.zeros(16000), 0.5 * np.ones(100)], 16000)
    codes = encode_prompt(tmp_path / "a.wav", codec, config(codec=codec), 100, 0.5)
    assert torch.equal(codes, codec.encode(torch.zeros(1, 1, 8000))[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@settings(max_examples=20, deadline=None)
@given(num_samples=st.integers(1, 2600))
def test_a_prompt_in_segments_is_laid_out_as_the_beginning_of_a_longer_clip(num_samples):
    codec = segmented()
    audio = torch.rand(1, 2, num_samples) - 0.5
    length = codec.encode_beginning(audio).shape[-1]
    longer = codec.encode(torch.cat([audio, torch.zeros(1, 2, 3000)], dim=2))
    # Every whole segment is coded by itself, so its codes are those of the longer clip.
    whole = 150 * (length // 150)
    assert torch.equal(codec.encode_beginning(audio)[..., :whole], longer[..., :whole])
    assert length <= max(1, codec.num_frames(num_samples))


def segmented():
    import encodec

    torch.manual_seed(0)
    sizes = {"channels": 2, "norm": "time_group_norm", "dimension": 8, "n_filters": 4, "ratios": [4, 2]}
    model = encodec.EncodecModel(
        encodec.modules.SEANetEncoder(**sizes),
        encodec.modules.SEANetDecoder(**sizes),
        encodec.quantization.ResidualVectorQuantizer(dimension=8, n_q=4, bins=16),
        target_bandwidths=[1.2],
        sample_rate=1200,
        channels=2,
        normalize=True,
        segment=1.0,
    ).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)
        layer._codebook.embed.normal_()
    return wrap_encodec("encodec:test", None, model, 1.2)
