import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.core.schema import Recipe
from tokkata.core.stages import SAMPLE_CODES
from tokkata.eval import score as module
from tokkata.eval.score import FLOOR, GENERATED, NOISE, RECONSTRUCTED, UNTRAINED, Scores, evaluate, score
from tokkata.tests.eval.made_classifier import save_classifier
from tokkata.tests.made_networks import save_clap
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus

DURATION_S = 0.4


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch, coarse_codec: object, quick_embedding: object) -> None:
    monkeypatch.setattr(module, "load_codec_from_config", lambda *_: coarse_codec)
    monkeypatch.setattr(module, "fast", lambda codec: codec)
    monkeypatch.setattr("tokkata.eval.pitch.MAX_CLIPS", 3)


def recipe_in(runs_dir: Path, **changes: object) -> Recipe:
    values = {
        "name": "run",
        "runs_dir": runs_dir,
        "data": {"kind": "synth", "num_clips": 80, "duration_s": DURATION_S, "forms": ["note", "phrase"]},
        "codec": {"kind": "pocket"},
        "model": {"kind": "transformer"},
        "train": {"steps": 1},
        "generate": {"duration_s": DURATION_S},
        "eval": {"num_players": 2, "copies": False},
    }
    return Recipe.model_validate({**values, **changes})


def write_samples(recipe: Recipe, split: str = "train", num_clips: int = 10) -> None:
    """Plays the model: clips of `split` as generated, quiet noise as untrained."""
    corpus = load_corpus(recipe.data)
    folder = recipe.folder / "samples"
    rows = []
    for index, clip in enumerate([clip for clip in corpus.clips() if clip.split == split][:num_clips]):
        audio = read_clip(corpus, clip, 16000, 1).samples
        name = f"{index:05d}.wav"
        write_wav(folder / name, audio, 16000)
        noise = np.random.default_rng(index).normal(size=audio.shape).astype(np.float32)
        write_wav(folder / "untrained" / name, 0.02 * noise, 16000)
        rows.append({"file": name, "labels": dict(clip.labels), "source_id": clip.id})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples.jsonl").write_text(text)
    (folder / "untrained" / "samples.jsonl").write_text(text)


def by_name(scores: Scores) -> dict[str, module.ScoreRow]:
    return {row.name: row for row in scores.rows}


def test_the_rows_and_their_order(tmp_path: Path):
    recipe = recipe_in(tmp_path)
    write_samples(recipe)
    scores = score(recipe)
    assert [row.name for row in scores.rows] == [FLOOR, RECONSTRUCTED, GENERATED, UNTRAINED, NOISE]
    rows = by_name(scores)
    for better, worse in ((FLOOR, UNTRAINED), (GENERATED, UNTRAINED), (GENERATED, NOISE)):
        assert rows[better].value("fad") < rows[worse].value("fad")
    assert {row.num_clips for row in scores.rows} == {10}
    assert rows[GENERATED].value("pitch-accuracy") == 1.0
    assert rows[UNTRAINED].value("pitch-accuracy") < 0.5
    assert rows[NOISE].value("pitch-accuracy") is None
    assert rows[GENERATED].value("unigram-distance") < rows[NOISE].value("unigram-distance")
    assert len({tuple(one.name for one in row.scores) for row in scores.rows}) == 1
    for one in rows[GENERATED].scores:
        assert one.interval.low <= one.value <= one.interval.high, one.name
    assert "split 'valid'" in rows[FLOOR].note
    assert scores.skipped == []


def test_the_same_recipe_gives_the_same_scores(tmp_path: Path):
    recipe = recipe_in(tmp_path)
    write_samples(recipe)
    assert score(recipe) == score(recipe)


def test_real_clips_as_generated_reach_the_floor(tmp_path: Path):
    # The corpus splits by instrument, so clips of the test split itself are nearer than other instruments'.
    recipe = recipe_in(tmp_path)
    write_samples(recipe, split="test")
    rows = by_name(score(recipe))
    assert rows[GENERATED].value("fad") < rows[FLOOR].value("fad")


def test_clips_that_lent_their_labels_are_reconstructed_first(tmp_path: Path):
    recipe = recipe_in(tmp_path)
    write_samples(recipe, split="test", num_clips=3)
    sets = module.load_sets(recipe)
    assert set(sets.named(RECONSTRUCTED).names) == set(sets.named(GENERATED).sources)
    assert len(sets.reference) > 3


