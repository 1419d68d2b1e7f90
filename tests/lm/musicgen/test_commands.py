"""`tokkata generate` from a MusicGen in the layout of `transformers`."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer, EncodecModel, T5EncoderModel

from tokkata.core.audio import load_audio
from tokkata.core.files import read_jsonl
from tokkata.tests.made_musicgen import made_musicgen, save_encodec
from tokkata.tests.made_networks import save_t5


@pytest.fixture(scope="module")
def musicgens(tmp_path_factory):
    """`musicgens(melody=…)`: the folder of a whole model, and the model."""
    folder = tmp_path_factory.mktemp("hub")
    save_t5(folder / "t5")
    save_encodec(folder / "encodec")
    text = T5EncoderModel.from_pretrained(folder / "t5")

    def make(melody):
        model = made_musicgen(
            melody=melody,
            text_config=text.config,
            text_dim=text.config.d_model,
            names=(str(folder / "t5"), str(folder / "encodec")),
        )
        model.text_encoder.load_state_dict(text.state_dict())
        model.audio_encoder.load_state_dict(EncodecModel.from_pretrained(folder / "encodec").state_dict())
        path = folder / ("melody" if melody else "mono")
        model.save_pretrained(path)
        return path, model, AutoTokenizer.from_pretrained(folder / "t5")

    return make


def test_the_likeliest_audio_is_that_of_transformers(musicgens, tokkata, tmp_path):
    path, model, tokenizer = musicgens(melody=False)
    texts = ["a slow piano", "loud drum and bass"]
    told = tokkata(
        *("generate", path, "--text", texts[0], "--text", texts[1], "--duration", 0.5, "--temperature", 0),
        *("--cfg-scale", 3, "--out", tmp_path / "out"),
    )
    assert told.returncode == 0, told.stderr
    rows = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert [row["text"] for row in rows] == texts
    with torch.no_grad():
        expected = model.generate(
            **tokenizer(texts, padding=True, return_tensors="pt"),
            do_sample=False,
            guidance_scale=3.0,
            max_length=25 + 4,
        )
    for row, audio in zip(rows, expected[:, :, :16000].clamp(-1, 1), strict=True):
        found = load_audio(tmp_path / "out" / row["file"], 32000, 1)
        np.testing.assert_allclose(found, audio, atol=1.01 / 32768)
    assert not torch.equal(expected[0], expected[1])


def test_a_melody_model_is_told_a_recording(musicgens, tokkata, tmp_path):
    path, _, _ = musicgens(melody=True)
    seconds = np.arange(32000) / 32000
    for name, hz in {"a": 440.0, "c": 523.25}.items():
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(2 * np.pi * hz * seconds), 32000)
        told = tokkata(
            *("generate", path, "--text", "a piano", "--melody", tmp_path / f"{name}.wav"),
            *("--duration", 0.4, "--temperature", 0, "--out", tmp_path / name),
        )
        assert told.returncode == 0, told.stderr
    (row,) = read_jsonl(tmp_path / "a" / "samples.jsonl")
    assert (row["text"], row["melody"]) == ("a piano", str(tmp_path / "a.wav"))
    assert (tmp_path / "a" / "00000.wav").read_bytes() != (tmp_path / "c" / "00000.wav").read_bytes()
