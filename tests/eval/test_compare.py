"""`tokkata eval --generated …` and `tokkata stats …`: what is written, and the sentence for each mistake."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from tokkata.cli import app
from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.eval.embedding import Embedding
from tokkata.eval.reference_stats import load_stats


def run(*words: object) -> str:
    """The output of a command; raises what it raises."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def made(tmp_path: Path, tone: SimpleNamespace, quick_embedding: Embedding) -> Path:
    """The folders real, good (other notes) and bad (notes in noise), each with 16 clips."""
    rng = np.random.default_rng(0)
    for name, noise in (("real", 0.0), ("good", 0.0), ("bad", 0.03)):
        for index in range(16):
            samples = tone.at(48 + rng.uniform(0, 24), 0.5 + 0.1 * (index % 3))
            path = tmp_path / name / ("deep" if index % 2 else "") / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, samples + noise * rng.standard_normal(samples.shape), 16000)
    return tmp_path


def compare(made: Path, *more: object, generated: tuple[str, ...] = ("good", "bad")) -> str:
    systems = [f"{name}={made / name}" for name in generated]
    fixed = ["--reference", made / "real", "--out", made / "out", "--cache", made / "cache", "--players", 3]
    return run("eval", "--generated", *systems, "--embedding", "pocket", *fixed, *more)


def scores_of(made: Path) -> dict:
    return json.loads((made / "out" / "scores.json").read_text(encoding="utf-8"))


def value(scores: dict, name: str, metric: str) -> float:
    row = next(row for row in scores["embeddings"][0]["rows"] if row["name"] == name)
    return next(score["value"] for score in row["scores"] if score["name"] == metric)


def test_two_systems_and_the_baselines(made: Path, tiny_codec: Path):
    output = compare(made, "--codec", tiny_codec)
    scores = scores_of(made)
    names = [row["name"] for row in scores["embeddings"][0]["rows"]]
    assert names == ["good", "bad", "real, other half", "reconstructed", "white noise"]
    for metric in ("fad", "fad-inf", "kad", "per-song"):
        assert value(scores, "good", metric) < value(scores, "bad", metric)
        assert value(scores, "bad", metric) < value(scores, "white noise", metric)
    assert value(scores, "good", "coverage") > value(scores, "bad", "coverage")
    told = {item["metric"]: item for item in scores["embeddings"][0]["differences"]}
    assert told["fad"]["is_significant"]
    assert told["fad"]["test"] == "bootstrap, clips paired by name"
    assert "fad: good - bad" in output
    assert scores["embeddings"][0]["reference"]["num_clips"] == 16
    rows = list(csv.DictReader((made / "out" / "scores.csv").open(encoding="utf-8")))
    assert len(rows) == 5 * 8
    assert float(rows[0]["value"]) == value(scores, "good", "fad")
    assert (made / "out" / "report.html").stat().st_size > 10000


def test_the_same_command_gives_the_same_scores(made: Path):
    compare(made)
    first = (made / "out" / "scores.json").read_bytes()
    compare(made)
    assert (made / "out" / "scores.json").read_bytes() == first


def test_nothing_is_written_into_audio_folders(made: Path):
    folders = [made / "real", made / "good"]
    before = [sorted(str(path) for path in folder.rglob("*")) for folder in folders]
    compare(made, generated=("good",))
    assert [sorted(str(path) for path in folder.rglob("*")) for folder in folders] == before
    for option in ("--out", "--cache"):
        with pytest.raises(UserError, match=f"{option} .* lies in the audio folder"):
            compare(made, option, made / "real" / "inside")


def test_bad_files_are_listed_and_counted(made: Path):
    (made / "good" / "bad.wav").write_bytes(b"RIFF1234")
    write_wav(made / "good" / "silent.wav", np.zeros((1, 8000), np.float32), 16000)
    output = " ".join(compare(made, "--metrics", "fad", generated=("good",)).split())
    assert "1 of the 18 files of 'good' could not be used in spectrum: its scores stand on 17" in output
    assert "1 of the 17 clips of 'good' are silent" in output
    assert scores_of(made)["unusable"][0]["file"] == "bad.wav"


