"""Measuring a codec: figures in closed form, with Opus and without.

Shapes: B batch, C channels, N samples, K codebooks, T frames.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.core.schema import DacModel
from tokkata.eval import reconstruction as module
from tokkata.eval.reconstruction import CodecScores, evaluate_codec, measure_codec, table
from tokkata.tokenize.families.codec_dac import build_original, save_dac
from tokkata.tokenize.training.prepare import prepare

K, V, HOP = 2, 16, 320


class NoisyCodec:
    """Gives back what it got, with noise 20 dB below; codebook k uses k + 1 of its 16 entries."""

    sample_rate = 16000
    codebook_size = V
    device = torch.device("cpu")

    def encode(self, audio):
        self.audio = audio
        frames = torch.arange(-(-audio.shape[-1] // HOP))
        return torch.stack([frames % (k + 1) for k in range(K)])[None]

    def decode(self, codes, num_samples):
        assert codes.shape == (1, K, -(-num_samples // HOP))
        noise = torch.randn(self.audio.shape, generator=torch.Generator().manual_seed(0))
        noise -= noise.mean()
        # At right angles to the signal, so that the ratio is exact.
        noise -= (noise * self.audio).sum() / self.audio.square().sum() * self.audio
        return self.audio + 0.1 * noise * self.audio.norm() / noise.norm()


@pytest.fixture
def clips():
    """Three clips [N] without means, a whole number of frames long."""
    found = []
    for periods in (100, 150, 210):
        phase = 2 * np.pi * periods * np.arange(20 * HOP) / (20 * HOP)
        found.append((0.3 * np.sin(phase) + 0.1 * np.sin(5 * phase)).astype(np.float32))
    return found


@pytest.fixture
def no_opus(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def copying_opus(monkeypatch):
    """Stands in for the tools: the stream is the wav file itself."""
    commands = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(*command):
        commands.append(command)
        shutil.copy(command[-2], command[-1])

    monkeypatch.setattr(module, "_run", run)
    return commands


def test_the_figures_of_a_known_codec(clips, no_opus):
    scores = measure_codec(NoisyCodec(), "noisy", clips, "test")
    assert (scores.split, scores.num_clips) == ("test", 3)
    assert scores.duration_s == pytest.approx(3 * 0.4)
    (row,) = scores.rows
    assert row.name == "noisy"
    assert row.bitrate_kbps == pytest.approx(50 * K * math.log2(V) / 1000)
    assert row.si_sdr_db == pytest.approx(20.0, abs=1e-3)
    assert row.mel_distance > 0
    assert row.seconds_per_s > 0
    assert scores.codebooks.used == [1, 2]
    assert scores.codebooks.entropy_bits == pytest.approx([0.0, 1.0])
    assert scores.codebooks.efficiency == pytest.approx(1 / (K * math.log2(V)))


def test_without_opus_the_table_says_so(clips, no_opus):
    scores = measure_codec(NoisyCodec(), "noisy", clips, "valid")
    assert scores.missing is not None
    lines = table(scores).splitlines()
    assert lines[0] == "3 clips of the split 'valid', 1 s"
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| codec", "| noisy"]
    assert lines[-1] == "opusenc and opusdec are not installed (Debian: opus-tools)"


@pytest.mark.parametrize("missing", ["opusenc", "opusdec"])
def test_half_of_opus_is_not_enough(clips, monkeypatch, missing):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else name)
    assert len(measure_codec(NoisyCodec(), "noisy", clips, "test").rows) == 1


def test_opus_is_measured_on_the_same_clips(clips, copying_opus):
    scores = measure_codec(NoisyCodec(), "noisy", clips, "test")
    assert scores.missing is None
    assert [row.name for row in scores.rows] == ["noisy", "Opus 6 kbit/s", "Opus 12 kbit/s"]
    for row in scores.rows[1:]:
        # 16 bits a sample and 44 bytes of header in 0.4 s.
        assert row.bitrate_kbps == pytest.approx(16 * 16 + 44 * 8 / 0.4 / 1000)
        assert row.si_sdr_db > 60
        assert row.mel_distance < scores.rows[0].mel_distance
    encoders = [command for command in copying_opus if command[0] == "opusenc"]
    bitrates = [command[command.index("--bitrate") + 1] for command in encoders]
    assert bitrates == ["6"] * 3 + ["12"] * 3
    assert len(copying_opus) == 12
    text = table(scores)
    assert "not installed" not in text
    assert text.index("| noisy |") < text.index("| Opus 6 kbit/s |") < text.index("| Opus 12 kbit/s |")


@pytest.mark.skipif(not (shutil.which("opusenc") and shutil.which("opusdec")), reason="needs opus-tools")
def test_real_opus(clips):
    long = [np.tile(clip, 5) for clip in clips]
    rows = measure_codec(NoisyCodec(), "noisy", long, "test").rows
    six, twelve = rows[1:]
    assert twelve.mel_distance < six.mel_distance
    assert twelve.si_sdr_db > six.si_sdr_db
    assert six.bitrate_kbps < twelve.bitrate_kbps < 30


@pytest.fixture
def codec_recipe(tmp_path, tiny_recipe, tiny_dac):
    """A codec's recipe with its audio and a codec of random weights."""
    recipe = tiny_recipe(
        tmp_path,
        data={"kind": "synth", "num_clips": 20, "duration_s": 0.3},
        codec=None,
        model=tiny_dac,
        eval={"max_clips": 2},
    )
    prepare(recipe)
    torch.manual_seed(0)
    save_dac(build_original(DacModel(**tiny_dac)), recipe.folder / "model", "float32")
    return recipe


def test_the_stage(codec_recipe, no_opus, capsys):
    evaluate_codec(codec_recipe)
    written = json.loads((codec_recipe.folder / "eval" / "scores.json").read_text())
    scores = CodecScores(**{**written, "rows": []})
    assert (scores.split, scores.num_clips) == ("test", 2)
    (row,) = written["rows"]
    assert row["name"] == "tiny"
    assert row["bitrate_kbps"] == pytest.approx(50 * 4 * 6 / 1000)
    assert len(written["codebooks"]["used"]) == 4
    assert "| tiny | 1.20 |" in capsys.readouterr().err
    evaluate_codec(codec_recipe)
    again = json.loads((codec_recipe.folder / "eval" / "scores.json").read_text())
    for name in ("mel_distance", "si_sdr_db", "bitrate_kbps"):
        assert again["rows"][0][name] == row[name]


def test_an_empty_split(codec_recipe, monkeypatch):
    monkeypatch.setattr(module.AudioStore, "split", lambda self, name: [])
    with pytest.raises(UserError, match=r"eval\.reference: the corpus has no clips in its split 'test'"):
        evaluate_codec(codec_recipe)
