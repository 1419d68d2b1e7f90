"""Stage `generate`, card and publishing: conditions of real clips, tokens of any length, all of a model.

Shapes: B clips, L frames, V tokens.
"""

import dataclasses
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml

from tokkata.core.card import MODEL
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import check_recipe
from tokkata.gan.card import write_card
from tokkata.gan.conditions.examples import examples_of
from tokkata.gan.conditions.prepared import TOKENS, one_hot
from tokkata.gan.conditions.told import ClipTold
from tokkata.gan.gan_model import GanConfig, GanModel
from tokkata.gan.generate import generate
from tokkata.gan.load import load_gan
from tokkata.gan.sample import choose_clips, sample
from tokkata.lm.publish import push_to_hub
from tokkata.tests.gan.made_notes import NUM_SAMPLES, RATE, write_notes
from tokkata.tests.gan.tiny_gans import NUM_TOKENS, SECTIONS, make_gan
from tokkata.tokenize.store import TokenStore

CROP = 1024
HOP = 32
PITCH = Condition("pitch", "label", values=(60, 61, 62))


@pytest.fixture
def make_run(tmp_path):
    """`make_run("gansynth", generate={…})`: a recipe whose run has notes and a model with random weights."""

    def make(kind, conditions=(), **settings):
        recipe = check_recipe(
            {
                "name": kind,
                "runs_dir": str(tmp_path),
                "data": {"kind": "synth"},
                "codec": {"kind": "linear", "sample_rate_hz": RATE},
                "tokenize": {"store": "latents"},
                "model": SECTIONS[kind].model_dump(mode="json"),
                "train": {"steps": 3, "crop_s": CROP / RATE},
                "generate": {"num_clips": 5, "duration_s": CROP / RATE, "batch_size": 2} | settings,
            }
        )
        write_notes(recipe, train=6, test=4)
        store = TokenStore(recipe.folder / "tokens")
        torch.manual_seed(1)  # the baseline's is that of the recipe, 0
        config = GanConfig(
            section=recipe.model,
            codec=dataclasses.asdict(store.info),
            num_frames=CROP,
            conditions=Conditions(tuple(conditions)),
        )
        told = ClipTold(store, store.split("train"), config, recipe.folder)
        model = GanModel(dataclasses.replace(config, examples=examples_of(told, config.conditions)))
        model.fit(0.3 * torch.randn(4, 1, CROP))
        model.save_pretrained(recipe.folder / "model")
        write_card(recipe.folder / "model" / "README.md", recipe, model.eval(), {"silent": 0.125})
        return recipe

    return make


def audio(path):
    return soundfile.read(path, dtype="float32")[0]


def test_clips_are_told_what_real_ones_are(make_run):
    recipe = make_run("gansynth", [PITCH])
    sample(recipe)
    folder = recipe.folder / "samples"
    rows = read_jsonl(folder / "samples.jsonl")
    assert [row["file"] for row in rows] == [f"{i:05d}.wav" for i in range(5)]
    test = TokenStore(recipe.folder / "tokens").split("test")
    pitches = dict(zip(test.column("id"), test.column("pitch"), strict=True))
    assert all(row["labels"] == {"pitch": pitches[row["source_id"]]} for row in rows)
    assert {row["source_id"] for row in rows} == set(pitches)  # all of the split, then from the beginning
    assert rows[4]["source_id"] == rows[0]["source_id"]
    model = load_gan(recipe.folder)
    told = {"pitch": [row["labels"]["pitch"] for row in rows]}
    for row, latents in zip(rows, generate(model, CROP, conditions=told), strict=True):
        np.testing.assert_allclose(
            audio(folder / row["file"]), latents[0].clamp(-1, 1).numpy(), atol=2 / 32768
        )


def test_the_untrained_are_told_the_same_and_made_from_the_same_noise(make_run):
    recipe = make_run("wavegan", num_clips=2)
    sample(recipe)
    trained, untrained = recipe.folder / "samples", recipe.folder / "samples" / "untrained"
    assert read_jsonl(trained / "samples.jsonl") == read_jsonl(untrained / "samples.jsonl")
    first = audio(untrained / "00000.wav")
    assert not np.allclose(first, audio(trained / "00000.wav"), atol=1e-3)
    sample(recipe)
    np.testing.assert_array_equal(audio(untrained / "00000.wav"), first)


def test_clips_that_are_too_long_are_refused_at_once(make_run):
    recipe = make_run("wavegan", duration_s=1.0)
    with pytest.raises(
        UserError, match=r"^1 s are more than the 0\.128 s that this wavegan makes: ask for shorter clips$"
    ):
        sample(recipe)
    assert not (recipe.folder / "samples").exists()


