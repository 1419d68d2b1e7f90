"""Codec training: that it learns, resumes, and leaves a codec in the hub's layout.

Shapes: B batch, N samples, K codebooks, T frames.
"""

import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import DacModel

from tokkata.core import divergence
from tokkata.core.audio import write_wav
from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.loop import StoppedError
from tokkata.core.schema import DacModel as DacSection
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_dac import build_original, to_hub
from tokkata.tokenize.training.audio_store import AudioStore
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.train_codec import train_codec


@pytest.fixture
def codec_recipe(tmp_path, tiny_recipe, tiny_dac):
    """`codec_recipe(train={"steps": 3})`: a codec's recipe whose audio is prepared."""

    def make(name="codec", data=None, train=None, without=(), **model):
        settings = {"steps": 6, "batch_size": 2, "crop_s": 0.2, "save_every": 2, "log_every": 1}
        recipe = tiny_recipe(
            tmp_path,
            name=name,
            codec=None,
            data=data or {"kind": "synth", "num_clips": 12, "duration_s": 0.3},
            model={key: value for key, value in {**tiny_dac, **model}.items() if key not in without},
            train={**settings, **(train or {})},
        )
        prepare(recipe)
        return recipe

    return make


def curve(recipe, name):
    """The values of one metric in the log."""
    return [row[name] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if name in row]


ADVERSARIAL = {"periods": [], "fft_sizes": [64], "bands": [[0.0, 1.0]], "start_step": 2}
EVERYTHING = {
    "quantizer_dropout": 0.5,
    "stft_weight": 1.0,
    "mel_floor_end": 1e-4,
    "adversarial": ADVERSARIAL,
    "balancer": {"decay": 0.5},
    "dead_codes": {"below": 0.5, "decay": 0.5},
}


@pytest.mark.parametrize(
    "model",
    [{"quantizer_dropout": 0.5, "dead_codes": None}, EVERYTHING, {**EVERYTHING, "codebook_decay": 0.9}],
    ids=["plain", "everything", "averages"],
)
def test_stopped_and_resumed_is_bitwise_undisturbed(codec_recipe, monkeypatch, model):
    whole, parts = (codec_recipe(name, **model) for name in ("whole", "parts"))
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
    prefix = "codec/" if "adversarial" in model else ""
    names = [f"{prefix}{name}" for name in ("loss", "mel", "waveform", "grad_norm")]
    for name in (*names, "valid/loss", "valid/si_sdr_db", "codebooks/dead", "discriminator/loss"):
        assert curve(parts, name) == curve(whole, name)
    if "adversarial" in model:
        assert sum(curve(whole, "codebooks/dead")) > 0


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


# --- adversarial, shared out, from a source


def test_discriminators_begin_when_they_are_asked_to(codec_recipe):
    recipe = codec_recipe(adversarial=ADVERSARIAL)
    train_codec(recipe)
    rows = [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "lr" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("discriminator/loss", "codec/adversarial", "codec/features"):
        assert [name in row for row in rows] == [False] * 2 + [True] * 4
    for row in rows[2:]:
        assert row["discriminator/loss"] == pytest.approx(
            row["discriminator/real"] + row["discriminator/fake"]
        )


@pytest.fixture
def source(tiny_dac, tmp_path):
    """The folder of a codec with random weights, one channel of which is nothing."""
    torch.manual_seed(3)
    original = build_original(DacSection(**tiny_dac))
    hub = to_hub(original)
    with torch.no_grad():
        hub.encoder.conv1.weight[2] = 0
    hub.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def from_source(codec_recipe, source, **changed):
    shape = ("encoder_dim", "encoder_rates", "decoder_dim", "num_codebooks", "codebook_size")
    return codec_recipe(source=str(source), without=shape, **changed)


def test_training_begins_from_weights_that_are_there(codec_recipe, source):
    recipe = from_source(codec_recipe, source, train={"steps": 1, "lr": 1e-12}, quantizer_dropout=0.0)
    train_codec(recipe)
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(recipe.folder / "model" / "model.safetensors"),
    )
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert "fine-tuned from" in (recipe.folder / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("id", "changed", "message"),
    [
        (
            "pocket",
            {"sample_rate_hz": 24000},
            "model.source pocket has 16000 Hz: set model.sample_rate_hz to that",
        ),
        ("mulaw:16000", {}, "model.source mulaw:16000 is not a DAC in the hub's layout"),
    ],
)
def test_sources_that_do_not_fit(codec_recipe, id, changed, message):
    with pytest.raises(UserError, match=message):
        train_codec(from_source(codec_recipe, id, **changed))


