"""`tokkata push` of a diffusion model, and `push_to_hub`: all that `load_diffusion` needs, and the scores."""

import shutil

import pytest
import torch

from tokkata.core.card import MODEL, fill_scores
from tokkata.core.files import write_json, write_text
from tokkata.core.recipe import dump_recipe
from tokkata.core.run import stage_states
from tokkata.diffusion.load import load_diffusion
from tokkata.diffusion.sample import sample
from tokkata.diffusion.train import train_diffusion
from tokkata.lm.publish import push_to_hub


class Hub:
    """Takes what is uploaded into a folder."""

    def __init__(self, folder):
        self.folder = folder

    def create_repo(self, name=None, **settings):
        self.name = name or settings["repo_id"]
        return self

    @property
    def repo_id(self):
        return self.name

    def upload_folder(self, *, folder_path, repo_id, **settings):
        assert repo_id == self.name
        shutil.copytree(folder_path, self.folder)


@pytest.fixture
def run(diffusion_recipe, write_latents):
    """A run with all its stages done, the last in its card alone."""
    recipe = diffusion_recipe(model={"conditions": ["pitch"]})
    write_latents(recipe, train=8, valid=2, test=4)
    train_diffusion(recipe)
    sample(recipe)
    fill_scores(recipe.folder / "model" / "README.md", "| | fad |\n|---|---|\n| generated | 1.25 |")
    write_text(recipe.folder / "recipe.yaml", dump_recipe(recipe))
    for name in ("tokenize", "train", "generate"):
        record = next(state.record for state in stage_states(recipe) if state.stage.name == name)
        marker = recipe.folder / ".stages" / f"{name}.json"
        write_json(marker, {"status": "done", "seconds": 1.0, "record": record})
    return recipe.folder


def same(one, other):
    assert one.config == other.config
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_a_run_gives_its_model_its_scores_and_a_few_clips(run, tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("tokkata.core.hub_upload.HfApi", lambda: hub)
    assert push_to_hub(run, "someone/notes", private=True) == "https://huggingface.co/someone/notes"
    card = (hub.folder / "README.md").read_text()
    assert "| generated | 1.25 |" in card
    assert "| loss_at_0.5 |" in card
    assert "tokkata generate someone/notes --num" in card
    assert MODEL not in card
    assert "## Listen\npitch 6" in card
    assert sorted(path.name for path in (hub.folder / "samples").iterdir()) == [
        f"{i:05d}.wav" for i in range(4)
    ]
    assert "its codec is the folder" in capsys.readouterr().err
    same(load_diffusion(hub.folder), load_diffusion(run))


def test_a_model_in_python_is_pushed(run, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", lambda **_: hub)
    model = load_diffusion(run)
    model.push_to_hub("someone/notes")
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in hub.folder.iterdir()}
    assert "conditions: pitch" in (hub.folder / "README.md").read_text()
    same(load_diffusion(hub.folder), model)
