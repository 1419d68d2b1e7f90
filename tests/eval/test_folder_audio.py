"""Folders of audio: which files are found, and their samples in pieces."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.audio import load_audio, write_wav
from tokkata.core.audio_file import AudioError
from tokkata.core.errors import UserError
from tokkata.eval import folder_audio
from tokkata.eval.folder_audio import AudioFile, Head, find_audio, read_pieces


def pieces_of(path: Path, sample_rate: int = 16000, known: frozenset = frozenset()) -> list:
    return list(read_pieces(AudioFile(path.name, path), sample_rate, known))


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 40000)).astype(np.float32)


def test_files_are_found_in_folders_and_sorted(tmp_path: Path):
    for name in ("b.WAV", "a/x.flac", "a/deep/y.mp3", ".hidden.wav", ".trash/z.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in find_audio(tmp_path)] == ["a/deep/y.mp3", "a/x.flac", "b.WAV"]


def test_a_folder_without_audio_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="has no audio files"):
        find_audio(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_audio(tmp_path / "absent")


@pytest.mark.parametrize("sample_rate", [16000, 22050])
@pytest.mark.parametrize("held_frames", [1 << 21, 1000])
def test_pieces_together_are_the_file(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch, sample_rate: int, held_frames: int
):
    monkeypatch.setattr(folder_audio, "PIECE_S", 1)
    monkeypatch.setattr(folder_audio, "MAX_HELD_FRAMES", held_frames)
    path = tmp_path / "noise.wav"
    soundfile.write(path, 3.0 * noise.T, 16000, subtype="FLOAT")  # beyond ±1
    head, *pieces = pieces_of(path, sample_rate)
    assert isinstance(head, Head)
    assert [len(piece) for piece in pieces[:-1]] == [sample_rate] * 2
    np.testing.assert_array_equal(np.concatenate(pieces), load_audio(path, sample_rate, 1)[0])


def test_what_is_known_is_not_decoded(tmp_path: Path, noise: np.ndarray):
    write_wav(tmp_path / "noise.wav", noise, 16000)
    (head,) = pieces_of(
        tmp_path / "noise.wav", known=frozenset([pieces_of(tmp_path / "noise.wav")[0].sha256])
    )
    assert isinstance(head, Head)


def test_silence_is_read_and_damage_is_not(tmp_path: Path):
    write_wav(tmp_path / "silent.wav", np.zeros((1, 16000), np.float32), 16000)
    assert np.concatenate(pieces_of(tmp_path / "silent.wav")[1:]).tolist() == [0.0] * 16000
    (tmp_path / "bad.wav").write_bytes(b"RIFF1234")
    with pytest.raises(AudioError):
        pieces_of(tmp_path / "bad.wav")


def test_of_a_runs_samples_the_listed_ones(tmp_path: Path):
    for name in ("0.wav", "1.wav", "untrained/0.wav"):
        write_wav(tmp_path / name, np.full((1, 1000), 0.1, np.float32), 16000)
    assert [file.name for file in find_audio(tmp_path)] == ["0.wav", "1.wav", "untrained/0.wav"]
    (tmp_path / "samples.jsonl").write_text(
        '{"file": "0.wav", "labels": {}}\n{"file": "1.wav", "labels": {}}\n'
    )
    assert [file.name for file in find_audio(tmp_path)] == ["0.wav", "1.wav"]
