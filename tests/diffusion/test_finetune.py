"""Fine-tuning of a Stable Audio: it begins as the source, learns, and is saved as ours and as diffusers'.

Shapes: B batch, D latent width, T frames.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableAudioDiTModel

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import load_recipe
from tokkata.diffusion import train as module
from tokkata.diffusion.generate import Settings, generate
from tokkata.diffusion.load import load_diffusion
from tokkata.diffusion.train import train_diffusion
from tokkata.tests.made_stable_audio import HOP, MAX_TOKENS, SAMPLE_RATE, save_stable_audio_pipeline
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.store import TokenStore

RECIPE = Path(__file__).parents[2] / "recipes" / "stable-audio-finetune.yaml"
MAX_FRAMES = 16
SECONDS = MAX_FRAMES * HOP / SAMPLE_RATE


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a tiny pipeline, and one of clips with captions, of half and of twice its length."""
    folder = tmp_path_factory.mktemp("made")
    save_stable_audio_pipeline(folder / "pipeline")
    rng = np.random.default_rng(0)
    rows = ["file_name,caption"]
    for number in range(16):
        length = round((0.5, 2)[number % 2] * MAX_FRAMES * HOP)
        samples = 0.1 * rng.normal(size=(2, length)).astype(np.float32)
        write_wav(folder / "corpus" / f"{number:02d}.wav", samples, SAMPLE_RATE)
        rows.append(f"{number:02d}.wav,a {('slow', 'loud')[number // 2 % 2]} piano")
    (folder / "corpus" / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "pipeline"


def settings_of(pipeline, tmp_path, *changed):
    return [
        f"runs_dir={tmp_path}",
        f"data.root={pipeline.parent / 'corpus'}",
        "data.valid_fraction=0.2",
        "data.test_fraction=0.2",
        f"codec.id={pipeline}",
        f"tokenize.features.0.encoder={pipeline}",
        f"tokenize.features.0.max_tokens={MAX_TOKENS}",
        f"model.source={pipeline}",
        "train.steps=3",
        "train.batch_size=4",
        "train.grad_accumulation=1",
        "train.warmup_steps=1",
        "train.precision='no'",
        "train.activation_checkpointing=false",
        f"train.crop_s={SECONDS}",
        "generate.num_clips=2",
        "generate.steps=2",
        f"generate.duration_s={SECONDS / 2}",
        "eval.embedding=logmel",
        "eval.num_players=1",
        *changed,
    ]


@pytest.fixture
def recipe_of(pipeline, tmp_path):
    """`recipe_of("model.…=…")`: the recipe over the made pipeline, whose stage `tokenize` is done."""

    def recipe(*changed):
        found = load_recipe(RECIPE, settings_of(pipeline, tmp_path, *changed))
        tokenize(found)
        return found

    return recipe


@pytest.fixture
def job_of(monkeypatch):
    """What `train_diffusion` hands to the training loop."""

    def job(recipe):
        handed = []
        monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
        train_diffusion(recipe)
        monkeypatch.undo()
        return handed[0]

    return job


def test_the_recipe_from_audio_to_both_layouts(pipeline, tmp_path, tokkata):
    for stage in ("tokenize", "train", "generate", "eval"):
        result = tokkata(stage, RECIPE, *settings_of(pipeline, tmp_path))
        assert result.returncode == 0, result.stderr
    run = tmp_path / "stable-audio-finetune"
    assert len(read_jsonl(run / "samples" / "samples.jsonl")) == 2
    told = tokkata(
        *("generate", run / "model", "--text", "a slow piano", "--cfg-scale", 3, "--steps", 2),
        *("--duration", SECONDS / 2, "--out", tmp_path / "heard"),
    )
    assert told.returncode == 0, told.stderr

    ours, theirs = load_diffusion(run / "model"), load_diffusion(run / "model" / "pipeline")
    source = load_diffusion(pipeline)
    settings = Settings(2, "dpm++2m")
    latents = generate(ours, 8, settings=settings)
    torch.testing.assert_close(generate(theirs, 8, settings=settings), latents)
    assert (generate(source, 8, settings=settings) - latents).abs().max() > 1e-4
    network = StableAudioDiTModel.from_pretrained(run / "model" / "pipeline" / "transformer")
    assert network.config.sample_size == MAX_FRAMES
    written = json.loads((run / "model" / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert written == json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text())


def test_it_begins_as_the_source_with_silence_after_short_clips(pipeline, recipe_of, job_of):
    recipe = recipe_of("model.sample_posterior=false", "model.condition_dropout=0.0")
    job = job_of(recipe)
    model, source = job.modules["model"], load_diffusion(pipeline)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    split = TokenStore(recipe.folder / "tokens").split("train")
    codec = load_codec(str(pipeline))
    silence = codec.encode_latents(torch.zeros(1, 2, MAX_FRAMES * HOP))[0]
    seen = set()
    for step in range(4):
        batch = job.batch(step, range(4))
        assert "mask" not in batch
        totals = batch["values/seconds_total"][:, 0].tolist()
        for latents, start, total in zip(
            batch["latents"], batch["values/seconds_start"][:, 0].tolist(), totals, strict=True
        ):
            first = round(start * SAMPLE_RATE / HOP)
            length = min(MAX_FRAMES, round(total * SAMPLE_RATE / HOP) - first)
            assert any(
                np.array_equal(latents[:, :length], split.latents(clip, first, length))
                for clip in range(len(split))
                if split.num_frames[clip] >= first + length
            )
            torch.testing.assert_close(latents[:, length:], silence[:, length:])
            seen.add(length)
    assert seen == {MAX_FRAMES // 2, MAX_FRAMES}
    assert int(job.phases[0].loss(job.modules, batch).weight) == 4 * MAX_FRAMES  # silence counts


def test_a_shorter_crop_is_what_the_model_knows_then(recipe_of):
    recipe = recipe_of(f"train.crop_s={SECONDS / 2}", "model.save_pipeline=false")
    train_diffusion(recipe)
    assert load_diffusion(recipe.folder / "model").network.max_frames == MAX_FRAMES // 2
    assert not (recipe.folder / "model" / "pipeline").exists()


def test_what_was_fine_tuned_is_tuned_further(recipe_of, tmp_path):
    first = recipe_of("name=first")
    train_diffusion(first)
    again = recipe_of("name=again", f"model.source={first.folder}", "model.save_pipeline=false")
    train_diffusion(again)
    assert load_diffusion(again.folder / "model").config == load_diffusion(first.folder / "model").config
    whole = recipe_of("name=again", f"model.source={first.folder}")
    with pytest.raises(UserError, match=r"model.save_pipeline: .* is no pipeline of Stable Audio"):
        train_diffusion(whole)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["train.crop_s=9"], r"train.crop_s: 9 s are more than the 0.16 s of model.source .*: lower it"),
        (["tokenize.features=[]"], r"is told 'text', which the tokens do not have: add {kind: text, name"),
        (["model.source=no/model"], "model no/model is neither a folder nor"),
    ],
)
def test_what_does_not_fit_is_told(recipe_of, monkeypatch, changed, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = recipe_of(*changed)
    with pytest.raises(UserError, match=told):
        train_diffusion(recipe)


def test_latents_of_another_codec_are_refused(recipe_of, tmp_path):
    save_stable_audio_pipeline(tmp_path / "other")
    recipe = recipe_of(f"codec.id={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"the latents do not fit model.source .*: codec id is .*other, but"):
        train_diffusion(recipe)
