"""WebDataset's tar files: samples, descriptions, splits, damage."""

import io
import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import WebDatasetCorpus
from tokkata.tokenize.corpora.tar_index import read_tar_index
from tokkata.tokenize.corpora.web_dataset import WebDataset
from tokkata.tokenize.corpus import read_clip


def corpus(root, **changes):
    return WebDataset(WebDatasetCorpus(kind="webdataset", root=root, **changes))


def wav(seed, num_samples=1600):
    file = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples)
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    """`members`: names and bytes, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(count, start=0):
    """Members of `count` samples, each a sound and its description."""
    for i in range(start, start + count):
        yield f"{i:04d}.wav", wav(i)
        yield f"{i:04d}.json", json.dumps({"pitch": 60 + i, "tags": ["a"]}).encode()


def test_samples_of_shards_in_folders(tmp_path):
    odd = [
        ("notes", b"no dot"),
        ("./x/._0007.wav", b"hidden"),
        ("./x/0009.JSON", b'{"pitch": 1, "tags": []}'),
    ]
    write_tar(tmp_path / "b.tar", [*samples(2), *odd])
    write_tar(tmp_path / "y" / "a.tar", samples(3, 5), tarfile.GNU_FORMAT)
    found = corpus(tmp_path)
    assert found.label_types == {"pitch": int, "tags": tuple}
    clips = found.clips()
    assert [clip.id for clip in clips] == ["b/0000", "b/0001", "b/x/0009", "y/a/0005", "y/a/0006", "y/a/0007"]
    assert clips[3].labels == {"pitch": 65, "tags": ("a",)}
    assert clips[3].source == "y/a.tar 0005"
    assert {clip.split for clip in clips} == {"train", "valid", "test"}
    for clip, seed in [(clips[0], 0), (clips[1], 1), (clips[3], 5), (clips[5], 7)]:
        assert found.audio(clip) == wav(seed)
        assert read_clip(found, clip, 16000, 1).samples.shape == (1, 1600)
    with pytest.raises(AudioError, match="the sample has no audio file"):
        found.audio(clips[2])


def test_captions_classes_and_several_sounds(tmp_path):
    members = [
        ("a.mix.wav", wav(0)), ("a.drums.wav", wav(1)), ("a.txt", "leise – sehr\n".encode()), ("a.cls", b"3"),
        ("b.mix.wav", wav(2)), ("b.drums.wav", wav(3)), ("b.cls", b"7\n"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=r"sample a/a has drums\.wav and mix\.wav: say which one is wanted"):
        corpus(tmp_path)
    found = corpus(tmp_path, audio="mix.wav")
    assert [(clip.caption, clip.labels) for clip in found.clips()] == [
        ("leise – sehr", {"cls": 3}),
        (None, {"cls": 7}),
    ]
    assert [found.audio(clip) for clip in found.clips()] == [wav(0), wav(2)]


def test_names_of_shards_say_their_split(tmp_path):
    for name, start in (("train-0000", 0), ("train-0001", 50), ("val-0000", 100), ("extra/x", 150)):
        write_tar(tmp_path / f"{name}.tar", samples(50 if "train" in name else 5, start))
    found = corpus(tmp_path, shards=["train-{0000..0001}.tar", "{val,extra/x}*.tar"])
    splits = {clip.id: clip.split for clip in found.clips()}
    assert len(splits) == 110
    assert {split for name, split in splits.items() if name.startswith("val")} == {"valid"}
    rest = [split for name, split in splits.items() if not name.startswith("val")]
    assert {*rest} == {"train", "test"}
    assert len(corpus(tmp_path, shards=["train-0001.tar"]).clips()) == 50
    for shards, told in [
        (["train-{0000..0002}.tar"], r"holds no train-0002\.tar"),
        (["/x.tar"], r"/x\.tar must be a path below data\.root"),
        (["train-{1..0}.tar"], "counts down"),
    ]:
        with pytest.raises(UserError, match=told):
            corpus(tmp_path, shards=shards)


def test_a_shard_that_ends_early_is_used_up_to_there(tmp_path, capsys):
    whole = write_tar(tmp_path / "a.tar", samples(20)).read_bytes()
    members = read_tar_index(tmp_path / "a.tar").members
    # Inside the sound of the eleventh sample; inside its description, which a sample cannot do without.
    for member in (members[20], members[21]):
        (tmp_path / "a.tar").write_bytes(whole[: member.offset + 3])
        assert len(corpus(tmp_path).clips()) == 10
        told = capsys.readouterr().err
        assert (
            f"a.tar is damaged at byte {member.offset - 512} ({member.name} is cut off): the 10 samples"
            in told
        )
    (tmp_path / "a.tar").write_bytes(whole[: members[22].offset - 512])
    assert len(corpus(tmp_path).clips()) == 11
    assert "(its end is missing): the 11 samples before it are used" in capsys.readouterr().err
    garbled = bytearray(whole)
    garbled[members[30].offset - 400 : members[30].offset - 300] = b"x" * 100
    (tmp_path / "a.tar").write_bytes(garbled)
    assert len(corpus(tmp_path).clips()) == 15
    assert f"at byte {members[30].offset - 512} (a header is not valid)" in capsys.readouterr().err


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_damage_leads_astray(tmp_path_factory, data):
    """Whatever bytes change: members before them are found as they were, and the reader ends."""
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [("a" * 120 + ".wav", b"1" * 700), ("b.json", b"{}"), ("c.wav", b"2" * 100)])
    whole, members = bytearray(path.read_bytes()), read_tar_index(path).members
    at = data.draw(st.integers(512, len(whole) - 1))
    new = data.draw(st.binary(min_size=1, max_size=20))
    whole[at : at + len(new)] = new
    path.write_bytes(whole[: data.draw(st.integers(at, len(whole)))])
    try:
        found = read_tar_index(path)
    except UserError:
        assert at < members[0].offset
        return
    before = [member for member in members if member.offset + member.num_bytes <= at]
    assert found.members[: len(before)] == before
    size = path.stat().st_size
    assert all(member.offset >= 0 and member.offset + member.num_bytes <= size for member in found.members)


def test_what_is_no_shard_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is no folder: give the one that holds the tar files"):
        corpus(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no \*\*/\*\.tar"):
        corpus(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"a\.tar is no tar file"):
        corpus(tmp_path)
    for mode, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        tarfile.open(tmp_path / "a.tar", mode).close()
        with pytest.raises(
            UserError, match=f"is compressed with {name}, and cannot be read at random: unpack"
        ):
            corpus(tmp_path)
    write_tar(tmp_path / "a.tar", [("readme", b"")])
    with pytest.raises(UserError, match="the shards hold no sample"):
        corpus(tmp_path)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("a.wav", b""), ("a.wav", b"")], r"a\.tar holds a\.wav twice"),
        ([("a.wav", b""), ("b.wav", b""), ("a.json", b"{}")], r"the members of a/a are not neighbours"),
        ([("a.wav", b""), ("a.json", b"{")], r"a\.tar member a\.json: not JSON in UTF-8"),
        ([("a.wav", b""), ("a.json", b"[1]")], r"member a\.json: an object such as"),
        ([("a.wav", b""), ("a.txt", b"\xff")], r"member a\.txt: not text in UTF-8"),
        (
            [("a.wav", b""), ("a.cls", b"1"), ("b.wav", b""), ("b.cls", b"x")],
            r"a\.tar sample b: cls is 'x', but a",
        ),
        ([("a.wav", b""), ("a.cls", b"1"), ("b.wav", b"")], r"a\.tar sample b: cls is empty"),
    ],
)
def test_faults_of_samples_are_one_sentence(tmp_path, members, told):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=told):
        corpus(tmp_path)


def test_a_shard_that_changes_afterwards(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(3))
    found = corpus(tmp_path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(AudioError, match=r"a\.tar has become shorter"):
        found.audio(found.clips()[2])
    path.unlink()
    with pytest.raises(AudioError, match=r"a\.tar cannot be read: no such file"):
        found.audio(found.clips()[2])


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_tar_files_of_another_program(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(wav(i))
    subprocess.run(["tar", "cf", "a.tar", "./0.wav", "1.wav", "2.wav"], cwd=tmp_path, check=True)
    found = corpus(tmp_path)
    assert [found.audio(clip) for clip in found.clips()] == [wav(0), wav(1), wav(2)]