class Numbered:
    """Tokens that say which frame they are of, and those of silence after a clip's end."""

    conditions = (Condition(TOKENS, "sequence", width=NUM_TOKENS),)
    SILENCE = 0

    def given(self, ids, starts, num_samples):
        length = -(-num_samples // HOP)
        frames = torch.arange(length) + torch.tensor(starts)[:, None] // HOP
        tokens = torch.where(frames < -(-NUM_SAMPLES // HOP), 1 + frames * 3 // 125, self.SILENCE)
        return {TOKENS: one_hot(tokens, NUM_TOKENS)}


@pytest.fixture
def numbered(monkeypatch):
    monkeypatch.setattr("tokkata.gan.conditions.told.load_prepared", lambda *_: Numbered())


@pytest.mark.parametrize("num_samples", [512, CROP, 2500, NUM_SAMPLES])
def test_tokens_are_those_of_the_real_clip_as_far_as_it_goes(make_run, numbered, num_samples):
    recipe = make_run("vqcpc_gan", [PITCH, *Numbered.conditions], duration_s=num_samples / RATE)
    store = TokenStore(recipe.folder / "tokens")
    clips = choose_clips(store, load_gan(recipe.folder), recipe.generate, recipe.folder)
    expected = Numbered().given(["a"], [0], max(num_samples, CROP))[TOKENS].values
    assert torch.equal(clips.given[TOKENS].values, expected.expand(5, -1, -1))


def test_shorter_real_clips_are_drawn_out(make_run, numbered):
    recipe = make_run("vqcpc_gan", [PITCH, *Numbered.conditions], duration_s=2 * NUM_SAMPLES / RATE)
    store = TokenStore(recipe.folder / "tokens")
    clips = choose_clips(store, load_gan(recipe.folder), recipe.generate, recipe.folder)
    tokens = clips.given[TOKENS].values.argmax(-1)
    assert tokens.shape == (5, 2 * NUM_SAMPLES // HOP)
    assert Numbered.SILENCE not in tokens  # no silence after the end
    counts = torch.bincount(tokens[0], minlength=4)[1:].tolist()
    assert counts[0] < counts[1] < 2.5 * counts[0]  # the attack is as it was
    assert sum(counts) == 250
    sample(recipe)
    assert soundfile.info(recipe.folder / "samples" / "00000.wav").frames == 2 * NUM_SAMPLES


def test_examples_say_what_clips_are_told(make_run, numbered):
    recipe = make_run("vqcpc_gan", [PITCH, *Numbered.conditions])
    examples = load_gan(recipe.folder).config.examples
    assert [one["id"] for one in examples] == [f"train-{i:02d}" for i in range(6)]
    assert [one["told"]["pitch"] for one in examples] == [60, 61, 62] * 2
    assert examples[0]["told"][TOKENS] == [1] * 32


# --------------------------------------------------------------------------------------------------- the card


def test_what_the_card_tells(make_run):
    recipe = make_run("gansynth", [PITCH])
    text = (recipe.folder / "model" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["library_name"], "gan" in front["tags"]) == ("tokkata", True)
    weights = sum(p.numel() for p in load_gan(recipe.folder).parameters())
    for fact in [
        "# gansynth\n",
        f"| parameters | {weights:,}, of the generator alone |",
        "| image | 2 × 32 × 32, instantaneous_frequency |",
        "channels [8, 8]",
        "loss wgan_gp gradient_weight 10.0 drift_weight 0.001",
        "`linear:8000`, revision not pinned: 8000 Hz, 8000 frames/s of 1 numbers",
        "3 steps of the discriminator with 16 clips of 0.128 s",
        "- `pitch`: one of `60`, `61`, `62`\n",
        "What is not said is that of a training clip",
        "| silent | 0.1250 |",
        "## Scores\nNot evaluated yet.",
        f"tokkata generate {MODEL} --num 4 --duration 0.128 --label pitch=60\n",
        f"tokkata interpolate {MODEL} --from 0 --to 1 --label pitch=60\n",
        "latents = generate(model, num_frames=1024, seed=0)",
        "- Its clips last 0.128 s; shorter ones are their beginnings.\n",
        "kind: gansynth",
    ]:
        assert fact in text, fact


def test_the_card_says_how_numbers_and_tokens_are_told(make_run, numbered, tmp_path):
    recipe = make_run("vqcpc_gan", [PITCH, *Numbered.conditions])
    text = (recipe.folder / "model" / "README.md").read_text()
    assert "--duration 0.128 --label pitch=60\n" in text
    assert "- `tokens`: one of 4 tokens for each frame of the spectrogram\n" in text
    assert "- It was trained on clips of 0.128 s. In longer ones" in text
    write_card(tmp_path / "card.md", recipe, make_gan("drumgan"), {})
    text = (tmp_path / "card.md").read_text()
    assert "--label brightness=0.8\n" in text
    assert "- `warmth`: a number from 0 to 1\n" in text
    assert "There was no held-out clip to validate on." in text


def test_the_python_of_the_card_runs(make_run):
    recipe = make_run("gansynth", [PITCH])
    text = (recipe.folder / "model" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace(MODEL, str(recipe.folder))
    found = {}
    exec(code, found)
    assert found["audio"].shape == (1, 1, CROP)


class Hub:
    """Takes what is uploaded into a folder."""

    def __init__(self, folder):
        self.folder = folder

    def create_repo(self, name, **settings):
        pass

    def upload_folder(self, *, folder_path, **settings):
        shutil.copytree(folder_path, self.folder)


def test_a_pushed_model_is_all_there(make_run, tmp_path, monkeypatch):
    recipe = make_run("gansynth", [PITCH])
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("tokkata.core.hub_upload.HfApi", lambda: hub)
    push_to_hub(recipe.folder, "someone/notes", private=True)
    card = (hub.folder / "README.md").read_text()
    assert "tokkata generate someone/notes --num" in card
    assert MODEL not in card
    one, other = load_gan(hub.folder), load_gan(recipe.folder)
    assert one.config == other.config
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
