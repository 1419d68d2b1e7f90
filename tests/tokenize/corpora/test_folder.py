"""Folders of audio files, mixtures, and the way from a recipe to a corpus."""

import hashlib
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError, write_wav
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import FolderCorpus, MixedCorpus, SynthCorpus
from tokkata.tokenize.corpora.folder import Folder
from tokkata.tokenize.corpora.split import split_by_hash, stable_unit
from tokkata.tokenize.corpora.synth import Synth
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 1600)).astype(np.float32)
    if path.suffix == ".wav":
        write_wav(path, samples, 16000)
    else:
        soundfile.write(path, samples.T, 16000)
    return samples


def corpus(root, **settings):
    return Folder(FolderCorpus(kind="folder", root=root, **settings))


def test_finds_audio_and_nothing_else(tmp_path):
    for name in ("b.wav", "a.FLAC", "x/c.ogg", "x/y/d.Mp3", "naïve song.wav", "夜\u3000曲.wav"):
        write(tmp_path / name)
    for name in ("notes.txt", "x/.hidden.wav", "wav"):
        (tmp_path / name).write_text("no audio")
    before = sorted(tmp_path.rglob("*"))
    folder = corpus(tmp_path)
    assert [clip.id for clip in folder.clips()] == sorted(
        ["a.FLAC", "b.wav", "naïve song.wav", "夜\u3000曲.wav", "x/c.ogg", "x/y/d.Mp3"]
    )
    for clip in folder.clips():
        assert read_clip(folder, clip, 8000, 2).samples.shape == (2, 800)
    assert sorted(tmp_path.rglob("*")) == before


def test_reads_samples_and_hashes_bytes(tmp_path):
    samples = write(tmp_path / "x" / "a.wav")
    folder = corpus(tmp_path)
    audio = read_clip(folder, folder.clips()[0], 16000, 1)
    np.testing.assert_allclose(audio.samples, samples, atol=1 / 32768)
    assert audio.sha256 == hashlib.sha256((tmp_path / "x" / "a.wav").read_bytes()).hexdigest()


def test_bad_file_is_listed_but_not_read(tmp_path):
    write(tmp_path / "good.wav")
    (tmp_path / "bad.wav").touch()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    folder = corpus(tmp_path)
    bad, gone, good = folder.clips()
    read_clip(folder, good, 16000, 1)
    with pytest.raises(AudioError, match="empty file"):
        read_clip(folder, bad, 16000, 1)
    with pytest.raises(AudioError, match="no such file"):
        read_clip(folder, gone, 16000, 1)


def test_label_from_parent(tmp_path):
    write(tmp_path / "piano" / "a.wav")
    write(tmp_path / "drums" / "kick" / "b.wav")
    folder = corpus(tmp_path, label_from_parent=True)
    assert folder.label_types == {"folder": str}
    assert [clip.labels for clip in folder.clips()] == [{"folder": "kick"}, {"folder": "piano"}]
    assert [clip.labels for clip in corpus(tmp_path).clips()] == [{}, {}]


def test_a_link_to_a_folder_above_does_not_loop(tmp_path):
    write(tmp_path / "x" / "a.wav")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "x" / "linked.wav").symlink_to(tmp_path / "x" / "a.wav")
    assert [clip.id for clip in corpus(tmp_path).clips()] == ["x/a.wav", "x/linked.wav"]


