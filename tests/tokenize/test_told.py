"""What people say of clips, as what a generator takes.

Shapes: C channels, N samples, L states, E their width.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tokkata.core.audio import load_audio
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.features import told as module
from tokkata.tokenize.features.feature import FeatureInfo, TextEncoder
from tokkata.tokenize.features.melody import Melody
from tokkata.tokenize.features.told import Told, split_values

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
        Condition("tempo", "number", width=4, maximum=240.0),
        Condition("caption", "sequence", "cross", width=3, feature=TEXT.to_json()),
        Condition("melody", "sequence", "prepend", width=12, feature=MELODY.to_json()),
        Condition("vectors", "sequence", width=2),
    )
)


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


def inputs(told, num_clips, heard_s=2.0, conditions=CONDITIONS):
    return told.inputs(conditions, num_clips, heard_s, torch.device("cpu"))


def test_labels_and_tags_are_taken_in_turn():
    told = Told({"pitch": ["60", "64"], "composer": ["Haydn"]}, {"mood": [["calm", "glad"], ["wild"], []]})
    assert told.num_clips == 3
    assert inputs(told, 4) == {
        "pitch": [60, 64, 60, 64],
        "composer": ["Haydn"] * 4,
        "mood": [("calm", "glad"), ("wild",), (), ("calm", "glad")],
    }
    assert told.notes(CONDITIONS, 4)[1] == {"labels": {"pitch": 64, "composer": "Haydn", "mood": ("wild",)}}
    assert inputs(Told({"tempo": ["120", "60.5"]}), 2) == {"tempo": [120.0, 60.5]}
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
        (Told({"tempo": ["fast"]}), "--label tempo=fast: a number is needed"),
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


def test_a_melody_is_as_long_as_what_is_heard_of_it(tmp_path):
    path = sine(tmp_path / "a.wav", 8.0)
    rate = MELODY.frame_rate
    for seconds in [2.0, 10.0]:
        (states,) = inputs(Told(melody=path), 1, seconds)["melody"]
        assert states.shape == (min(round(seconds * rate), int(8 * rate) + 1), 12)
    assert states.argmax(1).unique().tolist() == [9]  # an A


def test_a_style_is_one_vector(tmp_path):
    codec = load_codec("pocket")
    info = dataclasses.replace(STYLE, revision=codec.info.revision, dim=codec.latent_dim)
    sound = Conditions((Condition("sound", "sequence", width=info.dim, feature=info.to_json()),))
    path = sine(tmp_path / "a.wav", 1.0, rate=16000, channels=1)
    first, second = inputs(Told(style=path), 2, conditions=sound)["sound"]
    audio = torch.from_numpy(load_audio(path, 16000, 1))[None]
    torch.testing.assert_close(first, codec.encode_latents(audio).mean(2), atol=1e-4, rtol=1e-4)
    assert torch.equal(first, second)
