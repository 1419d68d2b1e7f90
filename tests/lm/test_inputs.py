"""What people say of clips, as what a generator takes.

Shapes: C channels, N samples, K codebooks, T frames, L states, E their width.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import load_audio
from tokkata.core.errors import UserError
from tokkata.lm import inputs as module
from tokkata.lm.conditions import Condition, Conditions
from tokkata.lm.inputs import Told, encode_prompt, split_values
from tokkata.lm.language_model import LMConfig
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_original import wrap_encodec
from tokkata.tokenize.features.feature import FeatureInfo, TextEncoder
from tokkata.tokenize.features.melody import Melody

TEXT = FeatureInfo(
    "caption", "text", 3, None, "float32", {}, encoder="letters", column="caption", max_tokens=9
)
MELODY = Melody("melody").info
STYLE = FeatureInfo(
    "sound", "style", 64, None, "float32", {}, encoder="pocket", sample_rate=16000, channels=1
)
CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62, 64)),
        Condition("composer", "label", values=("Bach, J. S.", "Haydn")),
        Condition("mood", "tags", values=("calm", "glad", "wild")),
        Condition("caption", "sequence", "cross", width=3, feature=TEXT.to_json()),
        Condition("melody", "sequence", "prepend", width=12, feature=MELODY.to_json()),
        Condition("vectors", "sequence", width=2),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LMConfig):
    kind = "any"


def config(conditions=CONDITIONS, window_frames=500, codec=None):
    told = {} if codec is None else dataclasses.asdict(codec.info)
    shape = {"num_codebooks": 8, "codebook_size": 1024, "frame_rate": 50.0} | {
        name: told[name] for name in ("num_codebooks", "codebook_size", "frame_rate") if told
    }
    return Config(**shape, conditions=conditions, window_frames=window_frames, codec=told)


class Letters(TextEncoder):
    """Each letter as a vector."""

    device = torch.device("cpu")

    def token_ids(self, text):
        return [ord(letter) for letter in text]

    def encode(self, tokens):
        return [torch.tensor([[float(one), 0, 1] for one in ids]) for ids in tokens]


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr(module, "load_feature_from_info", lambda info, device: Letters(info))


def inputs(told, num_clips, num_frames=100, model=None):
    return told.inputs(model or config(), num_clips, num_frames, torch.device("cpu"))


def test_labels_and_tags_are_taken_in_turn():
    told = Told({"pitch": ["60", "64"], "composer": ["Haydn"]}, {"mood": [["calm", "glad"], ["wild"], []]})
    assert told.num_clips == 3
    assert inputs(told, 4) == {
        "pitch": [60, 64, 60, 64],
        "composer": ["Haydn"] * 4,
        "mood": [("calm", "glad"), ("wild",), (), ("calm", "glad")],
    }
    assert told.notes(CONDITIONS, 4)[1] == {"labels": {"pitch": 64, "composer": "Haydn", "mood": ("wild",)}}
    assert Told().num_clips == 1
    assert inputs(Told(), 2) == {}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("60", ["60"]),
        ("60, 62", ["60", "62"]),
        ("Haydn,Haydn", ["Haydn", "Haydn"]),
        ("Bach, J. S.", ["Bach, J. S."]),
    ],
)
def test_values_are_split_at_commas_unless_a_value_has_one(text, values):
    assert split_values(CONDITIONS, "composer", text) == values


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (Told({"ptich": ["60"]}), r"unknown condition 'ptich' \(did you mean 'pitch'\?\)"),
        (Told({"pitch": ["61"]}), "unknown value '61' for label 'pitch': known are 60, 62, 64"),
        (Told({"composer": ["Hayden"]}), r"unknown value 'Hayden' .*\(did you mean 'Haydn'\?\)"),
        (Told({"mood": ["calm"]}), "'mood' is not of kind label: give it by --tags mood=TAG,TAG"),
        (Told({}, {"mood": [["calmm"]]}), r"unknown tag 'calmm' .*\(did you mean 'calm'\?\)"),
        (Told({}, {"pitch": [["60"]]}), "'pitch' is not of kind tags: give it by --label pitch=VALUE"),
        (Told({"caption": ["x"]}), "'caption' is not of kind label: give it by --text"),
        (Told({"vectors": ["x"]}), "'vectors' is not of kind label: give it by tensors, in Python"),
        (Told({"pitch": ["60", "62", "64"]}), "3 values of 'pitch' for 2 clips: ask for more clips"),
        (Told(texts=("a", "b", "c")), "3 values of 'text' for 2 clips"),
        (Told(style=Path("x.wav")), "cannot be told a style: no condition takes a style"),
        (Told(melody=Path("none.wav")), "--melody: there is no file none.wav"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(told, sentence, letters):
    with pytest.raises(UserError, match=sentence):
        inputs(told, 2)


def test_texts_are_encoded_by_the_models_own_encoder(letters):
    found = inputs(Told(texts=("ab", "c")), 3)["caption"]
    assert [tuple(states.shape) for states in found] == [(2, 3), (1, 3), (2, 3)]
    assert found[0][:, 0].tolist() == [97, 98]
    assert Told(texts=("ab", "c")).notes(CONDITIONS, 3)[2] == {"labels": {}, "text": "ab"}
    encoded = CONDITIONS.encode({"caption": found}, partial=True)
    assert encoded["caption"].mask.sum(1).tolist() == [2, 1, 2]


def sine(path, seconds, rate=22050, channels=2, hz=440.0):
    t = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * hz * t)] * channels, axis=1), rate)
    return path


def test_a_melody_is_as_long_as_the_clip_or_the_window(tmp_path):
    path = sine(tmp_path / "a.wav", 8.0)
    rate = MELODY.frame_rate
    for num_frames, seconds in [(100, 2.0), (500, 10.0), (1000, 10.0)]:
        (states,) = inputs(Told(melody=path), 1, num_frames)["melody"]
        assert states.shape == (min(round(seconds * rate), int(8 * rate) + 1), 12)
    (short,) = inputs(Told(melody=path), 1, 1000, config(window_frames=150))["melody"]
    assert len(short) == round(3 * rate)
    assert short.argmax(1).unique().tolist() == [9]  # an A


def test_a_style_is_one_vector(tmp_path):
    codec = load_codec("pocket")
    info = dataclasses.replace(STYLE, revision=codec.info.revision, dim=codec.latent_dim)
    model = config(Conditions((Condition("sound", "sequence", width=info.dim, feature=info.to_json()),)))
    path = sine(tmp_path / "a.wav", 1.0, rate=16000, channels=1)
    first, second = inputs(Told(style=path), 2, model=model)["sound"]
    audio = torch.from_numpy(load_audio(path, 16000, 1))[None]
    torch.testing.assert_close(first, codec.encode_latents(audio).mean(2), atol=1e-4, rtol=1e-4)
    assert torch.equal(first, second)


# --- going on from a recording


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
    model = config(codec=codec, window_frames=None, conditions=Conditions())
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
