"""From folders to clips that tell nothing: formats, names, loudness, anchors."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyloudnorm
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.eval.listening import build
from tokkata.eval.listening.build import low_pass
from tokkata.eval.listening.check_clips import TONE_COUNTS, counted_tones, quietest_of_three
from tokkata.eval.listening.collect import collect, read_prompts
from tokkata.eval.listening.definition import database_path, load_definition, stimuli_folder
from tokkata.eval.listening.stimuli import load_manifest


@pytest.fixture(scope="module")
def acr(make_test, tmp_path_factory):
    return make_test(tmp_path_factory.mktemp("acr"))


def test_all_clips_are_there_once(acr):
    manifest = load_manifest(acr)
    items = [f"melody{k}" for k in range(6)]
    for system in ("zephyr", "quagga", "reference", "anchor_3500"):
        assert list(manifest.of_system(system)) == items
    assert list(manifest.of_system("attention")) == ["1", "2", "3", "4", "5"]
    assert list(manifest.of_system("volume")) == ["volume"]
    assert sorted(manifest.of_system("headphones")) == ["1", "2", "3"]
    assert len(manifest.stimuli) == 4 * 6 + 5 + 1 + 3
    roles = {clip.system: clip.role for clip in manifest.stimuli.values()}
    assert (roles["zephyr"], roles["reference"], roles["anchor_3500"]) == ("scored", "reference", "anchor")
    assert load_definition(acr).paired


def test_clips_differ_in_nothing_but_what_is_heard(acr):
    manifest = load_manifest(acr)
    formats, loudness = set(), []
    for clip in manifest.stimuli.values():
        path = stimuli_folder(acr) / f"{clip.id}.wav"
        samples, rate = soundfile.read(path, always_2d=True)
        loudness.append(pyloudnorm.Meter(rate).integrated_loudness(samples))
        if clip.role != "check":
            info = soundfile.info(path)
            formats.add((info.samplerate, info.channels, info.subtype, info.format))
            assert clip.duration_s == len(samples) / rate
    assert formats == {(48000, 1, "PCM_16", "WAV")}
    np.testing.assert_allclose(loudness, -23.0, atol=0.02)


def test_neither_names_nor_times_nor_bytes_of_files_tell_a_system(acr):
    folder = stimuli_folder(acr)
    manifest = load_manifest(acr)
    assert {path.name for path in folder.iterdir()} == {f"{id}.wav" for id in manifest.stimuli} | {
        "manifest.json"
    }
    written = sorted(folder.glob("*.wav"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in written] == sorted(manifest.stimuli)
    for path in written:
        data = path.read_bytes()
        # A header of 44 bytes, and samples: no other chunk that could hold words.
        assert data[:4] == b"RIFF"
        assert (data[12:16], data[36:40]) == (b"fmt ", b"data")
        assert len(data) == 44 + int.from_bytes(data[40:44], "little")


def test_stereo_of_one_makes_all_stereo(make_test, clip_folders, tmp_path):
    folder = tmp_path / "stereo"
    folder.mkdir()
    for path in clip_folders["zephyr"].iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(folder / path.name, np.stack([samples, 0.5 * samples], axis=1), rate)
    systems = [{"name": "wide", "path": str(folder)}, {"name": "quagga", "path": str(clip_folders["quagga"])}]
    test = make_test(tmp_path, systems=systems, anchors_hz=[])
    assert {soundfile.info(path).channels for path in stimuli_folder(test).glob("*.wav")} == {2}


def test_peaks_lower_the_loudness_of_all(make_test, clip_folders, tmp_path):
    folder = tmp_path / "peaks"
    folder.mkdir()
    for path in clip_folders["zephyr"].iterdir():
        samples, rate = soundfile.read(path)
        samples *= 0.1 / np.abs(samples).max()
        samples[100] = 1.0
        soundfile.write(folder / path.name, samples, rate)
    test = make_test(tmp_path, systems=[{"name": "peaky", "path": str(folder)}])
    definition, manifest = load_definition(test), load_manifest(test)
    assert -40.0 < definition.loudness_lufs < -23.0
    for clip in manifest.stimuli.values():
        samples, rate = soundfile.read(stimuli_folder(test) / f"{clip.id}.wav", always_2d=True)
        assert np.abs(samples).max() <= 0.99
        measured = pyloudnorm.Meter(rate).integrated_loudness(samples)
        assert measured == pytest.approx(definition.loudness_lufs, abs=0.05)


def test_long_clips_are_cut_softly(make_test, tmp_path):
    test = make_test(tmp_path, max_duration_s=0.45, anchors_hz=[])
    for id in load_manifest(test).of_system("zephyr").values():
        samples, rate = soundfile.read(stimuli_folder(test) / f"{id}.wav")
        assert len(samples) == round(0.45 * rate)
        assert abs(samples[-1]) < 1e-3


def test_a_codec_gives_the_ceiling(make_test, tmp_path, monkeypatch):
    codec = SimpleNamespace(
        sample_rate=16000, channels=1, reconstruct=lambda audio: audio.round(decimals=1)[..., :-30]
    )
    monkeypatch.setattr(build, "_codec", lambda id: codec)
    test = make_test(tmp_path, codec="coarse", anchors_hz=[])
    manifest = load_manifest(test)
    for item, id in manifest.of_system("reconstructed").items():
        clip, real = manifest.stimuli[id], manifest.stimuli[manifest.of_system("reference")[item]]
        assert (clip.role, clip.duration_s) == ("reference", real.duration_s)
        assert clip.sha256 != real.sha256


def test_versions_side_by_side_are_equally_long(make_test, clip_folders, tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    for path in clip_folders["zephyr"].iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(folder / path.name, samples[:-200], rate)
    systems = [{"name": "clipped", "path": str(folder)}]
    test = make_test(tmp_path, "mushra", systems=systems, attention_items=0)
    clips = [clip for clip in load_manifest(test).stimuli.values() if clip.role != "check"]
    assert {clip.duration_s for clip in clips} == {(8000 - 200) / 16000}
    for path in folder.iterdir():
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[:-2000], rate)
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=r"item 'melody0' lasts 0.36 s in 'clipped' and 0.50 s in"):
        make_test(tmp_path / "again", "mushra", systems=systems, attention_items=0)


# -------------------------------------------------------------------------------------------- anchors


@pytest.mark.parametrize("cutoff", [3500, 7000])
def test_anchors_keep_what_is_below_and_nothing_else(cutoff):
    rate = 48000
    impulse = np.zeros((1, rate), np.float32)
    impulse[0, rate // 2] = 1.0
    response = low_pass(impulse, cutoff, rate)[0]
    decibels = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-12)  # a bin a hertz
    assert np.abs(decibels[20 : cutoff + 1]).max() < 0.1
    assert decibels[cutoff + 500 :].max() < -25.0
    assert decibels[cutoff + 1000 :].max() < -50.0
    # No delay: the response is the same forwards and backwards.
    np.testing.assert_allclose(response[1:], response[:0:-1], atol=1e-4)


# ---------------------------------------------------------------------------------------- check clips


@pytest.mark.parametrize("count", TONE_COUNTS)
def test_tones_can_be_counted_and_only_to_the_end(count):
    audio = counted_tones(count, 8000, 2)
    assert audio.shape == (2, 4 * 8000)
    loud = np.abs(audio[0]).reshape(-1, 80).max(axis=1) > 0.01  # in steps of 10 ms
    starts = np.flatnonzero(loud[1:] & ~loud[:-1])
    assert len(starts) == count
    assert 3.1 < starts[-1] / 100 < 3.3


def test_the_quietest_tone_is_another_over_loudspeakers():
    audio = quietest_of_three(2, 3, 8000)
    thirds = np.stack([audio[:, k * 12000 : k * 12000 + 8000] for k in range(3)])
    headphones = np.square(thirds).sum(axis=(1, 2))
    loudspeakers = np.square(thirds.sum(axis=1)).sum(axis=1)
    assert headphones.argmin() == 1
    assert headphones[1] / headphones[0] == pytest.approx(10 ** (-0.6), rel=1e-3)
    assert loudspeakers.argmin() == 2


# ------------------------------------------------------------------------------------------ collection


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


NAMES = st.sets(st.sampled_from("abcdef"), min_size=1)


@given(ours=NAMES, theirs=NAMES)
def test_files_are_matched_by_name_where_they_can_be(tmp_path_factory, ours, theirs):
    root = tmp_path_factory.mktemp("folders")
    folders = {
        "ours": touch(root / "ours", *(f"{name}.wav" for name in ours)),
        "theirs": touch(root / "theirs", *(f"{name}.flac" for name in theirs)),
    }
    found = collect(folders)
    assert found.paired == bool(ours & theirs)
    if found.paired:
        assert found.items == sorted(ours & theirs)
        assert found.paths["ours"][found.items[0]] == root / "ours" / f"{found.items[0]}.wav"
        assert found.num_left_out == len(ours) + len(theirs) - 2 * len(ours & theirs)
    else:
        num = min(len(ours), len(theirs))
        assert found.items == [f"{k + 1:03d}" for k in range(num)]
        assert [path.stem for path in found.paths["ours"].values()] == sorted(ours)[:num]


def test_folders_that_cannot_be_used(tmp_path):
    good = touch(tmp_path / "good", "a.wav")
    with pytest.raises(UserError, match="is not a folder"):
        collect({"a": good, "b": tmp_path / "none"})
    with pytest.raises(UserError, match="has no audio files"):
        collect({"a": good, "b": touch(tmp_path / "empty", "notes.txt")})
    with pytest.raises(UserError, match="two files named a"):
        collect({"a": touch(tmp_path / "twice", "a.wav", "a.flac")})


def test_prompts(make_test, clip_folders, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for k in range(5):
        (folder / f"melody{k}.txt").write_text(f"a tune, {k}\n", encoding="utf-8")
    assert read_prompts(folder, ["melody1"]) == {"melody1": "a tune, 1"}
    with pytest.raises(UserError, match=r"melody5\.txt cannot be read: every item needs its prompt"):
        make_test(tmp_path, prompts=str(folder))
    assert not (tmp_path / "test.yaml").exists()
    assert not stimuli_folder(tmp_path / "test.yaml").exists()
    (folder / "melody5.txt").write_text("a tune, 5\n", encoding="utf-8")
    assert load_manifest(make_test(tmp_path, prompts=str(folder))).prompts["melody5"] == "a tune, 5"


# -------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.zeros(8000), "cannot be used: silent"),
        (0.1 * np.ones(3000), "too short"),
        (np.full(8000, 2e-4), "too quiet"),
    ],
)
def test_clips_that_cannot_be_used(make_test, clip_folders, tmp_path, samples, sentence):
    folder = tmp_path / "fault"
    folder.mkdir()
    soundfile.write(folder / "melody0.wav", samples, 16000)
    with pytest.raises(UserError, match=sentence) as told:
        make_test(tmp_path, systems=[{"name": "faulty", "path": str(folder)}], items_per_listener=1)
    assert str(folder / "melody0.wav") in str(told.value)
    assert not (tmp_path / "test.yaml").exists()


def test_too_many_items_are_refused(make_test, tmp_path):
    with pytest.raises(UserError, match="7 items per listener are asked for, but the folders share only 6"):
        make_test(tmp_path, items_per_listener=7)


def test_mushra_needs_shared_names(make_test, clip_folders, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in clip_folders["zephyr"].iterdir():
        (folder / f"other-{path.name}").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="the folders must share file names"):
        make_test(tmp_path, "mushra", systems=[{"name": "other", "path": str(folder)}])


def test_a_test_is_never_overwritten(copy_test, make_test, tmp_path):
    test = copy_test(tmp_path)
    before = test.read_bytes()
    with pytest.raises(UserError, match=r"test\.yaml is there already"):
        make_test(tmp_path)
    assert test.read_bytes() == before
    test.unlink()
    with pytest.raises(UserError, match="test-stimuli is there already"):
        make_test(tmp_path)
    stimuli_folder(test).rename(tmp_path / "elsewhere")
    database_path(test).write_bytes(b"answers to another test")
    with pytest.raises(UserError, match=r"test\.sqlite is there already"):
        make_test(tmp_path)


def test_a_damaged_folder_of_clips_is_told(copy_test, tmp_path):
    test = copy_test(tmp_path)
    manifest = stimuli_folder(test) / "manifest.json"
    some = next(stimuli_folder(test).glob("*.wav"))
    some.rename(tmp_path / "elsewhere.wav")
    with pytest.raises(UserError, match="is missing: make the test again"):
        load_manifest(test)
    values = json.loads(manifest.read_text())
    values["stimuli"][0]["id"] = "../../secret"
    (tmp_path / "secret.wav").write_bytes(io.BytesIO().getvalue())
    manifest.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is missing"):
        load_manifest(test)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="cannot be read as the list of the test's clips"):
        load_manifest(test)
