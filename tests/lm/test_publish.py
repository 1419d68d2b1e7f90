"""`tokkata push`: what of a run or a model goes to the Hub, and that it is all that is needed there."""

import shutil

import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError

from tokkata.core.card import MODEL
from tokkata.core.errors import UserError
from tokkata.core.files import write_json, write_text
from tokkata.core.recipe import dump_recipe
from tokkata.core.run import stage_states
from tokkata.lm.card import write_card
from tokkata.lm.load import load_lm
from tokkata.lm.publish import NUM_CLIPS, push_to_hub
from tokkata.lm.sample import sample
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tokenize.features.clip_conditions import conditions_of


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What is uploaded, in a folder; `hub["settings"]` is how."""
    found = {"folder": tmp_path / "hub"}

    class Hub:
        def create_repo(self, name, **settings):
            found["settings"] = {"name": name, **settings}

        def upload_folder(self, *, folder_path, repo_id, repo_type, **settings):
            assert (repo_id, repo_type) == (found["settings"]["name"], "model")
            shutil.copytree(folder_path, found["folder"])

    monkeypatch.setattr("tokkata.core.hub_upload.HfApi", Hub)
    return found


@pytest.fixture
def run(lm_recipe, write_tokens, told_codec):
    """A run with all its stages done but eval."""
    recipe = lm_recipe(model={"conditions": ["pitch"]}, generate={"num_clips": NUM_CLIPS + 2})
    store = write_tokens(recipe, train=4, valid=2, test=6)
    conditions = conditions_of(store, store.split("train"), recipe.model.conditions)
    torch.manual_seed(0)
    lm = TransformerLM(
        TransformerConfig.for_codec(
            {**store.info.__dict__}, conditions, dim=16, num_layers=1, num_heads=2, window_frames=50
        )
    )
    lm.save_pretrained(recipe.folder / "model")
    write_card(recipe.folder / "model" / "README.md", recipe, lm, {"loss": 2.5})
    sample(recipe)
    write_text(recipe.folder / "recipe.yaml", dump_recipe(recipe))
    pretend_done(recipe)
    return recipe


def pretend_done(recipe):
    for name in ("tokenize", "train", "generate"):
        record = next(state.record for state in stage_states(recipe) if state.stage.name == name)
        marker = recipe.folder / ".stages" / f"{name}.json"
        write_json(marker, {"status": "done", "seconds": 1.0, "record": record})


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


MODEL_FILES = ["README.md", "config.json", "model.safetensors"]


def test_a_run_gives_its_model_its_card_and_a_few_clips(run, hub):
    address = push_to_hub(run.folder, "someone/notes", private=True)
    assert address == "https://huggingface.co/someone/notes"
    assert hub["settings"] == {
        "name": "someone/notes",
        "repo_type": "model",
        "private": True,
        "exist_ok": True,
    }
    clips = [f"samples/{i:05d}.wav" for i in range(NUM_CLIPS)]
    assert files(hub["folder"]) == MODEL_FILES + clips
    card = (hub["folder"] / "README.md").read_text()
    for clip in clips:
        assert (
            f'<audio controls src="https://huggingface.co/someone/notes/resolve/main/{clip}"></audio>' in card
        )
    assert card.index("## Listen\npitch 6") < card.index("## Data")
    assert "tokkata generate someone/notes --num" in card
    assert MODEL not in card
    assert "| loss | 2.5000 |" in card


def test_what_is_uploaded_is_all_that_a_model_needs(run, hub):
    push_to_hub(run.folder, "someone/notes", private=False)
    mine, theirs = load_lm(run.folder), load_lm(hub["folder"])
    assert mine.config == theirs.config
    assert theirs.config.codec["id"] == "made up"
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in mine.state_dict().items())


def test_the_run_itself_is_left_as_it_is(run, hub):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    push_to_hub(run.folder / "model", "someone/notes", private=False)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_clips_of_another_model_are_left_out(run, hub, capsys):
    (run.folder / ".stages" / "generate.json").unlink()
    push_to_hub(run.folder, "someone/notes", private=False)
    assert files(hub["folder"]) == MODEL_FILES
    assert "may not be of this model (run generate again): left out" in capsys.readouterr().err
    assert "## Listen" not in (hub["folder"] / "README.md").read_text()


def test_a_model_alone_can_be_pushed(run, hub, tmp_path):
    shutil.copytree(run.folder / "model", tmp_path / "mine")
    push_to_hub(tmp_path / "mine", "someone/notes", private=False)
    assert files(hub["folder"]) == MODEL_FILES


def test_a_codec_that_nobody_else_has_is_told(run, hub, capsys, tmp_path):
    lm = load_lm(run.folder)
    object.__setattr__(lm.config, "codec", {**lm.config.codec, "id": str(tmp_path)})
    lm.save_pretrained(run.folder / "model")
    push_to_hub(run.folder, "someone/notes", private=False)
    assert f"its codec is the folder {tmp_path}, which is not uploaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "holds no model"),
        ("README.md", "is no finished model: README.md is missing"),
        ("model.safetensors", "is no finished model: model.safetensors is missing"),
    ],
)
def test_half_a_model_is_not_uploaded(run, hub, missing, sentence):
    (run.folder / "model" / missing).unlink()
    with pytest.raises(UserError, match=sentence):
        push_to_hub(run.folder, "someone/notes", private=False)
    assert "settings" not in hub


def test_what_is_no_language_model_is_not_uploaded(tmp_path, hub):
    write_json(tmp_path / "config.json", {"model_type": "dac"})
    with pytest.raises(UserError, match="holds no model of Tokkata that generates, nothing is"):
        push_to_hub(tmp_path, "someone/notes", private=False)
    with pytest.raises(UserError, match="there is no folder"):
        push_to_hub(tmp_path / "none", "someone/notes", private=False)


def test_nobody_is_logged_in(run, monkeypatch, tokkata):
    def create_repo(self, *_, **__):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr("tokkata.core.hub_upload.HfApi.create_repo", create_repo)
    told = tokkata("push", run.folder, "someone/notes")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "nobody is logged in at the Hugging Face Hub: run `hf auth login`\n"


def test_a_name_that_is_none(run, tokkata):
    told = tokkata("push", run.folder, "not a name")
    assert told.returncode == 2
    assert told.stderr.startswith("'not a name' is no name of a repository: ")
    assert told.stderr.count("\n") == 1
