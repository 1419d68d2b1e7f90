"""The stage `eval` of a codec's run: what it measures on, and what it writes."""

import json

import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.core.schema import DacModel
from tokkata.eval import reconstruction as module
from tokkata.eval.fidelity import coders
from tokkata.eval.reconstruction import evaluate_codec
from tokkata.tests.made_networks import save_oobleck
from tokkata.tokenize.families.codec_dac import build_original, save_dac
from tokkata.tokenize.training.card import write_card
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.rvq_encodec import build_encodec


@pytest.fixture(autouse=True)
def no_opus(monkeypatch):
    monkeypatch.setattr(coders.shutil, "which", lambda name: None)


@pytest.fixture
def codec_recipe(tmp_path, tiny_recipe, tiny_dac):
    """A codec's recipe with its audio and a codec of random weights."""
    recipe = tiny_recipe(
        tmp_path,
        data={"kind": "synth", "num_clips": 20, "duration_s": 0.3},
        codec=None,
        model=tiny_dac,
        eval={"max_clips": 2, "embedding": "logmel", "num_players": 1},
    )
    prepare(recipe)
    torch.manual_seed(0)
    save_dac(build_original(DacModel(**tiny_dac)), recipe.folder / "model", "float32")
    write_card(recipe.folder / "model", recipe, {})
    return recipe


def test_the_stage(codec_recipe, capsys):
    evaluate_codec(codec_recipe)
    written = json.loads((codec_recipe.folder / "eval" / "scores.json").read_text())
    assert (written["data"], written["num_clips"], written["embedding"]) == ("the split 'test'", 2, "logmel")
    (row,) = written["rows"]
    assert row["name"] == "tiny"
    assert row["bitrate_kbps"] == pytest.approx(50 * 4 * 6 / 1000)
    assert len(row["codebooks"]["used"]) == 4
    assert "| tiny | 16 | 1.20 |" in capsys.readouterr().err
    page = (codec_recipe.folder / "eval" / "report.html").read_text()
    assert page.count("<audio") == 2
    evaluate_codec(codec_recipe)
    again = json.loads((codec_recipe.folder / "eval" / "scores.json").read_text())
    for name in ("mel_distance", "stft_distance", "si_sdr_db", "bitrate_kbps", "fad", "clips"):
        assert again["rows"][0][name] == row[name]


def test_the_card_gets_the_table(codec_recipe):
    evaluate_codec(codec_recipe)
    card = (codec_recipe.folder / "model" / "README.md").read_text()
    assert "## Scores\n2 clips of the split 'test'" in card
    assert "| tiny | 16 | 1.20 |" in card
    assert "Not evaluated" not in card
    (codec_recipe.folder / "model" / "README.md").unlink()
    evaluate_codec(codec_recipe)
    assert not (codec_recipe.folder / "model" / "README.md").exists()


def test_an_encodec_is_measured_at_each_of_its_bandwidths(tmp_path, tiny_recipe):
    model = {
        "kind": "encodec",
        "sample_rate_hz": 16000,
        "num_filters": 4,
        "upsampling_ratios": [5, 4, 4, 4],
        "hidden_size": 16,
        "codebook_size": 64,
        "bandwidths_kbps": [0.6, 1.2],
    }
    recipe = tiny_recipe(
        tmp_path,
        data={"kind": "synth", "num_clips": 20, "duration_s": 0.3},
        codec=None,
        model=model,
        eval={"max_clips": 2, "embedding": "logmel", "num_players": 1},
    )
    prepare(recipe)
    torch.manual_seed(0)
    codec = build_encodec(recipe.model, 0.1 * torch.randn(4, 1, 16000))
    codec.save(recipe.folder / "model", "float32")
    evaluate_codec(recipe)
    rows = json.loads((recipe.folder / "eval" / "scores.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["tiny, 0.6 kbit/s", "tiny, 1.2 kbit/s"]
    assert [len(row["codebooks"]["used"]) for row in rows] == [2, 4]


def test_a_stereo_vae_is_measured_in_stereo(tmp_path, tiny_recipe):
    recipe = tiny_recipe(
        tmp_path,
        data={"kind": "synth", "num_clips": 20, "duration_s": 0.3},
        codec=None,
        model={"kind": "vae", "channels": 2, "sample_rate_hz": 8000},
        eval={"max_clips": 2, "embedding": "logmel", "num_players": 1},
    )
    prepare(recipe)
    save_oobleck(recipe.folder / "model")
    write_card(recipe.folder / "model", recipe, {})
    evaluate_codec(recipe)
    (row,) = json.loads((recipe.folder / "eval" / "scores.json").read_text())["rows"]
    assert (row["sample_rate"], row["channels"], row["bitrate_kbps"]) == (8000, 2, None)
    assert row["latents"]["numbers_per_s"] == pytest.approx(3 * 400)
    assert "| tiny | 8 stereo | – |" in (recipe.folder / "model" / "README.md").read_text()


def test_an_empty_split(codec_recipe, monkeypatch):
    monkeypatch.setattr(module.AudioStore, "split", lambda self, name: [])
    with pytest.raises(UserError, match=r"eval\.reference: the corpus has no clips in its split 'test'"):
        evaluate_codec(codec_recipe)
