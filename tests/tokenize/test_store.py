"""The token store: what goes in comes out; a killed writer leaves the bytes of an undisturbed one."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.core.files import PARTIAL_PREFIX
from tokkata.tokenize.codec import CodecInfo
from tokkata.tokenize.store import Reject, TokenRow, TokenStore, TokenWriter, read_rejects

LABELS = {"pitch": int, "family": str}
SPLITS = ("train", "valid", "test")


def info(num_codebooks=3):
    return CodecInfo("x/y", "abc", 16000, 1, 320, 50.0, num_codebooks, 1024, 16, {"torch": "2"})


def row(i, codes, split="train", **changed):
    fields = {
        "id": f"clip-{i}",
        "split": split,
        "codes": np.asarray(codes, dtype=np.int64),
        "num_samples": 320 * np.shape(codes)[1] - i,
        "source": f"folder/{i}.wav",
        "sha256": f"{i:064x}",
        "labels": {"pitch": 60 + i, "family": "organ"},
        "caption": None if i % 2 else f"clip {i}, für Élise",
    }
    return TokenRow(**{**fields, **changed})


def random_codes(i, num_codebooks=3):
    rng = np.random.default_rng(i)
    return rng.integers(0, 1024, size=(num_codebooks, 1 + i % 7))


def write(folder, shards, rejects=None, num_codebooks=3):
    writer = TokenWriter(folder, info(num_codebooks), LABELS, len(shards))
    for number, rows in enumerate(shards):
        if not writer.has(number):
            writer.write(number, rows, (rejects or {}).get(number, []))
    return writer.finish()


SHARDS = [
    [row(0, random_codes(0)), row(1, random_codes(1), "valid"), row(2, random_codes(2))],
    [],
    [row(3, random_codes(3), "test"), row(4, random_codes(4))],
    [row(5, random_codes(5), "valid")],
]
REJECTS = {
    0: [Reject("clip-x", "x.wav", "silent")],
    1: [Reject("clip-y", "y\u2028.wav", "not audio"), Reject("clip-z", "z.wav", "shorter than a frame")],
}


@st.composite
def stores(draw):
    """Shards of codes `[K, T]` with splits; K is the same in all."""
    num_codebooks = draw(st.integers(1, 5))
    clip = st.tuples(st.integers(1, 9), st.integers(0, 2**32), st.sampled_from(SPLITS))
    shapes = draw(st.lists(st.lists(clip, max_size=5), min_size=1, max_size=4).filter(any))
    shards, i = [], 0
    for shard in shapes:
        rows = []
        for num_frames, seed, split in shard:
            codes = np.random.default_rng(seed).integers(0, 2**16, size=(num_codebooks, num_frames))
            rows.append(row(i, codes, split))
            i += 1
        shards.append(rows)
    return num_codebooks, shards


@settings(max_examples=25, deadline=None)
@given(stores(), st.data())
def test_what_goes_in_comes_out(tmp_path_factory, store_and_shards, data):
    num_codebooks, shards = store_and_shards
    folder = tmp_path_factory.mktemp("tokens")
    assert write(folder, shards, num_codebooks=num_codebooks) == []
    store = TokenStore(folder)
    assert store.info == info(num_codebooks)
    for split in SPLITS:
        expected = [found for shard in shards for found in shard if found.split == split]
        found = store.split(split)
        assert len(found) == len(expected)
        assert found.num_frames.tolist() == [clip.codes.shape[1] for clip in expected]
        for i, clip in enumerate(expected):
            codes = found.codes(i)
            assert codes.dtype == np.int64
            np.testing.assert_array_equal(codes, clip.codes)
            num_frames = clip.codes.shape[1]
            start = data.draw(st.integers(0, num_frames))
            wanted = data.draw(st.integers(0, num_frames + 3))
            np.testing.assert_array_equal(
                found.codes(i, start, wanted), clip.codes[:, start : start + wanted]
            )
        for name in ("id", "num_samples", "source", "sha256", "caption"):
            assert found.column(name) == [getattr(clip, name) for clip in expected]
        for name in LABELS:
            assert found.column(name) == [clip.labels[name] for clip in expected]


def test_a_shard_of_many_record_batches(tmp_path, monkeypatch):
    """Each batch has its own offsets."""
    monkeypatch.setattr("tokkata.tokenize.store_writer._BATCH_BYTES", 1000)
    rows = [row(i, random_codes(i), SPLITS[i % 3]) for i in range(2500)]
    write(tmp_path, [rows, rows[:10]])
    assert len(TokenStore(tmp_path).dataset.data.column("codes").chunks) > 30
    found = TokenStore(tmp_path).split("valid")
    expected = [clip for clip in rows + rows[:10] if clip.split == "valid"]
    assert len(found) == len(expected)
    for i in (0, 333, 334, 700, 832, 833, 835):
        np.testing.assert_array_equal(found.codes(i), expected[i].codes)


def test_codes_are_frame_major_uint16(tmp_path):
    codes = np.array([[1, 2, 3], [10, 20, 65535]])
    write(tmp_path, [[row(0, codes)]], num_codebooks=2)
    dataset = TokenStore(tmp_path).dataset
    assert dataset[0]["codes"] == [1, 10, 2, 20, 3, 65535]
    assert dataset.features["codes"] == datasets.List(datasets.Value("uint16"))
    assert dataset[0]["num_frames"] == 3


def test_the_folder_is_a_hugging_face_dataset(tmp_path):
    write(tmp_path, SHARDS)
    dataset = datasets.load_from_disk(str(tmp_path))
    assert dataset["id"][:] == [f"clip-{i}" for i in range(6)]
    assert dataset["split"][:] == ["train", "valid", "train", "test", "train", "valid"]
    assert dataset[2]["caption"] == "clip 2, für Élise"
    assert dataset[1]["caption"] is None
    assert dataset.features["pitch"] == datasets.Value("int64")
    assert dataset.features["family"] == datasets.Value("string")
    # Also one that `datasets` can go on working with.
    assert dataset.filter(lambda clip: clip["pitch"] > 63, keep_in_memory=True)["pitch"][:] == [64, 65]


def test_rejects(tmp_path):
    told = write(tmp_path, SHARDS, REJECTS)
    assert told == [*REJECTS[0], *REJECTS[1]]
    assert read_rejects(tmp_path) == told
    assert sorted(path.name for path in tmp_path.glob("rejects*")) == ["rejects.jsonl"]


def test_nothing_but_empty_shards(tmp_path):
    assert write(tmp_path, [[], []], REJECTS) == [*REJECTS[0], *REJECTS[1]]
    store = TokenStore(tmp_path)
    assert [len(store.split(split)) for split in SPLITS] == [0, 0, 0]
    assert store.split("train").column("pitch") == []


# --- killed and resumed


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder, SHARDS, REJECTS)
    return files(folder)


def test_writing_twice_gives_the_same_bytes(tmp_path, undisturbed):
    write(tmp_path, SHARDS, REJECTS)
    assert files(tmp_path) == undisturbed


@pytest.mark.parametrize("killed_after", range(5))
def test_a_writer_killed_between_shards(tmp_path, undisturbed, killed_after):
    first = TokenWriter(tmp_path, info(), LABELS, len(SHARDS))
    for number in range(killed_after):
        first.write(number, SHARDS[number], REJECTS.get(number, []))
    with pytest.raises(UserError, match="holds no finished token store"):
        TokenStore(tmp_path)
    second = TokenWriter(tmp_path, info(), LABELS, len(SHARDS))
    assert [second.has(number) for number in range(4)] == [number < killed_after for number in range(4)]
    assert write(tmp_path, SHARDS, REJECTS) == [*REJECTS[0], *REJECTS[1]]
    assert files(tmp_path) == undisturbed


def test_a_writer_killed_within_a_shard(tmp_path, undisturbed):
    def rows():
        yield SHARDS[2][0]
        raise KeyboardInterrupt

    first = TokenWriter(tmp_path, info(), LABELS, len(SHARDS))
    first.write(0, SHARDS[0], REJECTS[0])
    with pytest.raises(KeyboardInterrupt):
        first.write(2, rows(), [])
    (tmp_path / (PARTIAL_PREFIX + "data-00001-of-00004.arrow")).write_bytes(b"ha")  # killed harder
    assert not first.has(1)
    assert not first.has(2)
    write(tmp_path, SHARDS, REJECTS)
    assert files(tmp_path) == undisturbed


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place",
    ["rejects.jsonl", "codec.json", "shards.json", "dataset_info.json", "state.json", "shard-00002.json"],
)
def test_a_writer_killed_while_it_finishes(tmp_path, undisturbed, place, monkeypatch):
    writer = TokenWriter(tmp_path, info(), LABELS, len(SHARDS))
    for number, rows in enumerate(SHARDS):
        writer.write(number, rows, REJECTS.get(number, []))
    rename, remove = Path.replace, Path.unlink
    with monkeypatch.context() as patch:
        if place == "dataset_info.json":
            patch.setattr("datasets.DatasetInfo.write_to_directory", interrupt)
        patch.setattr(Path, "replace", lambda a, b: interrupt() if b.name == place else rename(a, b))
        patch.setattr(Path, "unlink", lambda a, **m: interrupt() if a.name == place else remove(a, **m))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert writer.is_finished == (place == "shard-00002.json")
    if not writer.is_finished:
        with pytest.raises(UserError, match="holds no finished token store"):
            TokenStore(tmp_path)
    write(tmp_path, SHARDS, REJECTS)
    assert files(tmp_path) == undisturbed


def test_finishing_twice_changes_nothing(tmp_path, undisturbed):
    write(tmp_path, SHARDS, REJECTS)
    assert write(tmp_path, SHARDS, REJECTS) == [*REJECTS[0], *REJECTS[1]]
    assert files(tmp_path) == undisturbed


def test_a_finished_store_can_be_moved(tmp_path):
    write(tmp_path / "here", SHARDS)
    (tmp_path / "here").rename(tmp_path / "there")
    found = TokenStore(tmp_path / "there").split("valid")
    np.testing.assert_array_equal(found.codes(1), SHARDS[3][0].codes)


# --- what a user sees after a fault


def test_no_store(tmp_path):
    folder = tmp_path / "tokens"
    with pytest.raises(UserError) as caught:
        TokenStore(folder)
    assert str(caught.value) == f"{folder} holds no finished token store: run the stage tokenize first"


def test_a_label_that_the_tokens_have_not(tmp_path):
    write(tmp_path, SHARDS)
    with pytest.raises(UserError) as caught:
        TokenStore(tmp_path).split("train").column("colour")
    assert str(caught.value) == "the tokens have no label 'colour': they have pitch, family"


def test_labels_named_like_columns(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"labels cannot be named like columns of the store: \['codes', 'id'\]"
    ):
        TokenWriter(tmp_path, info(), {"codes": int, "id": str, "pitch": int}, 1)
