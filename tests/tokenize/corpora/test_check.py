"""`tokkata data check`: counts, missing, damaged and unlisted files, and its exit codes."""

import dataclasses

import numpy as np
import pytest
import soundfile

from tokkata.tests.made_corpora import GTZAN_CLIPS, MAKERS, make_gtzan, make_maestro, make_nsynth, write_noise
from tokkata.tokenize.corpora import check
from tokkata.tokenize.corpora.check import check_corpus
from tokkata.tokenize.corpora.dataset_facts import DATASETS, SplitFacts


@pytest.fixture
def small_facts(monkeypatch):
    """Let `kind`, as made for tests, be all that the dataset has."""

    def change(kind, **num_clips):
        splits = {name: SplitFacts(num, num * 0.1 / 3600) for name, num in num_clips.items()}
        monkeypatch.setitem(check.DATASETS, kind, dataclasses.replace(DATASETS[kind], splits=splits))

    return change


@pytest.mark.parametrize("kind", MAKERS)
def test_a_part_of_a_dataset_is_usable_but_incomplete(kind, tmp_path, tokkata):
    result = tokkata("data", "check", kind, MAKERS[kind](tmp_path))
    assert result.returncode == 1
    facts = DATASETS[kind]
    assert result.stdout.startswith(f"{facts.name} in {tmp_path}\nlicence: {facts.licence}")
    assert facts.citation in result.stdout
    assert "missing files: none" in result.stdout
    assert "files that cannot be used: none" in result.stdout
    assert result.stdout.endswith("usable, but incomplete\n")
    for split in facts.splits.values():
        assert f" {split.num_clips} " in result.stdout
    assert f"check {kind}" in result.stderr  # the bar


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_complete_dataset(tmp_path, tokkata, small_facts, deep):
    small_facts("nsynth", train=3, valid=1, test=1)
    result = tokkata("data", "check", "nsynth", make_nsynth(tmp_path), *deep)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("\ncomplete\n")


def test_counts_and_hours(tmp_path, small_facts):
    small_facts("maestro", train=2, valid=1, test=1)
    make_maestro(tmp_path)
    write_noise(tmp_path / "maestro-v3.0.0" / "2004" / "one.wav", duration_s=36.0, sample_rate=8000)
    report = check_corpus("maestro", tmp_path)
    assert {name: split.num_clips for name, split in report.splits.items()} == {
        "train": 2,
        "valid": 1,
        "test": 1,
    }
    assert report.splits["train"].hours == pytest.approx(0.01 + 0.1 / 3600)


def test_missing_files_are_named_first_ten_and_counted(tmp_path, tokkata, small_facts):
    names = [f"bass_synthetic_000-{pitch:03d}-100" for pitch in range(21, 34)]
    small_facts("nsynth", train=13, test=1)
    make_nsynth(tmp_path, {"train": names, "test": ["vocal_acoustic_003-065-127"]})
    for name in names[:12]:
        (tmp_path / "nsynth-train" / "audio" / f"{name}.wav").unlink()
    result = tokkata("data", "check", "nsynth", tmp_path)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    start = lines.index("missing files: 12")
    assert lines[start + 1 : start + 12] == [
        *(f"  nsynth-train/audio/{name}.wav" for name in names[:10]),
        "  … and 2 more",
    ]


def test_aligned_notes_are_missed_too(tmp_path):
    make_maestro(tmp_path)
    (tmp_path / "maestro-v3.0.0" / "2018" / "four.midi").unlink()
    report = check_corpus("maestro", tmp_path)
    assert report.missing == ["maestro-v3.0.0/2018/four.midi"]
    assert report.exit_code == 1


def test_damaged_files_are_named_with_the_reason(tmp_path, tokkata, small_facts):
    small_facts("nsynth", train=3, valid=1, test=1)
    make_nsynth(tmp_path)
    audio = tmp_path / "nsynth-train" / "audio"
    one, two, three = sorted(audio.iterdir())
    one.write_bytes(b"")
    two.write_text("a page that says 404\n" * 20)
    soundfile.write(three, np.zeros((0, 1)), 16000)
    result = tokkata("data", "check", "nsynth", tmp_path)
    assert result.returncode == 1
    assert "files that cannot be used: 3\n" in result.stdout
    assert f"  nsynth-train/audio/{one.name}: empty file (0 bytes)\n" in result.stdout
    assert f"  nsynth-train/audio/{two.name}: not audio, or its header is damaged\n" in result.stdout
    assert f"  nsynth-train/audio/{three.name}: no samples\n" in result.stdout


def test_only_a_deep_check_sees_silence_and_a_file_cut_short(tmp_path, small_facts):
    small_facts("nsynth", train=3, valid=1, test=1)
    make_nsynth(tmp_path)
    silent, short, _ = sorted((tmp_path / "nsynth-train" / "audio").iterdir())
    soundfile.write(silent, np.zeros(16000), 16000)
    short.write_bytes(short.read_bytes()[:-1000])
    assert check_corpus("nsynth", tmp_path).exit_code == 0
    report = check_corpus("nsynth", tmp_path, deep=True)
    assert report.exit_code == 1
    reasons = {path.rpartition("/")[2]: reason for path, reason in report.corrupt.items()}
    assert reasons.keys() == {silent.name, short.name}
    assert reasons[silent.name].startswith("silent")
    assert reasons[short.name].startswith("truncated")


def test_unlisted_audio_is_named_and_harms_nothing(tmp_path, small_facts):
    small_facts("gtzan", **{split: len(names) for split, names in GTZAN_CLIPS.items()})
    make_gtzan(tmp_path)
    write_noise(tmp_path / "genres" / "blues" / "blues.00099.au")
    write_noise(tmp_path / "genres" / "blues" / "._blues.00098.au")
    report = check_corpus("gtzan", tmp_path)
    assert report.unlisted == ["genres/blues/blues.00099.au"]
    assert report.exit_code == 0


def test_a_file_that_was_published_damaged_does_not_make_a_dataset_incomplete(tmp_path, small_facts):
    small_facts("gtzan", **{split: len(names) for split, names in GTZAN_CLIPS.items()})
    make_gtzan(tmp_path)
    (tmp_path / "genres" / "jazz" / "jazz.00054.au").write_bytes(b"damaged" * 99)
    report = check_corpus("gtzan", tmp_path)
    assert list(report.corrupt) == ["genres/jazz/jazz.00054.au"]
    assert report.exit_code == 0
    (tmp_path / "genres" / "rock" / "rock.00000.au").write_bytes(b"damaged" * 99)
    assert check_corpus("gtzan", tmp_path).exit_code == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_dataset_of_which_nothing_can_be_read_is_unusable(kind, tmp_path, tokkata):
    MAKERS[kind](tmp_path)
    for file in [*tmp_path.rglob("*.wav"), *tmp_path.rglob("*.au"), *tmp_path.rglob("*.mp3")]:
        file.write_bytes(b"")
    result = tokkata("data", "check", kind, tmp_path)
    assert result.returncode == 2
    assert result.stdout.endswith("unusable: no clip can be read\n")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_dataset_without_an_index_is_unusable_in_one_sentence(kind, tmp_path, tokkata):
    result = tokkata("data", "check", kind, tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


def test_an_unknown_dataset_is_one_sentence(tmp_path, tokkata):
    result = tokkata("data", "check", "fma", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("no dataset 'fma': there are nsynth, gtzan, musicnet, maestro, magnatagatune\n")


def test_help(tokkata):
    result = tokkata("data", "check", "--help")
    assert result.returncode == 0
    for word in ("KIND", "PATH", "--deep", "exit code"):
        assert word in result.stdout
