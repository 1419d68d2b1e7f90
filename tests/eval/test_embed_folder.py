"""Folders to embeddings: the cache, damage, interruption, and several processes."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.eval import embed_folder as embed_folder_module
from tokkata.eval.embed_folder import EmbeddedFolder, embed_folder
from tokkata.eval.embedding import Embedding, embed_clips
from tokkata.eval.embedding_cache import EmbeddingCache, embedding_key
from tokkata.eval.reference_stats import reference_stats


class Counting:
    """Lets an embedding embed, and counts what it was given."""

    def __init__(self, embedding: Embedding, stop_after: int | None = None) -> None:
        self.info, self.frames, self.is_light = embedding.info, embedding.frames, embedding.is_light
        self._embedding, self._stop_after = embedding, stop_after
        self.num_clips = 0

    def embed(self, audio):
        if self._stop_after is not None and self.num_clips >= self._stop_after:
            raise KeyboardInterrupt
        self.num_clips += len(audio)
        return self._embedding.embed(audio)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten clips of two lengths, in two folders."""
    rng = np.random.default_rng(0)
    for index in range(10):
        samples = rng.normal(0.0, 0.1, (1, 8000 if index % 2 else 6400)).astype(np.float32)
        path = tmp_path / "audio" / f"part-{index % 3}" / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, samples, 16000)
    return tmp_path / "audio"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embed_folder_module, "SHARD_FILES", 4)


def embedded(embedding: Embedding | Counting, folder: Path, cache: Path) -> EmbeddedFolder:
    return embed_folder(embedding, folder, cache, set_name="set", num_threads=2)


def everything(folder: EmbeddedFolder) -> dict[str, bytes]:
    return {clip.name: folder.frames(clip).tobytes() for clip in folder.clips}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]
    }


def test_frames_are_those_of_each_clip_alone(made: Path, tmp_path: Path, quick_embedding: Embedding):
    found = embedded(quick_embedding, made, tmp_path / "cache")
    assert len(found.clips) == 10
    for clip in found.clips:
        samples = soundfile.read(clip.path, dtype="float32")[0][None]
        (alone,) = embed_clips(quick_embedding, [samples], 16000)
        np.testing.assert_allclose(found.frames(clip), alone, rtol=1e-5, atol=1e-6)
        assert clip.facts.num_frames == len(alone)
        assert clip.facts.duration_s == samples.shape[1] / 16000
        assert clip.facts.rms == pytest.approx(np.sqrt(np.mean(samples**2)), rel=1e-5)


def test_nothing_is_written_into_the_folder(made: Path, tmp_path: Path, quick_embedding: Embedding):
    before = tree(made)
    embedded(quick_embedding, made, tmp_path / "cache")
    assert tree(made) == before


def test_what_was_embedded_once_is_not_embedded_again(made: Path, tmp_path: Path, quick_embedding: Embedding):
    first = Counting(quick_embedding)
    whole = everything(embedded(first, made, tmp_path / "cache"))
    assert first.num_clips == 10
    moved = tmp_path / "elsewhere"
    shutil.copytree(made, moved / "inside")
    (moved / "inside" / "part-0" / "0.wav").rename(moved / "renamed.wav")
    second = Counting(quick_embedding)
    found = embedded(second, moved, tmp_path / "cache")
    assert second.num_clips == 0
    assert sorted(everything(found).values()) == sorted(whole.values())
    write_wav(moved / "renamed.wav", np.full((1, 8000), 0.3, np.float32), 16000)
    changed = Counting(quick_embedding)
    embedded(changed, moved, tmp_path / "cache")
    assert changed.num_clips == 1


def test_a_killed_run_goes_on_and_ends_the_same(made: Path, tmp_path: Path, quick_embedding: Embedding):
    whole = embedded(quick_embedding, made, tmp_path / "cache-1")
    with pytest.raises(KeyboardInterrupt):
        embedded(Counting(quick_embedding, stop_after=5), made, tmp_path / "cache-2")
    rest = Counting(quick_embedding)
    resumed = embedded(rest, made, tmp_path / "cache-2")
    assert 0 < rest.num_clips < 10
    assert everything(resumed) == everything(whole)
    a, b = reference_stats(whole), reference_stats(resumed)
    assert a.content == b.content
    assert np.array_equal(a.whole.covariance(), b.whole.covariance())


def test_bad_files_are_listed_and_copies_embedded_once(
    made: Path, tmp_path: Path, quick_embedding: Embedding
):
    (made / "bad.wav").write_bytes(b"RIFF1234")
    (made / "empty.flac").touch()
    write_wav(made / "tiny.wav", np.full((1, 100), 0.1, np.float32), 16000)
    shutil.copy(made / "part-0" / "0.wav", made / "part-0" / "00.wav")
    counting = Counting(quick_embedding)
    found = embedded(counting, made, tmp_path / "cache")
    assert counting.num_clips == 10
    assert len(found.clips) == 11
    assert [item.file for item in found.unusable] == ["bad.wav", "empty.flac", "tiny.wav"]
    assert all(item.reason and item.set == "set" for item in found.unusable)


def test_a_clip_shorter_than_a_frame_is_listed(tmp_path: Path, quick_embedding: Embedding):
    quick_embedding.frames = lambda num_samples: num_samples // 320 if num_samples >= 1600 else 0
    write_wav(tmp_path / "audio" / "short.wav", np.full((1, 1000), 0.1, np.float32), 16000)
    found = embedded(quick_embedding, tmp_path / "audio", tmp_path / "cache")
    assert [item.reason for item in found.unusable] == ["too short for a frame of spectrum"]


def test_the_key_holds_what_frames_depend_on(quick_embedding: Embedding):
    info = quick_embedding.info
    others = [replace(info, **change) for change in ({"version": "2"}, {"preprocessing": "other"})]
    assert len({embedding_key(item) for item in [info, *others]}) == 3
    assert embedding_key(info) == embedding_key(replace(info, source="another address"))


def test_a_damaged_pack_is_named(made: Path, tmp_path: Path, quick_embedding: Embedding):
    embedded(quick_embedding, made, tmp_path / "cache")
    pack = next((tmp_path / "cache").rglob("*.safetensors"))
    pack.write_bytes(pack.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"{pack.name} are damaged: delete that file"):
        EmbeddingCache(tmp_path / "cache", quick_embedding.info)


PROGRAM = """
import sys
from pathlib import Path
from tokkata.core.run import is_main_process
from tokkata.eval import embed_folder
from tokkata.eval.embeddings.log_mel import LogMel
from tokkata.eval.reference_stats import reference_stats, save_stats
import torch
audio, cache, out = map(Path, sys.argv[1:])
embed_folder.SHARD_FILES = 4
found = embed_folder.embed_folder(LogMel(torch.device("cpu")), audio, cache, set_name="set", num_threads=1)
if is_main_process():
    save_stats(out, [reference_stats(found)])
"""


def test_two_processes_give_the_bytes_of_one(made: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int, world: int, name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(made), str(tmp_path / f"cache-{name}")]
        launcher = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **launcher, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, str(tmp_path / f"{name}.safetensors")], env=environment)

    runs = [start(0, 1, "one"), start(0, 2, "two"), start(1, 2, "two")]
    assert [process.wait(timeout=300) for process in runs] == [0, 0, 0]
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert len(list((tmp_path / "cache-two").rglob("*.safetensors"))) == 3
