"""Codec training: that it learns, resumes, and leaves a codec in the hub's layout.

Shapes: B batch, N samples, K codebooks, T frames.
"""

import signal

import numpy as np
import pytest
import torch
from transformers import DacModel

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.loop import StoppedError
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.training.audio_store import AudioStore
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.train_codec import train_codec


@pytest.fixture
def codec_recipe(tmp_path, tiny_recipe, tiny_dac):
    """`codec_recipe(train={"steps": 3})`: a codec's recipe whose audio is prepared."""

    def make(name="codec", data=None, train=None, **model):
        settings = {"steps": 6, "batch_size": 2, "crop_s": 0.2, "save_every": 2, "log_every": 1}
        recipe = tiny_recipe(
            tmp_path,
            name=name,
            codec=None,
            data=data or {"kind": "synth", "num_clips": 12, "duration_s": 0.3},
            model={**tiny_dac, **model},
            train={**settings, **(train or {})},
        )
        prepare(recipe)
        return recipe

    return make


def curve(recipe, name):
    """The values of one metric in the log."""
    return [row[name] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if name in row]


def test_stopped_and_resumed_is_bitwise_undisturbed(codec_recipe, monkeypatch):
    whole, parts = (codec_recipe(name, quantizer_dropout=0.5) for name in ("whole", "parts"))
    train_codec(whole)

    def stop_in_step(number):
        """SIGTERM while the batch of step `number` is put together."""
        read, drawn = AudioStore.crop, 0

        def crop(self, clip, start, num_samples):
            nonlocal drawn
            if num_samples == 3200:
                drawn += 1
                if drawn == 2 * (number + 1):
                    signal.raise_signal(signal.SIGTERM)
            return read(self, clip, start, num_samples)

        monkeypatch.setattr(AudioStore, "crop", crop)

    for step in (1, 2):
        stop_in_step(step)
        with pytest.raises(StoppedError, match="with a checkpoint; to resume, run the same command again"):
            train_codec(parts)
        monkeypatch.undo()
    assert not (parts.folder / "model").exists()
    train_codec(parts)
    for name in ("model.safetensors", "config.json"):
        assert (parts.folder / "model" / name).read_bytes() == (whole.folder / "model" / name).read_bytes()
    for name in ("loss", "mel", "waveform", "grad_norm", "valid/loss", "valid/si_sdr_db"):
        assert curve(parts, name) == curve(whole, name)


def test_what_is_saved_is_a_codec_of_the_hub(codec_recipe):
    recipe = codec_recipe(train={"steps": 2})
    train_codec(recipe)
    folder = recipe.folder / "model"
    model, codec = DacModel.from_pretrained(folder), load_codec(str(folder))
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (16000, 320, 50.0)
    assert (codec.num_codebooks, codec.codebook_size) == (4, 64)
    audio = 0.1 * torch.randn(2, 1, 3200, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(audio)
    assert codes.shape == (2, 4, 10)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    assert codec.decode(codes).shape == (2, 1, 3200)


def test_it_learns_one_clip(codec_recipe, tmp_path):
    seconds = np.arange(4800) / 16000
    bell = sum(np.sin(2 * np.pi * hz * seconds) for hz in (1500, 2330, 3100, 4150, 5500)) / 6
    write_wav(tmp_path / "one" / "bell.wav", (bell * np.exp(-5 * seconds))[None], 16000)
    recipe = codec_recipe(
        data={"kind": "folder", "root": str(tmp_path / "one")},
        # A crop is the whole clip: pieces of it would differ in how hard they are.
        train={"steps": 30, "batch_size": 1, "crop_s": 0.3, "lr": 1e-3, "warmup_steps": 5, "save_every": 30},
        quantizer_dropout=0.0,
    )
    train_codec(recipe)
    for name in ("loss", "mel", "waveform"):
        values = curve(recipe, name)
        assert len(values) == 30
        assert values[-1] < 0.5 * values[0]


def test_validation_is_written(codec_recipe):
    recipe = codec_recipe(train={"steps": 2})
    train_codec(recipe)
    (efficiency,) = curve(recipe, "valid/codebook_efficiency")
    assert 0 <= efficiency <= 1
    assert len(curve(recipe, "valid/loss")) == len(curve(recipe, "valid/si_sdr_db")) == 1


@pytest.fixture
def one_file(tmp_path):
    write_wav(tmp_path / "one" / "a.wav", 0.1 * np.sin(np.arange(4800) / 9)[None], 16000)
    return {"kind": "folder", "root": str(tmp_path / "one")}


def test_no_validation_is_told(codec_recipe, one_file, capsys):
    recipe = codec_recipe(data=one_file, train={"steps": 1})
    train_codec(recipe)
    assert "the split 'valid' has no clips, so there is no validation" in capsys.readouterr().err
    assert curve(recipe, "valid/loss") == []
    assert (recipe.folder / "model" / "model.safetensors").exists()


def test_a_codec_that_is_too_narrow(codec_recipe):
    recipe = codec_recipe(encoder_dim=4, encoder_rates=[16, 20])
    with pytest.raises(UserError, match=r"^model\.encoder_rates: 8 channels cannot hold the 16 samples"):
        train_codec(recipe)


def test_no_clips_to_train_on(codec_recipe, one_file, monkeypatch):
    recipe = codec_recipe(data=one_file)
    monkeypatch.setattr(AudioStore, "split", lambda self, name: [])
    with pytest.raises(UserError, match="no clips in its split 'train'"):
        train_codec(recipe)
