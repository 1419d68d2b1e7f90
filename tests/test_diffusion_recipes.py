"""The recipes of diffusion models run from audio to report, with nothing changed but sizes and places."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.audio import write_wav
from tokkata.core.recipe import load_recipe
from tokkata.diffusion.load import load_diffusion
from tokkata.tests.made_networks import save_oobleck, save_t5
from tokkata.tests.test_recipes import make_corpus
from tokkata.tokenize.store import TokenStore

RECIPES = Path(__file__).parents[1] / "recipes"
SIZES = {
    "dit": ("model.dim=16", "model.num_layers=1", "model.num_heads=2"),
    "unet": ("model.channels=[8,16]", "model.num_blocks=1", "model.num_heads=2"),
    "consistency": ("model.num_intervals=4",),
}
SHORT = (
    "train.steps=3",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "train.log_every=1",
    "train.validate_every=2",
    "train.save_every=2",
    "train.precision='no'",
    "generate.num_clips=3",
    "generate.batch_size=2",
    "generate.steps=4",
    "eval.embedding=logmel",
    "eval.num_players=1",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def tones(tmp_path):
    """Stereo files of half a second with captions."""
    folder = tmp_path / "tones"
    times = np.arange(22050) / 44100
    rows = ["file_name,caption"]
    for number in range(24):
        hz = 110 * 2 ** (number / 12)
        write_wav(folder / f"{number:02d}.wav", np.stack([0.3 * np.sin(2 * np.pi * hz * times)] * 2), 44100)
        rows.append(f"{number:02d}.wav,a tone of {hz:.0f} hertz")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run(name, tokkata, runs_dir, *settings):
    """All stages; the run's folder, whose samples and scores are there."""
    path = RECIPES / f"{name}.yaml"
    kind = load_recipe(path).model.kind
    for stage in ("tokenize", "train", "generate", "eval"):
        result = tokkata(stage, path, f"runs_dir={runs_dir}", *SIZES[kind], *SHORT, *settings)
        assert result.returncode == 0, result.stderr
    folder = runs_dir / name
    store = TokenStore(folder / "tokens")
    model = load_diffusion(folder / "model")
    assert model.network.latent_dim == store.info.latent_dim
    np.testing.assert_allclose(model.latent_mean.numpy(), store.info.latent_mean, rtol=1e-5, atol=1e-6)
    lines = [json.loads(line) for line in (folder / "samples" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        info = soundfile.info(folder / "samples" / line["file"])
        assert (info.samplerate, info.channels) == (store.info.sample_rate, store.info.channels)
        assert info.frames == round(line["duration_s"] * info.samplerate)
    assert (folder / "samples" / "untrained" / "00002.wav").is_file()
    rows = json.loads((folder / "eval" / "scores.json").read_text())["rows"]
    assert {"reconstructed", "generated", "untrained"} <= {row["name"] for row in rows}
    assert all(row["scores"][0]["value"] is not None for row in rows)
    return folder


def test_quickstart_diffusion(tokkata, tmp_path):
    folder = run(
        *("quickstart-diffusion", tokkata, tmp_path, "data.num_clips=24", "data.duration_s=0.5"),
        *("train.crop_s=0.4", "generate.duration_s=0.4"),
    )
    conditions = load_diffusion(folder / "model").config.conditions
    assert conditions.names == ["pitch", "instrument_family", "velocity"]


def test_quickstart_diffusion_fast(tokkata, tmp_path):
    sizes = ("data.num_clips=24", "data.duration_s=0.5", "train.crop_s=0.4", "generate.duration_s=0.4")
    for stage in ("tokenize", "train"):
        path = RECIPES / "quickstart-diffusion.yaml"
        result = tokkata(stage, path, f"runs_dir={tmp_path}", *SIZES["dit"], *SHORT, *sizes)
        assert result.returncode == 0, result.stderr
    teacher = load_recipe(RECIPES / "quickstart-diffusion-fast.yaml").model.teacher
    assert teacher == "runs/quickstart-diffusion/model"
    folder = run(
        *("quickstart-diffusion-fast", tokkata, tmp_path, *sizes),
        f"model.teacher={tmp_path / 'quickstart-diffusion' / 'model'}",
    )
    assert load_diffusion(folder).config.conditions.names == ["pitch", "instrument_family", "velocity"]
    told = tokkata("generate", folder, "--label", "pitch=48", "--num", 1, "--out", tmp_path / "heard")
    assert told.returncode == 0, told.stderr
    assert "4/4" in told.stderr  # its usual number of steps


def test_the_twins_have_the_same_audio_and_labels():
    one, other, fast = (
        load_recipe(RECIPES / f"{name}.yaml")
        for name in ("quickstart", "quickstart-diffusion", "quickstart-diffusion-fast")
    )
    assert one.data == other.data == fast.data
    assert (other.codec, other.eval, other.train.crop_s) == (fast.codec, fast.eval, fast.train.crop_s)
    assert one.model.conditions == other.model.conditions
    assert (one.generate.num_clips, one.generate.duration_s) == (
        other.generate.num_clips,
        other.generate.duration_s,
    )
    assert (one.generate.labels_from, one.eval.reference) == (
        other.generate.labels_from,
        other.eval.reference,
    )


def test_nsynth_vae_diffusion(tokkata, tmp_path):
    save_oobleck(tmp_path / "vae", channels=1)
    folder = run(
        *("nsynth-vae-diffusion", tokkata, tmp_path, f"codec={{kind: oobleck, id: {tmp_path / 'vae'}}}"),
        *(f"data.root={make_corpus('nsynth', tmp_path / 'corpus')}", "train.crop_s=0.3"),
        "generate.duration_s=0.3",
    )
    store = TokenStore(folder / "tokens")
    assert store.split("train").latents_scale(0) is not None


def test_maestro_dac_latent_diffusion(tokkata, tmp_path, tiny_codec):
    folder = run(
        *("maestro-dac-latent-diffusion", tokkata, tmp_path, f"codec.id={tiny_codec}"),
        *(f"data.root={make_corpus('maestro', tmp_path / 'corpus')}", "codec.num_codebooks=4"),
        *("train.crop_s=0.4", "generate.duration_s=0.4"),
    )
    wav = folder / "samples" / "00000.wav"
    told = tokkata(
        *("generate", folder, "--init-audio", wav, "--inpaint", "0.2:0.4", "--steps", 2),
        *("--out", tmp_path / "filled"),
    )
    assert told.returncode == 0, told.stderr


def test_musiccaps_oobleck_dit(tokkata, tmp_path, tones):
    save_oobleck(tmp_path / "vae")
    save_t5(tmp_path / "t5")
    folder = run(
        *("musiccaps-oobleck-dit", tokkata, tmp_path, f"codec.id={tmp_path / 'vae'}", f"data.root={tones}"),
        *(f"tokenize.features.0.encoder={tmp_path / 't5'}", "train.crop_s=0.3", "generate.duration_s=0.3"),
    )
    told = tokkata(
        *("generate", folder, "--text", "a tone", "--cfg-scale", 3, "--steps", 2, "--duration", 0.5),
        *("--overlap", 0.1, "--out", tmp_path / "heard"),
    )
    assert told.returncode == 0, told.stderr
    assert json.loads((tmp_path / "heard" / "samples.jsonl").read_text())["text"] == "a tone"


def test_drums_ddpm(tokkata, tmp_path, tones):
    run(
        *("drums-ddpm", tokkata, tmp_path, f"data.root={tones}", "train.crop_s=0.4"),
        *("generate.duration_s=0.4", "generate.steps=20"),
    )