def test_without_a_second_split_the_reference_is_halved(tmp_path: Path):
    folder = tmp_path / "audio"
    for index in range(12):
        time = np.arange(8000) / 16000
        write_wav(folder / f"{index}.wav", 0.3 * np.sin(2 * np.pi * 50 * (index + 4) * time)[None], 16000)
    data = {"kind": "folder", "root": folder, "valid_fraction": 0.0, "test_fraction": 0.999}
    recipe = recipe_in(tmp_path, data=data)
    (recipe.folder / "samples").mkdir(parents=True)
    write_wav(recipe.folder / "samples" / "a.wav", np.full((1, 6400), 0.1, np.float32), 16000)
    (recipe.folder / "samples" / "samples.jsonl").write_text('{"file": "a.wav", "labels": {}}\n')
    scores = score(recipe)
    rows = by_name(scores)
    assert scores.reference.num_clips == 6
    assert "half of the split 'test'" in rows[FLOOR].note
    assert UNTRAINED not in rows
    # One clip cannot be extrapolated, and nothing there says what pitch it should have.
    assert rows[GENERATED].value("fad-inf") is None
    assert rows[GENERATED].score("pitch-accuracy") is None
    assert rows[GENERATED].value("unigram-distance") is None
    assert math.isfinite(rows[GENERATED].value("fad"))


def test_no_test_split_is_the_users_to_mend(tmp_path: Path):
    write_wav(tmp_path / "audio" / "a.wav", np.full((1, 6400), 0.1, np.float32), 16000)
    data = {"kind": "folder", "root": tmp_path / "audio", "valid_fraction": 0.0, "test_fraction": 0.0}
    recipe = recipe_in(tmp_path, data=data)
    (recipe.folder / "samples").mkdir(parents=True)
    write_wav(recipe.folder / "samples" / "a.wav", np.full((1, 6400), 0.1, np.float32), 16000)
    (recipe.folder / "samples" / "samples.jsonl").write_text('{"file": "a.wav", "labels": {}}\n')
    with pytest.raises(UserError, match="split 'test' of the corpus has no clip that can be read"):
        score(recipe)


def test_no_samples_is_the_users_to_mend(tmp_path: Path):
    with pytest.raises(UserError, match=r"no generated clips in .*samples: run the stage 'generate' first"):
        score(recipe_in(tmp_path))


def test_lost_samples_are_told(tmp_path: Path):
    recipe = recipe_in(tmp_path)
    write_samples(recipe)
    (recipe.folder / "samples" / "00003.wav").write_bytes(b"")
    scores = score(recipe)
    assert [(skip.set, skip.clip) for skip in scores.skipped] == [(GENERATED, "00003.wav")]
    assert any(warning.startswith("1 clip of the set 'generated'") for warning in scores.warnings)
    assert by_name(scores)[GENERATED].num_clips == 9


def test_few_frames_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = recipe_in(tmp_path, generate={"duration_s": 0.1})
    write_samples(recipe, num_clips=2)
    warnings = score(recipe).warnings
    assert any("'reconstructed' has 10 embedding frames, fewer than twice" in warning for warning in warnings)


def test_the_stage_writes_scores_and_report(tmp_path: Path):
    recipe = recipe_in(tmp_path)
    write_samples(recipe)
    (recipe.folder / "tokens").mkdir()
    (recipe.folder / "tokens" / "rejects.jsonl").write_text(
        '{"id": "b", "source": "bad.wav", "reason": "empty file (0 bytes)"}\n'
    )
    (recipe.folder / "logs").mkdir()
    (recipe.folder / "logs" / "train.jsonl").write_text(
        '{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n{"step": 2, "valid/loss": 4.5}\n'
    )
    evaluate(recipe)
    written = json.loads((recipe.folder / "eval" / "scores.json").read_text())
    assert [row["name"] for row in written["rows"]] == [FLOOR, RECONSTRUCTED, GENERATED, UNTRAINED, NOISE]
    for row in written["rows"]:
        by_score = {score["name"]: score for score in row["scores"]}
        assert by_score["fad"]["value"] >= 0.0
        detail = by_score["fad-inf"]["detail"]
        assert len(detail["sizes"]) == len(detail["distances"])
    assert written["embedding"] == {
        "name": "spectrum", "width": 8, "sample_rate": 16000, "resampler": "soxr HQ"
    }  # fmt: skip
    assert written["reference"]["split"] == "test"
    assert "torch" in written["versions"]
    page = (recipe.folder / "eval" / "report.html").read_text()
    assert page.count("<audio") == 2 * 4
    assert "bad.wav" in page
    assert "kind: synth" in page
    assert "Token pair distance" in page