def test_too_few_clips_are_warned_of(made: Path):
    lonely = made / "lonely"
    lonely.mkdir()
    write_wav(lonely / "one.wav", np.random.default_rng(0).uniform(-1, 1, (1, 1600)).astype("f"), 16000)
    output = " ".join(compare(made, generated=("lonely",)).split())
    assert "'lonely' has 5 frames in spectrum, fewer than twice the width 8" in output
    assert value(scores_of(made), "lonely", "fad-inf") is None
    assert value(scores_of(made), "lonely", "fad") > 0


def test_a_folder_without_one_good_file_ends_in_a_sentence(made: Path):
    (made / "broken").mkdir()
    (made / "broken" / "x.wav").touch()
    with pytest.raises(UserError, match="none of the 1 audio files of 'broken'"):
        compare(made, generated=("broken",))


def test_statistics_stand_for_their_folder(made: Path):
    compare(made, "--metrics", "fad", "fad-inf", "kad")
    with_folder = scores_of(made)
    stats = made / "real.safetensors"
    words = [made / "real", "--embedding", "pocket", "--out", stats, "--cache", made / "cache"]
    assert "clips            16" in run("stats", "build", *words)
    assert load_stats(stats)["spectrum"].num_clips == 16
    assert "clips            16" in run("stats", "show", stats)
    compare(made, "--metrics", "fad", "fad-inf", "kad", "--reference", stats)
    with_stats = scores_of(made)
    for name in ("good", "bad", "white noise"):
        for metric in ("fad", "fad-inf"):
            assert value(with_stats, name, metric) == value(with_folder, name, metric)
    assert value(with_stats, "real, other half", "fad") == pytest.approx(
        value(with_folder, "real, other half", "fad")
    )
    assert value(with_stats, "good", "kad") is None


def test_statistics_of_another_embedding_are_refused(made: Path):
    stats = made / "real.safetensors"
    run("stats", "build", made / "real", "--embedding", "logmel", "--out", stats, "--cache", made / "cache")
    with pytest.raises(UserError, match="holds statistics in logmel, and distances from them to spectrum"):
        compare(made, "--reference", stats)
    assert not (made / "out").exists()


def test_copies_are_found_in_the_reference(made: Path):
    rng = np.random.default_rng(1)
    for index in range(24):  # unlike each other, so that a copy stands out
        knots = rng.uniform(200.0, 3000.0, 12)
        phase = 2 * np.pi * np.cumsum(np.repeat(knots, 4000)) / 16000
        write_wav(made / "real" / f"unique-{index}.wav", 0.3 * np.sin(phase)[None], 16000)
    (made / "thief").mkdir()
    (made / "thief" / "copy.wav").write_bytes((made / "real" / "unique-3.wav").read_bytes())
    output = compare(made, "--metrics", "fad", "copies", generated=("thief",))
    flagged = scores_of(made)["copies"]["thief"]["flagged"]
    assert "copies in thief: 1 of 1" in output
    assert flagged[0]["training_clip"] == "unique-3.wav"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--reference", "{real}"], "comparing folders needs --out DIR"),
        (["--out", "{out}"], "comparing folders needs --reference DIR"),
        (["--reference", "{real}", "--out", "{out}", "--metrics", "fid"], "there is no score 'fid'"),
        (["--reference", "{real}", "--out", "{out}", "--embedding", "mfcc"], "there is no embedding 'mfcc'"),
        (["--reference", "nowhere", "--out", "{out}"], "there is no reference nowhere"),
        (["{real}/recipe.yaml"], "not both"),
    ],
)
def test_mistakes_end_in_a_sentence(made: Path, words: list[str], sentence: str):
    filled = [word.format(real=made / "real", out=made / "out") for word in words]
    at_the_end = not filled[0].startswith("--")
    generated = ["--generated", made / "good"]
    with pytest.raises(UserError, match=sentence):
        run("eval", *(filled if at_the_end else []), *generated, *([] if at_the_end else filled))


def test_a_recipe_and_options_for_folders_do_not_mix(made: Path):
    with pytest.raises(UserError, match="--out is for folders"):
        run("eval", "recipe.yaml", "--out", made / "out")
    with pytest.raises(UserError, match="nothing to score"):
        run("eval")


def test_two_systems_of_one_name_are_refused(made: Path):
    with pytest.raises(UserError, match="two sets are called 'good'"):
        run("eval", "--generated", made / "good", made / "good", "--reference", "x", "--out", "y")
