"""`tokkata codec eval` on any codecs: what is asked for, what is written, and how mistakes end."""

import json
import sys

import pytest
from typer.testing import CliRunner

from tokkata.cli import app
from tokkata.core.errors import UserError
from tokkata.eval.fidelity.commands import Wanted, find_items, load_codecs, wanted_codec
from tokkata.tests.made_networks import save_oobleck


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("pocket", Wanted("pocket", "pocket")),
        ("mine=pocket", Wanted("mine", "pocket")),
        ("dac:44khz#4", Wanted("dac:44khz#4", "dac:44khz", None, 4)),
        ("a=facebook/encodec_24khz@6", Wanted("a", "facebook/encodec_24khz", 6.0)),
        ("encodec:24khz@1.5", Wanted("encodec:24khz@1.5", "encodec:24khz", 1.5)),
    ],
)
def test_how_codecs_are_named(word, expected):
    assert wanted_codec(word) == expected


def test_folders_are_taken_as_they_are_written(tmp_path):
    folder = tmp_path / "a=b@6#2"
    folder.mkdir()
    assert wanted_codec(str(folder)) == Wanted("a=b@6#2", str(folder))
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    assert wanted_codec(str(model)) == Wanted("run", str(model))
    assert wanted_codec(f"mine={model}") == Wanted("mine", str(model))
    assert wanted_codec(f"{model}#3") == Wanted(f"{model}#3", str(model), None, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["@6"], "'@6' names no codec"),
        (["encodec:24khz@1.5.2"], r"'encodec:24khz@1\.5\.2': the bandwidth '1\.5\.2' is no number"),
        (["pocket", "pocket"], "two codecs would be called 'pocket'"),
        (["pocket#99"], "num_codebooks cannot be 99"),
        (["no/where"], "no/where"),
    ],
)
def test_what_cannot_be_loaded(words, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        load_codecs(words)


def invoke(*words):
    return CliRunner().invoke(app, ["codec", "eval", *map(str, words)])


def test_codecs_of_two_kinds_on_a_folder(audio_folder, tiny_codec, tmp_path, no_opus, capsys):
    out = tmp_path / "out"
    vae = save_oobleck(tmp_path / "vae")
    words = [f"rvq={tiny_codec}", f"few={tiny_codec}#2", vae, "--data", audio_folder, "--out", out]
    result = invoke(*words, "--players", "1")
    assert result.exit_code == 0, result.output
    assert "| rvq | 16 | 1.20 |" in result.output
    assert "| few | 16 | 0.60 |" in result.output
    assert "| vae | 8 stereo | – |" in result.output
    assert "left out: broken.wav: " in result.output
    written = json.loads((out / "scores.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["rvq", "few", "vae"]
    assert written["num_clips"] == 3
    assert written["embedding"] == "logmel"
    assert {item["name"] for item in written["rejected"]} == {"broken.wav", "silent.wav"}
    assert (out / "report.html").read_text().count("<audio") == 4


def test_clips_are_chosen_by_the_seed(audio_folder):
    all_items, told = find_items(audio_folder, 100, 0)
    assert told == str(audio_folder)
    chosen = {tuple(item.name for item in find_items(audio_folder, 2, seed)[0]) for seed in range(8)}
    assert len(chosen) > 1
    assert all(len(names) == 2 and list(names) == sorted(names) for names in chosen)
    assert len(all_items) == 5


def test_a_recipes_corpus_is_read_in_its_reference_split(write_recipe, tmp_path):
    path = write_recipe(tmp_path, data={"kind": "synth", "num_clips": 20, "duration_s": 0.3})
    items, told = find_items(path, 100, 0)
    assert told == f"the split 'test' of {path}"
    assert 0 < len(items) < 20
    assert items[0].source() is not None
    none = write_recipe(tmp_path, data={"kind": "folder", "path": str(tmp_path)})
    with pytest.raises(UserError):
        find_items(none, 100, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pocket"], "what is pocket to be measured on? Give --data DIR"),
        (["recipe.yaml", "--out", "x"], "--out is for --data"),
        (["recipe.yaml", "--max-clips", "3"], "--max-clips is for --data"),
        (["pocket", "--data", "EMPTY"], "has no audio files"),
        (["pocket", "--data", "MISSING"], "is not a folder"),
        (["pocket", "--data", "AUDIO", "--out", "AUDIO/x"], "--out"),
        (["pocket", "--data", "AUDIO", "--embedding", "ears"], "there is no embedding 'ears'"),
    ],
)
def test_mistakes_end_in_a_sentence(words, message, audio_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tokkata"])
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": "empty", "MISSING": "missing", "AUDIO": "audio"}
    for short, name in names.items():
        words = [word.replace(short, str(tmp_path / name)) for word in words]
    result = invoke(*words)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
