"""The recipes of models over single samples run from audio to report, as their headers' CPU lines ask for.

They run on a made corpus in that dataset's layout, with nothing changed but sizes and places.
"""

import json
import math
import shlex
from pathlib import Path

import pytest
import soundfile

from tokkata.core.recipe import load_recipe
from tokkata.tests.test_recipes import make_corpus
from tokkata.tokenize.store import TokenStore

ROOT = Path(__file__).parents[1]
SIZES = {
    "nsynth-wavenet": ["model.layers_per_stack=3", "model.residual_channels=8", "model.skip_channels=16"],
    "nsynth-samplernn": ["model.dim=16", "model.embedding_dim=8"],
    "maestro-samplernn": ["model.dim=16", "model.embedding_dim=8"],
}
SMALL = [
    "train.steps=3",
    "train.batch_size=2",
    "train.crop_s=0.02",
    "train.warmup_steps=1",
    "train.save_every=2",
    "generate.num_clips=3",
    "generate.duration_s=0.4",
]


def commands(name):
    """The lines of a header that run its recipe, without the first word."""
    lines = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line[1:] for line in lines if line.startswith("#   ")).replace("\\\n", " ")
    return [
        shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith(f"recipes/{name}.yaml")
    ]


@pytest.mark.parametrize("name", SIZES)
def test_a_headers_commands_can_be_given(name):
    as_it_stands, on_a_cpu = (load_recipe(ROOT / "recipes" / f"{name}.yaml", line) for line in commands(name))
    assert as_it_stands.train.precision == "bf16"
    assert on_a_cpu.train.precision == "no"
    assert type(on_a_cpu.model) is type(as_it_stands.model)
    assert [c.name for c in on_a_cpu.model.conditions] == [c.name for c in as_it_stands.model.conditions]


@pytest.mark.parametrize("name", SIZES)
def test_from_audio_to_report(name, tokkata, tmp_path):
    kind = name.partition("-")[0]
    on_a_cpu = commands(name)[1]
    root = f"data.root={make_corpus(kind, tmp_path / 'corpus')}"
    given = [*on_a_cpu, root, f"runs_dir={tmp_path}", *SIZES[name], *SMALL]
    for stage in ("tokenize", "train", "generate", "eval"):
        result = tokkata(stage, ROOT / "recipes" / f"{name}.yaml", *given)
        assert result.returncode == 0, result.stderr
    run = tmp_path / name
    info = TokenStore(run / "tokens").info
    assert (info.num_codebooks, info.codebook_size, info.hop_length) == (1, 256, 1)
    log = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    losses = [row[key] for row in log for key in row if key.endswith("loss")]
    assert losses == pytest.approx([math.log(256)] * len(losses), rel=0.15)
    lines = [json.loads(line) for line in (run / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [soundfile.info(run / "samples" / line["file"]).frames for line in lines] == [6400] * 3
    scores = json.loads((run / "eval" / "scores.json").read_text())
    rows = {row["name"]: {score["name"]: score["value"] for score in row["scores"]} for row in scores["rows"]}
    assert {"generated", "untrained", "real, other"} <= set(rows)
    assert math.isfinite(rows["generated"]["fad"])
    assert ("pitch-accuracy" in rows["generated"]) == (kind == "nsynth")
