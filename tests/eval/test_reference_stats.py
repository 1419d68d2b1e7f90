"""Statistics of a reference: in a file and back, from the Hub's cache, and refused where they do not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.eval.embed_folder import EmbeddedClip, EmbeddedFolder
from tokkata.eval.embedding import EmbeddingInfo
from tokkata.eval.embedding_cache import ClipFacts
from tokkata.eval.find_reference import find_reference
from tokkata.eval.gaussian_stats import GaussianStats
from tokkata.eval.reference_stats import (
    ReferenceStats,
    check_comparable,
    described,
    load_stats,
    reference_stats,
    save_stats,
    split_halves,
)

INFO = EmbeddingInfo("spectrum", "1", 16000, 5, 0.02, 0.02, "five bands", "a test")


class Frames:
    """Stands in for the cache."""

    def __init__(self, frames: dict[str, np.ndarray]) -> None:
        self._frames = frames

    def frames(self, sha256: str) -> np.ndarray:
        return self._frames[sha256]


def folder_of(num_clips: int, num_frames: int = 7, info: EmbeddingInfo = INFO) -> EmbeddedFolder:
    rng = np.random.default_rng(0)
    frames = {f"{i:064x}": rng.standard_normal((num_frames, info.width)) for i in range(num_clips)}
    clips = [
        EmbeddedClip(f"{i}.wav", Path(f"{i}.wav"), sha256, ClipFacts(1.0, 0.1, num_frames))
        for i, sha256 in enumerate(frames)
    ]
    return EmbeddedFolder(Path("made"), info, clips, [], Frames(frames))


@given(num_clips=st.integers(1, 150), num_frames=st.integers(1, 4))
def test_merged_halves_are_the_statistics_of_all_frames(num_clips: int, num_frames: int):
    folder = folder_of(num_clips, num_frames)
    whole = reference_stats(folder).whole
    frames = np.concatenate([folder.frames(clip) for clip in folder.clips])
    expected = GaussianStats.from_embeddings(frames)
    assert whole.num == expected.num == num_clips * num_frames
    np.testing.assert_allclose(whole.mean, expected.mean, atol=1e-12)
    np.testing.assert_allclose(whole.m2, expected.m2, atol=1e-12 * max(1, num_clips))


def test_copies_are_in_one_half():
    clips = folder_of(9).clips
    twins = [replace(clip, name=f"copy of {clip.name}") for clip in clips]
    first, second = split_halves([*clips, *twins])
    assert {clip.sha256 for clip in first}.isdisjoint({clip.sha256 for clip in second})
    assert len(first) + len(second) == 18


@pytest.mark.parametrize("num_frames", [1, 7])  # 3 + 2 frames in 5 dimensions have no full rank
def test_a_file_gives_back_what_was_written(tmp_path: Path, num_frames: int):
    other = replace(INFO, name="w2v2:owner/name#6", width=3)
    stats = [reference_stats(folder_of(5, num_frames)), reference_stats(folder_of(5, num_frames, other))]
    save_stats(tmp_path / "stats.safetensors", stats)
    loaded = load_stats(tmp_path / "stats.safetensors")
    assert list(loaded) == ["spectrum", "w2v2:owner/name#6"]
    for item in stats:
        found = loaded[item.info.name]
        assert replace(found, halves=item.halves) == item
        assert np.array_equal(found.whole.covariance(), item.whole.covariance())
        assert np.array_equal(found.whole.mean, item.whole.mean)
    text = described(loaded)
    for told in ("clips            5", "five bands", "soxr", stats[0].content):
        assert told in text


def test_the_content_does_not_depend_on_names_or_order():
    folder = folder_of(5)
    renamed = [replace(clip, name=f"x{clip.name}") for clip in reversed(folder.clips)]
    assert reference_stats(replace(folder, clips=renamed)).content == reference_stats(folder).content
    assert reference_stats(folder_of(6)).content != reference_stats(folder).content


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "2"}, "version"),
        ({"preprocessing": "six bands"}, "preprocessing"),
        ({"sample_rate": 32000}, "sample rate"),
    ],
)
def test_another_embedding_is_refused_in_a_sentence(change: dict, word: str):
    stats = reference_stats(folder_of(5))
    check_comparable(stats, INFO, "here.safetensors")
    with pytest.raises(UserError, match=f"here.safetensors was computed with another {word} of spectrum"):
        check_comparable(stats, replace(INFO, **change), "here.safetensors")


def test_audio_read_in_another_way_is_refused():
    stats: ReferenceStats = replace(reference_stats(folder_of(5)), reading="by ear")
    with pytest.raises(UserError, match="another way to read audio"):
        check_comparable(stats, INFO, "here.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"x" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is no file of reference statistics"):
        load_stats(tmp_path / "file.safetensors")


def test_a_file_of_weights_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is no file of reference statistics"):
        load_stats(tmp_path / "model.safetensors")


def test_a_reference_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--someone--music"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_stats(snapshot / "logmel.safetensors", [reference_stats(folder_of(5))])
    found = find_reference("someone/music/logmel.safetensors")
    assert load_stats(found)["spectrum"].num_clips == 5


def test_a_reference_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_reference(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="there is no reference nowhere: give a folder"):
        find_reference("nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf download --repo-type dataset someone/else file\.safetensors"):
        find_reference("someone/else/file.safetensors")
