"""Folders scored by a classifier's labels, by captions and by a codec's tokens."""

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
from tokkata.eval.class_scores import kl_paired
from tokkata.eval.classifier import load_classifier
from tokkata.eval.clip_notes import clip_notes
from tokkata.eval.embedding import embed_clips
from tokkata.tests.eval.made_classifier import save_classifier
from tokkata.tests.made_networks import save_clap

NUM_CLIPS = 8


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("networks")
    save_classifier(folder / "classifier", rate=16000)
    save_clap(folder / "clap")
    return SimpleNamespace(classifier=folder / "classifier", clap=folder / "clap")


@pytest.fixture
def made(tmp_path: Path, tone: SimpleNamespace) -> Path:
    """The folders real, near (the same notes, a little louder) and far (noise), with captions and labels."""
    rng = np.random.default_rng(0)
    for name in ("real", "near", "far"):
        (tmp_path / name).mkdir()
        rows = ["file_name,caption,instrument"]
        for index in range(NUM_CLIPS):
            samples = tone.at(48 + 3 * index, 0.3) * (1.2 if name == "near" else 1.0)
            if name == "far":
                samples = 0.3 * rng.standard_normal(samples.shape)
            write_wav(tmp_path / name / f"{index}.wav", samples, 16000)
            rows.append(f"{index}.wav,a slow piano,{('organ', 'bass')[index % 2]}")
        (tmp_path / name / "metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def compare(made: Path, *more: object, systems: tuple[str, ...] = ("near", "far")) -> dict:
    named = [f"{name}={made / name}" for name in systems]
    fixed = ["--reference", made / "real", "--out", made / "out", "--cache", made / "cache", "--players", 0]
    words = ["eval", "--generated", *named, *fixed, *more]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads((made / "out" / "scores.json").read_text(encoding="utf-8"))


def table(scores: dict, name: str) -> dict[str, dict[str, dict]]:
    """By set and score, what the section of one yardstick holds."""
    section = next(one for one in scores["embeddings"] if one["info"]["name"] == name)
    return {row["name"]: {score["name"]: score for score in row["scores"]} for row in section["rows"]}


def test_a_classifier_has_a_table_of_its_own(made: Path, networks: SimpleNamespace):
    scores = compare(
        made,
        *("--metrics", "fad", "kl", "inception-score", "label-accuracy"),
        *("--classifier", networks.classifier, "--label", "instrument"),
    )
    assert [one["info"]["name"] for one in scores["embeddings"]] == [
        "logmel",
        f"classifier {networks.classifier}",
    ]
    found = table(scores, f"classifier {networks.classifier}")
    assert list(found) == ["near", "far", "real, other half", "white noise"]
    for direction in ("generated-reference", "reference-generated"):
        assert found["near"][f"kl-{direction}"]["value"] < found["far"][f"kl-{direction}"]["value"]
        unpaired = f"kl-unpaired-{direction}"
        assert found["near"][unpaired]["value"] < found["far"][unpaired]["value"]
        for row in ("near", "far"):
            interval = found[row][f"kl-{direction}"]["interval"]
            assert interval["low"] <= found[row][f"kl-{direction}"]["value"] <= interval["high"]
        # The other half has no clip of a name of the first.
        assert found["real, other half"][f"kl-{direction}"]["value"] is None
        assert found["real, other half"][unpaired]["value"] is not None
    assert 1.0 <= found["near"]["inception-score"]["value"] <= 3.0
    assert found["near"]["label-accuracy"]["detail"]["clips"] == NUM_CLIPS
    assert found["white noise"]["label-accuracy"]["value"] is None
    # The table's figures are those of the functions on what the classifier says of the files.
    classifier = load_classifier(str(networks.classifier))

    def probabilities(name: str) -> np.ndarray:
        audio = [read(path) for path in sorted((made / name).glob("*.wav"))]
        return np.stack([frames.mean(0) for frames in embed_clips(classifier, audio, 16000)])

    expected = kl_paired(probabilities("near"), probabilities("real"), "generated-reference", seed=0)
    assert found["near"]["kl-generated-reference"]["value"] == pytest.approx(expected.value, rel=1e-4)
    told = {item["metric"]: item for item in scores["embeddings"][1]["differences"]}
    assert told["kl-generated-reference"]["test"] == "permutation, clips paired by name"
    rows = list(csv.DictReader((made / "out" / "scores.csv").open(encoding="utf-8")))
    assert {row["score"] for row in rows if row["embedding"].startswith("classifier")} == set(found["near"])
    page = (made / "out" / "report.html").read_text(encoding="utf-8")
    assert "KL(generated‖reference)" in page
    assert "Scores in classifier" in page


def read(path: Path) -> np.ndarray:
    import soundfile

    return soundfile.read(path, dtype="float32")[0][None]


def test_captions_are_compared_where_the_embedding_holds_sentences(made: Path, networks: SimpleNamespace):
    (made / "far" / "metadata.csv").unlink()
    name = f"clap:{networks.clap}"
    scores = compare(made, "--embedding", name, "--metrics", "clap-score")
    found = table(scores, name)
    score = found["near"]["clap-score"]
    assert -1.0 <= score["interval"]["low"] <= score["value"] <= score["interval"]["high"] <= 1.0
    assert len(score["detail"]["values"]) == NUM_CLIPS
    assert found["far"]["clap-score"]["note"] == "no clip has a caption"
    assert found["real, other half"]["clap-score"]["value"] is not None


def test_tokens_of_a_codec_are_compared(made: Path, tiny_codec: Path):
    scores = compare(made, "--metrics", "fad", "tokens", "--codec", tiny_codec)
    found = table(scores, f"tokens of {tiny_codec}")
    assert list(found) == ["near", "far", "real, other half", "reconstructed", "white noise"]
    assert found["near"]["unigram-distance"]["value"] < found["far"]["unigram-distance"]["value"]
    assert len(found["near"]["bigram-distance"]["detail"]["codebooks"]) == 4
    assert found["near"]["bigram-distance"]["interval"] is not None
    assert "tokens of" not in " ".join(scores["warnings"])  # a codec needs no covariance


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--metrics", "kl"], "the score kl needs --classifier"),
        (["--metrics", "kl-generated-reference"], "needs --classifier"),
        (["--metrics", "tokens"], "the score tokens needs --codec"),
        (["--metrics", "clap-score"], "needs an embedding of sentences too: --embedding clap"),
        (["--metrics", "label-accuracy", "--classifier", "{classifier}"], "needs --label"),
        (["--classifier", "{nowhere}"], "classifier .*nowhere"),
    ],
)
def test_what_is_missing_is_said_first(
    made: Path, networks: SimpleNamespace, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    filled = [word.format(classifier=networks.classifier, nowhere="nobody/nowhere") for word in words]
    with pytest.raises(UserError, match=sentence):
        compare(made, *filled)
    assert not (made / "cache").exists()


def test_statistics_have_no_labels(made: Path, networks: SimpleNamespace):
    stats = made / "real.safetensors"
    words = ["stats", "build", made / "real", "--out", stats, "--cache", made / "cache"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    with pytest.raises(UserError, match="compare with the audio of the reference: give --reference its"):
        compare(made, "--reference", stats, "--classifier", networks.classifier)


def test_notes_of_a_run_are_read(tmp_path: Path):
    row = {"file": "00000.wav", "labels": {"pitch": 60, "family": "organ"}, "caption": "a tune"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    note = clip_notes(tmp_path)["00000.wav"]
    assert note.caption == "a tune"
    assert (note.labels["pitch"], note.labels["family"]) == ("60", "organ")
    (tmp_path / "samples.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="is damaged: generate the clips again"):
        clip_notes(tmp_path)
