"""A codec's card: what it tells, that what it tells is so, and that scores find their place in it."""

import re

import pytest
import torch
import yaml

from tokkata.core.card import MODEL, fill_scores
from tokkata.core.schema import DacModel
from tokkata.tests.made_networks import save_oobleck
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_dac import build_original, save_dac
from tokkata.tokenize.training.card import write_card


@pytest.fixture
def recipe(tmp_path, tiny_recipe, tiny_dac):
    return tiny_recipe(tmp_path, codec=None, model=tiny_dac, train={"steps": 321})


@pytest.fixture
def folder(tmp_path, tiny_dac):
    torch.manual_seed(0)
    save_dac(build_original(DacModel(**tiny_dac)), tmp_path / "model", "float32")
    return tmp_path / "model"


def test_what_the_card_of_a_dac_tells(folder, recipe):
    write_card(folder, recipe, {"loss": 2.5, "si_sdr_db": 7.25})
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "audio-to-audio",
        "tags": ["audio-codec", "tokkata"],
    }
    parameters = sum(p.numel() for p in load_codec(str(folder)).parameters())
    for fact in [
        "# tiny\n",
        f"| parameters | {parameters:,} |",
        "| audio | 16000 Hz, 1 channel |",
        "| frames | 50 a second, of 320 samples |",
        "| codes | 4 codebooks of 64, 1.20 kbit/s |",
        "321 steps of 4 clips of 0.4 s",
        "- Tokkata's synthesiser, corpus of kind `synth`. Licence: none needed",
        "| loss | 2.5000 |\n| si_sdr_db | 7.2500 |",
        "transformers.DacModel.from_pretrained",
        "## Scores\nNot evaluated yet.",
        "  num_codebooks: 4\n",
    ]:
        assert fact in text


def test_what_it_says_of_use_runs(folder, recipe):
    write_card(folder, recipe, {})
    text = (folder / "README.md").read_text()
    assert "There was no held-out clip." in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"audio": torch.zeros(1, 1, 640)}
    exec(code.replace(MODEL, str(folder)), names)
    assert names["codes"].shape == (1, 4, 2)
    assert names["audio"].shape == (1, 1, 640)


def test_a_vae_of_diffusers(tmp_path, recipe):
    write_card(save_oobleck(tmp_path / "vae"), recipe, {})
    text = (tmp_path / "vae" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "diffusers"
    assert "A variational autoencoder" in text
    assert "| latents | 3 numbers a frame, 1200 a second |" in text
    assert "| audio | 8000 Hz, 2 channels |" in text
    assert "diffusers.AutoencoderOobleck.from_pretrained" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"audio": torch.zeros(1, 2, 40)}
    exec(code.replace(MODEL, str(tmp_path / "vae")), names)
    assert names["latents"].shape == (1, 3, 2)


@pytest.mark.parametrize(("base", "is_on_hub"), [("descript/dac_44khz", True), ("HERE", False)])
def test_a_fine_tuned_codec_names_its_base(folder, recipe, base, is_on_hub):
    base = base.replace("HERE", str(folder))
    write_card(folder, recipe, {}, base=base)
    text = (folder / "README.md").read_text()
    assert (yaml.safe_load(text.split("---\n")[1]).get("base_model") == base) is is_on_hub
    assert f"fine-tuned from `{base}`" in text
    assert f"- What `{base}` was trained on before." in text


def test_scores_take_the_place_of_the_remark(folder, recipe):
    write_card(folder, recipe, {})
    fill_scores(folder / "README.md", "| codec | mel |")
    text = (folder / "README.md").read_text()
    assert "## Scores\n| codec | mel |\n\n## Use" in text
    assert "Not evaluated" not in text
