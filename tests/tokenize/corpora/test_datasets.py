"""What holds for every research dataset: ids, labels, missing files, and the sentence for each bad index."""

import json
from typing import get_args

import pytest
from pydantic import TypeAdapter

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import Corpus as CorpusConfig
from tokkata.core.sections import Split
from tokkata.tests.made_corpora import MAKERS, make_maestro, make_nsynth, write_noise
from tokkata.tokenize.corpora.dataset_facts import DATASETS
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus

INDEXES = {
    "nsynth": "nsynth-valid/examples.json",
    "gtzan": "valid_filtered.txt",
    "musicnet": "musicnet_metadata.csv",
    "maestro": "maestro-v3.0.0/maestro-v3.0.0.csv",
    "magnatagatune": "annotations_final.csv",
}

every_kind = pytest.mark.parametrize("kind", MAKERS)


def corpus(kind, root, **settings):
    """As from a recipe."""
    values = {"kind": kind, "root": str(root), **settings}
    return load_corpus(TypeAdapter(CorpusConfig).validate_python(values))


def sentence(kind, root):
    with pytest.raises(UserError) as caught:
        corpus(kind, root).clips()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_kind
def test_every_clip_is_listed_with_its_labels_and_can_be_read(kind, tmp_path):
    made = corpus(kind, MAKERS[kind](tmp_path))
    clips = made.clips()
    assert [clip.id for clip in clips] == sorted({clip.id for clip in clips})
    for clip in clips:
        assert {name: type(value) for name, value in clip.labels.items()} == made.label_types
        assert (tmp_path / clip.source).is_file()
        assert made.audio(clip) == tmp_path / clip.source
        assert read_clip(made, clip, 8000, 1).samples.shape[0] == 1
    assert {clip.split for clip in clips} == set(get_args(Split))


@every_kind
def test_ids_and_sources_do_not_depend_on_where_the_corpus_lies(kind, tmp_path):
    one = corpus(kind, MAKERS[kind](tmp_path / "one")).clips()
    other = corpus(kind, MAKERS[kind](tmp_path / "elsewhere" / "other")).clips()
    assert one == other
    assert not any(str(tmp_path) in f"{clip.id} {clip.source} {clip.labels}" for clip in one)


@every_kind
def test_a_missing_file_keeps_its_clip_and_is_rejected_when_read(kind, tmp_path):
    made = corpus(kind, MAKERS[kind](tmp_path))
    before = made.clips()
    gone = before[0]
    (tmp_path / gone.source).unlink()
    after = made.clips()
    assert [(clip.id, clip.split, clip.labels) for clip in after] == [
        (clip.id, clip.split, clip.labels) for clip in before
    ]
    with pytest.raises(AudioError, match=r"^file is missing$"):
        made.audio(after[0])
    read_clip(made, after[1], 8000, 1)


@every_kind
def test_a_missing_index_is_one_sentence_with_an_address(kind, tmp_path):
    (MAKERS[kind](tmp_path) / INDEXES[kind]).unlink()
    told = sentence(kind, tmp_path)
    name = INDEXES[kind].rpartition("/")[2]
    assert told.startswith(f"{DATASETS[kind].name} needs {tmp_path}")
    assert f"{name}, which is missing: get it from https://" in told


@every_kind
def test_an_index_that_is_no_text_is_one_sentence(kind, tmp_path):
    index = MAKERS[kind](tmp_path) / INDEXES[kind]
    index.write_bytes(b"\xff\xfe\x00\x81")
    told = sentence(kind, tmp_path)
    assert str(index) in told
    assert "text" in told
    assert "get it from https://" in told


@every_kind
def test_an_index_of_another_format_is_one_sentence(kind, tmp_path):
    index = MAKERS[kind](tmp_path) / INDEXES[kind]
    index.write_text('["something", "else"]\n')
    told = sentence(kind, tmp_path)
    assert str(index) in told
    assert "get" in told


@every_kind
def test_an_index_may_begin_with_a_byte_order_mark(kind, tmp_path):
    index = MAKERS[kind](tmp_path) / INDEXES[kind]
    before = corpus(kind, tmp_path).clips()
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert corpus(kind, tmp_path).clips() == before


