"""MusicGen's recipes from a folder to a report, on a tiny corpus and tiny networks: only sizes differ."""

import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import MusicgenForConditionalGeneration, T5Config, T5EncoderModel

from tokkata.core.files import read_jsonl
from tokkata.core.recipe import load_recipe
from tokkata.lm.musicgen.conversion import to_musicgen
from tokkata.lm.transformer import TransformerLM
from tokkata.tests.made_corpora import write_noise
from tokkata.tests.made_musicgen import made_musicgen, save_encodec
from tokkata.tests.made_networks import save_t5
from tokkata.tokenize.codec import load_codec

RECIPES = Path(__file__).parents[3] / "recipes"
STAGES = ("tokenize", "train", "generate", "eval")

SIZES = [
    "train.steps=4",
    "train.batch_size=4",
    "train.crop_s=0.4",
    "train.warmup_steps=1",
    "train.precision=no",
    "generate.num_clips=3",
    "generate.duration_s=0.3",
    "eval.num_players=1",
    "data.test_fraction=0.3",
    "data.valid_fraction=0.2",
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders in the hub's layout, a codec, a text encoder and a MusicGen that names both, and a corpus."""
    folder = tmp_path_factory.mktemp("hub")
    t5 = save_t5(folder / "t5", dim=24)
    save_encodec(folder / "encodec")
    model = made_musicgen(text_config=T5Config.from_pretrained(t5), names=(str(t5), str(folder / "encodec")))
    model.text_encoder.load_state_dict(T5EncoderModel.from_pretrained(t5).state_dict())
    encodec = load_codec(str(folder / "encodec")).model
    model.audio_encoder.load_state_dict(encodec.state_dict())
    model.save_pretrained(folder / "musicgen")
    names = (str(t5), str(folder / "encodec"))
    made_musicgen(melody=True, text_config=T5Config.from_pretrained(t5), names=names).save_pretrained(
        folder / "melody"
    )
    rows = ["file_name,caption"]
    for i in range(16):
        write_noise(folder / "corpus" / f"slow_piano-{i:02d}.wav", duration_s=0.5, sample_rate=32000)
        rows.append(f"slow_piano-{i:02d}.wav,a {('slow', 'loud')[i % 2]} {('piano', 'drum')[i // 2 % 2]}")
    (folder / "corpus" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def overrides(hub, runs, name, *more):
    return [
        f"name={name}",
        f"runs_dir={runs}",
        f"data.root={hub / 'corpus'}",
        f"codec.id={hub / 'encodec'}",
        "codec.bandwidth_kbps=1.21",
        f"tokenize.features.0.encoder={hub / 't5'}",
        *SIZES,
        *more,
    ]


def finish(tokkata, recipe, changed):
    for stage in STAGES:
        result = tokkata(stage, RECIPES / recipe, *changed)
        assert result.returncode == 0, result.stderr


def check_samples(run):
    lines = read_jsonl(run / "samples" / "samples.jsonl")
    assert len(lines) == 3
    for line in lines:
        with wave.open(str(run / "samples" / line["file"])) as audio:
            assert (audio.getframerate(), audio.getnframes()) == (32000, 9600)
    assert (run / "eval" / "report.html").exists()


def test_whole_fine_tuning(tokkata, hub, tmp_path):
    changed = overrides(hub, tmp_path, "whole", f"model.init_from={hub / 'musicgen'}")
    finish(tokkata, "musicgen-finetune.yaml", changed)
    run = tmp_path / "whole"
    check_samples(run)
    source = TransformerLM.from_musicgen(hub / "musicgen")
    tuned = TransformerLM.from_pretrained(run / "model")
    text = tuned.config.conditions["text"]
    assert text.feature["encoder"] == str(hub / "t5")
    assert text.feature["revision"] is not None  # the source knew none, the tokens do
    assert (tuned.config.delays, tuned.config.window_frames) == ((0, 1, 2, 3), 1500)
    assert tuned.config.dropout == source.config.dropout > 0
    before, after = source.state_dict(), tuned.state_dict()
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    # What was tuned goes back to transformers, with its encoders.
    to_musicgen(tuned).save_pretrained(tmp_path / "exported")
    exported = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert torch.equal(exported.enc_to_dec_proj.bias, tuned.conditioner.projections["text"].bias)
    losses = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in losses if "loss" in line)


def test_fine_tuning_with_adapters_and_captions_from_names(tokkata, hub, tmp_path):
    more = [f"model.init_from={hub / 'musicgen'}", "model.lora.rank=2", "train.lr=2e-4"]
    more += ["data.metadata=false", "data.caption_from_name=true"]
    finish(tokkata, "musicgen-finetune.yaml", overrides(hub, tmp_path, "lora", *more))
    run = tmp_path / "lora"
    check_samples(run)
    source = TransformerLM.from_musicgen(hub / "musicgen")
    tuned = TransformerLM.from_pretrained(run / "model")
    tokens = torch.randint(0, 64, (2, 4, 8))
    by_peft = PeftModel.from_pretrained(source, run / "model" / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(by_peft.logits(tokens), tuned.logits(tokens), rtol=0, atol=1e-4)
    # The resolved recipe runs again, and finds all done.
    for stage in STAGES:
        assert "already done" in tokkata(stage, run / "recipe.yaml").stderr


def test_fine_tuning_a_melody_model(tokkata, hub, tmp_path):
    features = f"tokenize.features=[{{kind: melody}}, {{kind: text, encoder: {hub / 't5'}}}]"
    changed = overrides(hub, tmp_path, "melody", f"model.init_from={hub / 'melody'}")
    finish(tokkata, "musicgen-finetune.yaml", [one for one in changed if "features" not in one] + [features])
    run = tmp_path / "melody"
    check_samples(run)
    conditions = TransformerLM.from_pretrained(run / "model").config.conditions
    assert conditions.names == ["melody", "text"]
    assert conditions["melody"].repeat


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "codec.stereo=true",
            "tokens do not fit model.init_from .*: codec stereo is True, but False is needed",
        ),
        (
            "model.conditions=[text]",
            "model.conditions names 'text', which model.init_from .* is told already",
        ),
        (
            "tokenize.features=[]",
            "is told 'text', which the tokens do not have: add {kind: text, name: text, enc",
        ),
    ],
)
def test_what_does_not_fit(tokkata, hub, tmp_path, change, told):
    changed = overrides(hub, tmp_path, "wrong", f"model.init_from={hub / 'musicgen'}", change)
    assert tokkata("tokenize", RECIPES / "musicgen-finetune.yaml", *changed).returncode == 0
    result = tokkata("train", RECIPES / "musicgen-finetune.yaml", *changed)
    assert result.returncode == 2
    assert re.search(told, result.stderr.replace("\n", " "))
    assert "Traceback" not in result.stderr


def test_from_scratch(tokkata, hub, tmp_path):
    small = ["model.dim=32", "model.num_layers=2", "model.num_heads=2", "train.ema_every=2"]
    finish(tokkata, "musicgen-small-from-scratch.yaml", overrides(hub, tmp_path, "scratch", *small))
    run = tmp_path / "scratch"
    check_samples(run)
    # It is a MusicGen: transformers takes it.
    lm = TransformerLM.from_pretrained(run / "model")
    model = to_musicgen(lm)
    assert isinstance(model, MusicgenForConditionalGeneration)
    back = TransformerLM.from_musicgen(model)
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in lm.state_dict().items())


def test_from_scratch_has_the_published_shape():
    """What `transformers` calls MusicGen by default is the small one."""
    from transformers import MusicgenDecoderConfig

    recipe, published = load_recipe(RECIPES / "musicgen-small-from-scratch.yaml"), MusicgenDecoderConfig()
    model = recipe.model
    assert model.dim == published.hidden_size
    assert model.num_layers == published.num_hidden_layers
    assert model.num_heads == published.num_attention_heads
    assert model.dropout == published.dropout
    assert 4 * model.dim == published.ffn_dim
    assert (recipe.train.steps, recipe.train.batch_size) == (1_000_000, 192)
