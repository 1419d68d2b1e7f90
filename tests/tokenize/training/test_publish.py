"""`tokkata push` of a codec: what goes to the Hub, and that it is all that is needed there."""

import shutil

import pytest
import torch
from typer.testing import CliRunner

from tokkata.cli import app
from tokkata.core.card import MODEL
from tokkata.core.errors import UserError
from tokkata.core.schema import DacModel
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_dac import build_original, save_dac
from tokkata.tokenize.training.card import write_card


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What is uploaded, in a folder."""
    target = tmp_path / "hub"

    class Hub:
        def create_repo(self, name, **settings):
            assert settings["private"]

        def upload_folder(self, *, folder_path, repo_id, repo_type, **settings):
            assert (repo_id, repo_type) == ("someone/codec", "model")
            shutil.copytree(folder_path, target)

    monkeypatch.setattr("tokkata.core.hub_upload.HfApi", Hub)
    return target


@pytest.fixture
def run(tmp_path, tiny_recipe, tiny_dac):
    """A run with a codec in `model`."""
    recipe = tiny_recipe(tmp_path, codec=None, model=tiny_dac)
    torch.manual_seed(0)
    save_dac(build_original(DacModel(**tiny_dac)), recipe.folder / "model", "float32")
    write_card(recipe.folder / "model", recipe, {})
    return recipe.folder


def push(folder):
    return CliRunner().invoke(app, ["push", str(folder), "someone/codec", "--private"])


@pytest.mark.parametrize("part", ["", "model"])
def test_the_codec_of_a_run_and_its_card(run, hub, part):
    (run / "model" / "notes.txt").write_text("mine")
    (run / "model" / "posterior.json").write_text("{}")
    result = push(run / part)
    assert result.output.strip() == "https://huggingface.co/someone/codec"
    names = ["README.md", "config.json", "model.safetensors", "posterior.json"]
    assert sorted(path.name for path in hub.iterdir()) == names
    card = (hub / "README.md").read_text()
    assert 'load_codec("someone/codec")' in card
    assert MODEL not in card
    audio = torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    ours, theirs = load_codec(str(run / "model")), load_codec(str(hub))
    torch.testing.assert_close(ours.encode(audio), theirs.encode(audio))


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_an_unfinished_codec_is_not_uploaded(run, hub, name):
    (run / "model" / name).unlink()
    error = push(run).exception
    assert isinstance(error, UserError)
    assert f"is no finished codec: {name} is missing" in str(error)
    assert not hub.exists()