@every_kind
def test_a_root_that_is_not_there_is_one_sentence(kind, tmp_path):
    assert sentence(kind, tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'} does not exist: give the")
    (tmp_path / "file").touch()
    assert "is a file: give the folder" in sentence(kind, tmp_path / "file")
    index = MAKERS[kind](tmp_path / "made") / INDEXES[kind]
    assert "is a file: give the folder" in sentence(kind, index)


@every_kind
def test_an_empty_root_is_one_sentence(kind, tmp_path):
    assert str(tmp_path) in sentence(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "archive", "command"),
    [
        ("nsynth", "nsynth-test.jsonwav.tar.gz", "tar -xzf '{root}/nsynth-test.jsonwav.tar.gz' -C '{root}'"),
        ("musicnet", "musicnet.tar.gz", "tar -xzf '{root}/musicnet.tar.gz' -C '{root}'"),
        ("maestro", "maestro-v3.0.0.zip", "unzip '{root}/maestro-v3.0.0.zip' -d '{root}'"),
        (
            "magnatagatune",
            "mp3.zip.001",
            "cat '{root}/mp3.zip'.* > '{root}/mp3.zip' && unzip '{root}/mp3.zip' -d '{root}'",
        ),
    ],
)
def test_a_packed_archive_is_one_sentence_with_the_command(kind, archive, command, tmp_path):
    root = tmp_path / "my data"
    root.mkdir()
    (root / archive).touch()
    if kind == "magnatagatune":
        (root / "annotations_final.csv").write_text("clip_id\tguitar\tmp3_path\n2\t1\tf/a-0-29.mp3\n")
    told = sentence(kind, root)
    assert f"is still packed in {root / archive}: run `{command.format(root=root)}`" in told
    assert sentence(kind, root / archive) == told


def test_a_packed_split_beside_unpacked_ones_is_refused(tmp_path):
    make_nsynth(tmp_path)
    (tmp_path / "nsynth-train.jsonwav.tar.gz").touch()
    assert len(corpus("nsynth", tmp_path).clips()) == 5  # unpacked, and kept
    (tmp_path / "nsynth-train").rename(tmp_path / "away")
    assert "still packed" in sentence("nsynth", tmp_path)
    (tmp_path / "nsynth-train.jsonwav.tar.gz").unlink()
    assert {clip.split for clip in corpus("nsynth", tmp_path).clips()} == {"valid", "test"}


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    write_noise(tmp_path / "secret.wav")
    for name in ("../secret", str(tmp_path / "secret")):
        root = tmp_path / "made"
        make_maestro(root)
        index = root / "maestro-v3.0.0" / "maestro-v3.0.0.csv"
        index.write_text(index.read_text().replace("2018/four.wav", f"{name}.wav"))
        assert "line 5: 'audio_filename' leads out of the dataset's folder" in sentence("maestro", root)
    make_nsynth(tmp_path)
    index = tmp_path / "nsynth-test" / "examples.json"
    index.write_text(
        json.dumps({f"../../{name}": row for name, row in json.loads(index.read_text()).items()})
    )
    assert "leads out of the dataset's folder" in sentence("nsynth", tmp_path)


@every_kind
def test_facts_are_complete(kind):
    facts = DATASETS[kind]
    assert facts.homepage.startswith("http")
    assert facts.citation.startswith("@")
    assert facts.licence
    assert set(facts.splits) >= {"train", "test"}
    for archive in facts.archives:
        assert archive.url.startswith("https://")
        assert archive.name == archive.url.split("/")[-1]
        assert len(archive.md5 or "0" * 32) == 32
        assert len(archive.sha256 or "0" * 64) == 64


def test_published_sizes():
    sizes = {
        kind: sum(split.num_clips for split in facts.splits.values()) for kind, facts in DATASETS.items()
    }
    assert sizes == {
        "nsynth": 305_979,
        "gtzan": 930,
        "musicnet": 330,
        "maestro": 1276,
        "magnatagatune": 25_863,
    }