def test_a_classifier_and_captions_are_used_where_there_are_any(tmp_path: Path):
    audio, networks = tmp_path / "audio", tmp_path / "networks"
    save_classifier(networks / "classifier", rate=16000)
    save_clap(networks / "clap")
    rows = ["file_name,caption,instrument,split"]
    for index in range(24):
        time = np.arange(6400) / 16000
        write_wav(audio / f"{index}.wav", 0.3 * np.sin(2 * np.pi * 50 * (index + 4) * time)[None], 16000)
        split = ("train", "valid", "test")[index % 3]
        rows.append(f"{index}.wav,a slow piano,{('organ', 'bass')[index % 2]},{split}")
    (audio / "metadata.csv").write_text("\n".join(rows) + "\n")
    settings = {
        "copies": False,
        "embedding": f"clap:{networks / 'clap'}",
        "classifier": str(networks / "classifier"),
        "classifier_label": "instrument",
    }
    recipe = recipe_in(tmp_path, data={"kind": "folder", "root": audio}, eval=settings)
    write_samples(recipe, split="test")
    rows = by_name(score(recipe))
    # The generated clips are those of the reference themselves, each made after its namesake.
    assert rows[GENERATED].value("kl-generated-reference") == pytest.approx(0.0, abs=1e-6)
    assert rows[NOISE].value("kl-generated-reference") > 0.0
    assert rows[FLOOR].value("kl-generated-reference") is None
    assert rows[FLOOR].value("kl-unpaired-generated-reference") is not None
    assert rows[GENERATED].score("label-accuracy").detail["clips"] == 8
    assert rows[NOISE].value("label-accuracy") is None
    assert len(rows[GENERATED].score("clap-score").detail["values"]) == 8
    assert rows[NOISE].score("clap-score") is None


def test_continued_training_clips_are_compared_with_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coarse_codec: object
):
    generate = {"duration_s": DURATION_S, "prompt_s": 0.1, "labels_from": "train", "temperature": 0.0}
    recipe = recipe_in(tmp_path, generate=generate)
    write_samples(recipe)
    clips = [clip for clip in load_corpus(recipe.data).clips() if clip.split == "train"]
    audio = [torch.from_numpy(read_clip(load_corpus(recipe.data), clip, 16000, 1).samples) for clip in clips]
    codes = [coarse_codec.encode(samples[None])[0].numpy() for samples in audio]

    class Store:
        info = SimpleNamespace(frame_rate=50.0)

        def __init__(self, folder: Path) -> None:
            assert folder == recipe.folder / "tokens"

        def split(self, name: str) -> SimpleNamespace:
            assert name == "train"
            return SimpleNamespace(
                column=lambda _: [clip.id for clip in clips],
                codes=lambda clip, start, num: codes[clip][:, start : start + num],
            )

    monkeypatch.setattr("tokkata.eval.measure_run.TokenStore", Store)
    rows = by_name(score(recipe))
    found = rows[GENERATED].score("memorised-exact")
    assert found.value > 0.9
    assert found.note == "prompts from the split 'train', temperature 0"
    assert found.detail["clips"] == 10
    assert rows[UNTRAINED].value("memorised-exact") < 0.5
    assert rows[FLOOR].score("memorised-exact") is None
    # Tokens that were kept count, not those of the audio: here all are wrong from the fifth frame on.
    kept = [np.where(np.arange(20) < 5, part[:, :20], 255).astype(np.int32) for part in codes]
    named = {f"{index:05d}.wav": part for index, part in enumerate(kept)}
    save_file(named, recipe.folder / "samples" / SAMPLE_CODES)
    assert by_name(score(recipe))[GENERATED].value("memorised-partial") == 0.0