def test_a_root_without_audio_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"data\.root .*missing does not exist"):
        corpus(tmp_path / "missing").clips()
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="is a file"):
        corpus(tmp_path / "a.txt").clips()
    with pytest.raises(UserError, match=r"holds no \.wav, \.flac, \.ogg, \.mp3 file"):
        corpus(tmp_path).clips()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_no_utf8_is_one_sentence(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.wav")).touch()
    with pytest.raises(UserError, match=r"'\\udcff\.wav', whose name is not UTF-8"):
        corpus(tmp_path).clips()


def test_splits_depend_on_the_path_below_the_root_alone(tmp_path):
    names = [f"{i}.wav" for i in range(60)]
    for name in names:
        (tmp_path / "one" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "one" / name).touch()
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    splits = {clip.id: clip.split for clip in corpus(tmp_path / "one").clips()}
    assert splits == {clip.id: clip.split for clip in corpus(tmp_path / "other").clips()}
    for added in range(40):
        (tmp_path / "other" / f"added {added}.wav").touch()
    later = {clip.id: clip.split for clip in corpus(tmp_path / "other").clips()}
    assert {name: later[name] for name in names} == splits


def test_split_shares():
    splits = list(split_by_hash([f"song {i}" for i in range(4000)], 0.1, 0.2).values())
    # Three standard deviations of a binomial share are below 0.02.
    assert splits.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=12, unique=True),
    fractions=st.sampled_from([(0.1, 0.1), (0.0, 0.1), (0.5, 0.0), (0.0, 0.0), (0.45, 0.45), (0.01, 0.01)]),
    random=st.randoms(use_true_random=False),
)
def test_every_wanted_split_has_a_file(ids, fractions, random):
    valid, test = fractions
    splits = split_by_hash(ids, valid, test)
    assert set(splits) == set(ids)
    found = set(splits.values())
    assert "train" in found
    assert "valid" not in found or valid > 0
    assert "test" not in found or test > 0
    if len(ids) >= 3:
        assert found == {"train"} | ({"valid"} if valid else set()) | ({"test"} if test else set())
    shuffled = list(ids)
    random.shuffle(shuffled)
    assert split_by_hash(shuffled, valid, test) == splits


def test_an_empty_split_takes_the_nearest_file():
    ids = sorted((f"song {i}" for i in range(6)), key=stable_unit)
    assert 0.001 < stable_unit(ids[0]) < stable_unit(ids[-1]) < 0.999
    # Nothing falls below 0.001: test takes the lowest hash, then valid the lowest that train still has.
    splits = split_by_hash(ids, 0.0005, 0.0005)
    assert [splits[name] for name in ids] == ["test", "valid", "train", "train", "train", "train"]
    # Nothing falls above 0.999: train takes the highest.
    splits = split_by_hash(ids, 0.0, 0.999)
    assert [splits[name] for name in ids] == ["test"] * 5 + ["train"]


def test_all_files_can_be_held_out():
    ids = [str(i) for i in range(20)]
    assert set(split_by_hash(ids, 0.0, 1.0).values()) == {"test"}
    assert set(split_by_hash(ids, 0.9, 0.1).values()) == {"valid", "test"}
    assert split_by_hash(ids[:1], 0.0, 1.0) == {"0": "test"}


def test_mixed_keeps_clips_splits_and_shared_labels(tmp_path):
    write(tmp_path / "piano" / "a.wav")
    synth = SynthCorpus(kind="synth", num_clips=12, duration_s=0.2)
    folder = FolderCorpus(kind="folder", root=tmp_path, label_from_parent=True)
    mixed = load_corpus(MixedCorpus(kind="mixed", corpora=[synth, folder, synth]))
    clips = mixed.clips()
    assert mixed.label_types == {}
    assert [clip.id for clip in clips] == sorted(clip.id for clip in clips)
    assert len({clip.id for clip in clips}) == 25
    alone = Synth(synth)
    for clip, own in zip(clips[:12], alone.clips(), strict=True):
        assert (clip.id, clip.split, clip.labels) == (f"0/{own.id}", own.split, {})
        assert read_clip(mixed, clip, 16000, 1).sha256 == read_clip(alone, own, 16000, 1).sha256
    (piano,) = [clip for clip in clips if clip.id.startswith("1/")]
    assert piano.id == "1/piano/a.wav"
    assert read_clip(mixed, piano, 16000, 1).samples.shape == (1, 1600)

    twice = load_corpus(MixedCorpus(kind="mixed", corpora=[synth, synth]))
    assert twice.label_types == Synth.label_types
    assert twice.clips()[0].labels == alone.clips()[0].labels


def test_captions_from_the_names_of_files(tmp_path):
    names = ["Slow_piano-03.wav", "x/07 Léon's waltz (live).flac", "123.wav"]
    for name in names:
        write(tmp_path / name)
    found = {clip.id: clip.caption for clip in corpus(tmp_path, caption_from_name=True).clips()}
    assert found == dict(zip(names, ["Slow piano", "Léon s waltz live", None], strict=True))
    assert {clip.caption for clip in corpus(tmp_path).clips()} == {None}
    rows = ["file_name,caption", f"{names[0]},a slow piano", f'"{names[1]}",', f"{names[2]},numbers"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    found = {clip.id: clip.caption for clip in corpus(tmp_path, caption_from_name=True).clips()}
    assert found == dict(zip(names, ["a slow piano", "Léon s waltz live", "numbers"], strict=True))