def test_the_shape_is_the_sources(codec_recipe):
    with pytest.raises(UserError, match="encoder_dim is that of source pocket: remove it"):
        codec_recipe(source="pocket")


def test_codebooks_of_weights_that_are_there_are_found_anew(codec_recipe, source):
    settings = {"train": {"steps": 1, "lr": 1e-12}, "quantizer_dropout": 0.0, "dead_codes": None}
    recipe = from_source(codec_recipe, source, refit_codebooks=True, codebook_decay=1 - 1e-9, **settings)
    train_codec(recipe)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, recipe.folder / "model"))
    is_other = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-5)}
    assert is_other == {name for name in before if "codebook" in name}


@pytest.mark.parametrize("start", ["kmeans", "random"])
def test_other_starts(codec_recipe, start):
    recipe = codec_recipe(start=start, train={"steps": 2})
    train_codec(recipe)
    assert len(curve(recipe, "loss")) == 2


# --- what is wrong with the data or the settings


def spoil(monkeypatch, change, every=1):
    read, number = AudioStore.crop, 0

    def crop(self, clip, start, num_samples):
        nonlocal number
        number += 1
        samples = read(self, clip, start, num_samples)
        return change(samples) if number % every == 0 and num_samples == 3200 else samples

    monkeypatch.setattr(AudioStore, "crop", crop)


@pytest.mark.parametrize(
    "change",
    [np.zeros_like, lambda samples: np.sign(samples), lambda samples: np.full_like(samples, 1.0)],
    ids=["silent", "clipping", "constant"],
)
def test_crops_that_are_hard_are_no_nan(codec_recipe, monkeypatch, change):
    recipe = codec_recipe(train={"steps": 4, "warmup_steps": 1}, **EVERYTHING)
    spoil(monkeypatch, change)
    train_codec(recipe)
    for name in ("codec/loss", "codec/grad_norm", "discriminator/loss", "discriminator/grad_norm"):
        values = curve(recipe, name)
        assert values
        assert np.isfinite(np.array(values, dtype=float)).all()
    assert curve(recipe, "skipped_steps")[-1] == 0


def test_crops_that_are_not_finite_are_skipped_and_counted(codec_recipe, monkeypatch):
    recipe = codec_recipe(**EVERYTHING)
    spoil(monkeypatch, lambda samples: samples * np.nan, every=4)
    train_codec(recipe)
    assert curve(recipe, "skipped_steps")[-1] >= 3
    weights = load_file(recipe.folder / "model" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_learning_rate_that_is_far_too_high_ends_and_keeps_what_was_good(codec_recipe, monkeypatch):
    """This is 1000 times that of `codec-pocket`. With 10 times this codec still learns."""
    monkeypatch.setattr(divergence, "_PATIENCE", 20)
    recipe = codec_recipe(
        train={"steps": 200, "lr": 0.3, "warmup_steps": 100, "save_every": 5, "log_every": 1}
    )
    with pytest.raises(UserError, match=r"training diverges: 'waveform' is .*: lower train\.lr; the newest"):
        train_codec(recipe)
    newest = int(list_checkpoints(recipe.folder / "checkpoints")[-1].name[-6:])
    levels = curve(recipe, "level")
    assert len(levels) - newest > 15
    assert 0.1 < np.mean(levels[newest - 5 : newest]) < 2
    assert not (recipe.folder / "model").exists()


def test_silence_ends_a_run(codec_recipe, monkeypatch):
    monkeypatch.setattr(divergence, "_PATIENCE", 3)
    monkeypatch.setattr(divergence, "_FEWEST", 2)
    monkeypatch.setattr(divergence, "_SILENT", 1.5)  # so that all is next to silence
    with pytest.raises(UserError, match=r"training has fallen silent: 'level' is .*: lower train\.lr"):
        train_codec(codec_recipe())
