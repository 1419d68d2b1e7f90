"""Datasets that `datasets` reads, from disk and from the Hub's cache, without a network."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import HubDatasetCorpus
from tokkata.tokenize.corpora.hub_dataset import HubDataset
from tokkata.tokenize.corpus import read_clip

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Nothing is read from or written to the caches of whoever runs the tests, and there is no network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def corpus(path, **changes):
    return HubDataset(HubDatasetCorpus(kind="hub_dataset", id=str(path), **changes))


def sound(seed):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (1600, 1)).astype(np.float32)


def flac(seed):
    file = io.BytesIO()
    soundfile.write(file, sound(seed), 16000, format="FLAC")
    return file.getvalue()


def rows(num_rows, start=0, **changes):
    """A dataset with its audio inside, one sound a row."""
    columns = {
        "audio": [{"bytes": flac(start + i), "path": None} for i in range(num_rows)],
        "bpm": [60 + i for i in range(num_rows)],
        "genre": [i % 2 for i in range(num_rows)],
        "tags": [["a"] * (i % 3) for i in range(num_rows)],
        "notes": [[i, 1] for i in range(num_rows)],
        "text": [f"number {i}" for i in range(num_rows)],
        "name": [f"song-{start + i}" for i in range(num_rows)],
    }
    # Without torchcodec nothing can be written as Audio, but what is there can be called so.
    features = datasets.Features(
        audio={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        bpm=datasets.Value("int32"),
        genre=datasets.ClassLabel(names=["rock", "jazz"]),
        tags=datasets.List(datasets.Value("string")),
        notes=datasets.List(datasets.Value("int64")),
        text=datasets.Value("string"),
        name=datasets.Value("string"),
    )
    made = datasets.Dataset.from_dict(columns | changes, features=features)
    return made.cast_column("audio", datasets.Audio())


def check_sounds(found, first_seed=0):
    for i, clip in enumerate(found.clips()):
        heard = read_clip(found, clip, 16000, 1).samples
        np.testing.assert_allclose(heard[0], sound(first_seed + i)[:, 0], atol=2 / 32768)


def test_a_folder_of_save_to_disk(tmp_path):
    rows(4).save_to_disk(tmp_path / "saved")
    found = corpus(tmp_path / "saved")
    assert found.label_types == {"bpm": int, "genre": str, "tags": tuple, "name": str}
    clips = found.clips()
    assert [clip.id for clip in clips] == [f"train/{i:08d}" for i in range(4)]
    assert clips[3].labels == {"bpm": 63, "genre": "jazz", "tags": (), "name": "song-3"}
    assert (clips[2].caption, clips[2].source) == ("number 2", "train row 2")
    assert {clip.split for clip in clips} == {"train", "valid", "test"}  # by hash: it has only train
    check_sounds(found)


def test_the_splits_of_a_dataset(tmp_path):
    saved = datasets.DatasetDict(train=rows(30), validation=rows(2, 30), extra=rows(1, 32))
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"train, validation, extra: say in data\.splits what 'extra' is"):
        corpus(tmp_path / "saved")
    found = corpus(tmp_path / "saved", splits={"train": "train", "validation": "valid"}, test_fraction=0.2)
    of = {
        name: [clip.id for clip in found.clips() if clip.split == name] for name in ("train", "valid", "test")
    }
    assert of["valid"] == ["validation/00000000", "validation/00000001"]
    assert of["test"]
    assert all(name.startswith("train/") for name in of["train"] + of["test"])
    with pytest.raises(UserError, match="has no split 'dev', it has train, validation, extra"):
        corpus(tmp_path / "saved", splits={"dev": "valid"})


def test_parquet_files_and_a_name_for_each_row(tmp_path):
    (tmp_path / "data").mkdir()
    rows(3).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    rows(2, 3).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    rows(2, 5).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    found = corpus(tmp_path / "data", id_column="name", labels={"bpm": "float"})
    assert found.label_types == {"bpm": float}
    assert [clip.id for clip in found.clips()] == [f"song-{i}" for i in range(7)]
    assert [clip.split for clip in found.clips()][5:] == ["test", "test"]
    check_sounds(found)
    alone = corpus(tmp_path / "data" / "train-00001-of-00002.parquet")
    assert [clip.id for clip in alone.clips()] == ["train/00000000", "train/00000001"]
    check_sounds(alone, 3)
    rows(3, text=["x", "y", "x"]).save_to_disk(tmp_path / "twice")
    with pytest.raises(UserError, match=r"row 2: data\.id_column 'text' is 'x', as in split train, row 0"):
        corpus(tmp_path / "twice", id_column="text")


def test_an_audio_folder_gives_paths(tmp_path):
    root = tmp_path / "songs"
    for split, count in (("train", 3), ("test", 1)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            soundfile.write(root / split / f"{i}.wav", sound(i), 16000)
        lines = [json.dumps({"file_name": f"{i}.wav", "mood": "calm"}) for i in range(count)]
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    found = corpus(root)
    assert found.label_types == {"mood": str}
    test, *train = found.clips()
    assert (test.id, test.split) == ("test/00000000", "test")
    assert [found.audio(clip).name for clip in train] == ["0.wav", "1.wav", "2.wav"]
    (root / "train" / "1.wav").unlink()
    with pytest.raises(AudioError, match="file is missing"):
        found.audio(train[1])


def test_rows_without_audio_are_rejected_one_by_one(tmp_path):
    paths = datasets.Dataset.from_dict({"audio": ["a.wav", None, "gone.wav"]})
    paths.save_to_disk(tmp_path / "saved")
    soundfile.write(tmp_path / "saved" / "a.wav", sound(0), 16000)
    found = corpus(tmp_path / "saved")
    here, none, gone = found.clips()
    assert found.audio(here) == tmp_path / "saved" / "a.wav"
    with pytest.raises(AudioError, match="the row has no audio"):
        found.audio(none)
    with pytest.raises(AudioError, match="file is missing"):
        found.audio(gone)


def test_a_hub_id_comes_from_the_cache(tmp_path):
    snapshot = tmp_path / "hub-cache" / "datasets--someone--songs" / "snapshots" / REVISION
    (snapshot / "data").mkdir(parents=True)
    rows(3).to_parquet(snapshot / "data" / "train-00000-of-00001.parquet")
    found = corpus("someone/songs", revision=REVISION)
    assert [clip.id for clip in found.clips()] == [f"train/{i:08d}" for i in range(3)]
    check_sounds(found)
    with pytest.raises(
        UserError, match=r"not whole in the Hub's cache at revision 1+, .* run it once with a network"
    ):
        corpus("someone/songs", revision="1" * 40)
    (snapshot / "songs.py").touch()
    with pytest.raises(UserError, match=r"is made by a program, songs\.py, which is not run"):
        corpus("someone/songs", revision=REVISION)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "someone/songs",
            r"needs data\.revision: give the commit from https://huggingface\.co/datasets/someone",
        ),
        ("songs", "'songs' does not exist, and is no hub id such as owner/name"),
        ("/no/such/folder", "does not exist, and is no hub id"),
        ("some one/songs", "does not exist, and is no hub id"),
    ],
)
def test_an_id_that_leads_nowhere(name, told):
    with pytest.raises(UserError, match=told):
        corpus(name, revision=REVISION if " " in name else None)


def test_faults_of_local_data_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    rows(1).save_to_disk(tmp_path / "saved")
    rows(1, audio=[None]).remove_columns("audio").save_to_disk(tmp_path / "mute")
    for name, changes, told in [
        ("empty", {}, "empty"),
        ("notes.txt", {}, r"a folder, or a file \.parquet or \.arrow, is expected"),
        ("broken.parquet", {}, "cannot be read by `datasets`"),
        ("mute", {}, r"data\.audio 'audio' is no column of split train: there are bpm, genre"),
        (
            "saved",
            {"audio": "bpm"},
            "'bpm' of split train holds neither audio nor the names of files, but int32",
        ),
        ("saved", {"id_column": "nr"}, r"data\.id_column 'nr' is no column"),
        ("saved", {"labels": ["notes"]}, r"row 0: notes is '\[0, 1\]', which cannot be a label"),
        ("saved", {"labels": ["mood"]}, r"'mood' is no column"),
    ]:
        with pytest.raises(UserError, match=told) as fault:
            corpus(tmp_path / name, **changes)
        assert "\n" not in str(fault.value)
