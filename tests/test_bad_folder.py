"""Folders of audio as people have them: what is wrong is named, what is right is used, nothing made up."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.recipe import load_recipe
from tokkata.tokenize.store import TokenStore

NUM_GOOD = 6


def tone(hz, sample_rate=16000, duration_s=0.3, channels=1):
    seconds = np.arange(round(sample_rate * duration_s)) / sample_rate
    return np.tile((0.4 * np.sin(2 * np.pi * hz * seconds))[:, None], (1, channels)).astype(np.float32)


def write_good(folder):
    """Names, rates and channels that are unusual but right; returns the clips' ids."""
    for i in range(NUM_GOOD):
        soundfile.write(folder / f"good {i}.wav", tone(220 + 40 * i), 16000)
    (folder / "Für Élise – 夜曲").mkdir()
    soundfile.write(folder / "Für Élise – 夜曲" / "à la fin.flac", tone(330), 16000)
    soundfile.write(folder / "eight channels.wav", tone(440, channels=8), 16000)
    soundfile.write(folder / "fast.wav", tone(550, sample_rate=192000), 192000)
    return {
        *(f"good {i}.wav" for i in range(NUM_GOOD)),
        "Für Élise – 夜曲/à la fin.flac",
        "eight channels.wav",
        "fast.wav",
    }


def write_bad(folder):
    """One file for each way to be unusable; returns the reason of each."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("a letter, not a song\n" * 40)
    soundfile.write(folder / "cut off.wav", tone(300), 16000)
    whole = (folder / "cut off.wav").read_bytes()
    (folder / "cut off.wav").write_bytes(whole[: len(whole) // 2])
    nan = tone(300)
    nan[1000] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "one sample.wav", np.array([0.5]), 16000)
    soundfile.write(folder / "silence.wav", np.zeros(4800), 16000)
    soundfile.write(folder / "locked.wav", tone(300), 16000)
    return {
        "empty.wav": "empty file (0 bytes)",
        "text.wav": "not audio",
        "cut off.wav": "truncated: header says 4800 frames",
        "nan.wav": "contains NaN or infinite samples",
        "one sample.wav": "too short: 1 sample",
        "silence.wav": "silent",
        "locked.wav": "permission denied",
    }


@pytest.fixture
def lock(monkeypatch):
    """Make a file unreadable, also for the superuser, whom no permission stops."""

    def lock_file(path):
        path.chmod(0)
        if os.geteuid() == 0:
            opened = Path.open

            def refuse(self, *arguments, **more):
                if self == path:
                    raise PermissionError(13, "Permission denied", str(self))
                return opened(self, *arguments, **more)

            monkeypatch.setattr(Path, "open", refuse)

    return lock_file


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "my audio"
    folder.mkdir()
    return folder


@pytest.fixture
def recipe(tmp_path, audio, write_recipe):
    data = {"kind": "folder", "root": str(audio)}
    return write_recipe(tmp_path, data=data, model={"conditions": []}, tokenize={"shard_clips": 4})


def test_bad_files_are_named_and_left_out(tokkata, shell, recipe, audio, lock):
    good, bad = write_good(audio), write_bad(audio)
    lock(audio / "locked.wav")
    before = {path: path.stat().st_mtime_ns for path in audio.rglob("*")}
    result = tokkata("tokenize", recipe)
    assert result.returncode == 0, result.stderr
    tokens = load_recipe(recipe).folder / "tokens"
    assert f"tokenize: {len(good)} clips encoded, {len(bad)} rejected, listed in" in result.stderr

    rejects = [json.loads(line) for line in (tokens / "rejects.jsonl").read_text().splitlines()]
    assert sorted(reject["source"] for reject in rejects) == sorted(bad)
    for reject in rejects:
        assert reject["reason"].startswith(bad[reject["source"]])

    store = TokenStore(tokens)
    splits = [store.split(name) for name in ("train", "valid", "test")]
    ids = [clip_id for split in splits for clip_id in split.column("id")]
    assert sorted(ids) == sorted(good)
    # 0.3 s at 16 kHz are 15 frames of 320 samples, whatever the file's own rate.
    assert {int(frames) for split in splits for frames in split.num_frames} == {15}
    # Different notes, different tokens: no file stands for another.
    assert len({split.codes(i).tobytes() for split in splits for i in range(len(split))}) == len(good)
    assert {path: path.stat().st_mtime_ns for path in audio.rglob("*")} == before

    # The run ends with it, each time.
    result = shell("tokkata", "run", recipe, "--stages", "tokenize")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "# tokenize: already done",
        f"rejected clips: {len(bad)}, each with its reason in {tokens / 'rejects.jsonl'}",
    ]


def test_a_mended_file_is_taken_in(tokkata, recipe, audio):
    write_good(audio)
    (audio / "late.wav").touch()
    assert "1 rejected" in tokkata("tokenize", recipe).stderr
    soundfile.write(audio / "late.wav", tone(700), 16000)
    result = tokkata("tokenize", recipe)
    assert f"tokenize: runs again, because the files in {audio} have changed" in result.stderr
    assert "none rejected" in result.stderr


def one_sentence(result):
    """The last line of a user's mistake."""
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_an_empty_folder(tokkata, recipe, audio):
    assert one_sentence(tokkata("tokenize", recipe)) == (
        f"data.root {audio} holds no .wav, .flac, .ogg, .mp3 file"
    )


def test_a_folder_that_is_not_there(tokkata, recipe, audio):
    audio.rmdir()
    assert one_sentence(tokkata("tokenize", recipe)) == (
        f"data.root {audio} does not exist: give the folder that holds the audio files"
    )


def test_a_folder_in_which_every_file_is_bad(tokkata, recipe, audio):
    bad = write_bad(audio)
    (audio / "locked.wav").unlink()
    for _ in range(2):  # the same again: nothing is taken for done
        assert one_sentence(tokkata("tokenize", recipe)) == (
            f"none of the {len(bad) - 1} clips can be used, the first (cut off.wav) because:"
            " truncated: header says 4800 frames, 2389 are there; all reasons are in"
            f" {load_recipe(recipe).folder / 'tokens' / 'rejects.jsonl'}"
        )
    assert "tokenize, which has not finished: run that first" in one_sentence(tokkata("train", recipe))


def test_a_codec_learns_only_from_good_files(tokkata, tmp_path, audio, write_recipe, tiny_dac):
    good, bad = write_good(audio), write_bad(audio)
    (audio / "locked.wav").unlink()
    data = {"kind": "folder", "root": str(audio)}
    recipe = write_recipe(tmp_path, data=data, model=tiny_dac, codec=None, train={"steps": 1})
    result = tokkata("codec", "train", recipe)
    assert result.returncode == 0, result.stderr
    stored = load_recipe(recipe).folder / "audio"
    assert f"{len(bad) - 1} clips rejected, listed in {stored / 'rejects.jsonl'}" in result.stderr
    clips = json.loads((stored / "clips.json").read_text())
    assert {clip["id"] for clip in clips} == good
    for path in audio.rglob("*"):
        if path.is_file() and path.name in {Path(name).name for name in good}:
            path.unlink()
    assert one_sentence(tokkata("codec", "train", recipe)).startswith(
        f"none of the {len(bad) - 1} clips can be used, the first (cut off.wav) because: truncated"
    )
