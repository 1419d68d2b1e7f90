"""Files that are damaged, change, or do not say their length: what is noticed, and what is read anyway."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import load_audio
from tokkata.core.audio_file import BLOCK_FRAMES, AudioError, open_source
from tokkata.core.audio_stream import open_audio
from tokkata.core.schema import Audio

RATE = 44100


def noise(num_samples, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.2, 0.2, (num_samples, channels)).astype(np.float32)


def encoded(samples, **format):
    """The bytes of a sound file of `samples` [N, C]."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, samples.shape[1], **format) as file:
        for start in range(0, len(samples), 4096):
            file.write(samples[start : start + 4096])
    return buffer.getvalue()


def reason(source):
    """Why `source` is refused."""
    with pytest.raises(AudioError) as caught:
        open_audio(source, RATE, 1)
    return str(caught.value)


WAV, FLAC, OGG, MP3 = (
    encoded(noise(3 * BLOCK_FRAMES), format=name) for name in ("WAV", "FLAC", "OGG", "MP3")
)

# --- bytes, as they come out of an archive


def test_bytes_are_checked_like_files():
    assert reason(b"") == "empty file (0 bytes)"
    assert reason(b"notes, but of another kind\n" * 50).startswith("not audio")
    assert (
        reason(WAV[:-4])
        == f"truncated: header says {3 * BLOCK_FRAMES} frames, {3 * BLOCK_FRAMES - 1} are there"
    )
    np.testing.assert_allclose(load_audio(WAV, RATE, 2).T, noise(3 * BLOCK_FRAMES), atol=1 / 32768)


# --- damage


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 0.999), st.integers(1, 255))
def test_one_wrong_byte_in_a_flac_file_is_noticed(place, change):
    damaged = bytearray(FLAC)
    damaged[int(place * len(damaged))] ^= change
    assert reason(bytes(damaged)) == "damaged: cannot be decoded to its end"


def test_an_ogg_file_with_a_hole_is_noticed():
    middle = len(OGG) // 2
    assert reason(OGG[:middle] + bytes(3000) + OGG[middle + 3000 :]).startswith(
        "truncated: header says 196608 frames"
    )


def test_an_mp3_file_is_damaged_where_the_decoder_loses_its_way():
    middle = len(MP3) // 2
    assert (
        reason(MP3[:middle] + bytes(3000) + MP3[middle + 3000 :]) == "damaged: cannot be decoded to its end"
    )


@pytest.mark.parametrize("file", [OGG, MP3], ids=["ogg", "mp3"])
def test_an_early_end_of_ogg_and_mp3_is_not_noticed(file):
    stream = open_audio(file[: len(file) // 2], RATE, 2)
    assert 0.4 < stream.num_samples / (3 * BLOCK_FRAMES) < 0.6
    whole = load_audio(file, RATE, 2)
    np.testing.assert_array_equal(stream.read()[:, :70_000], whole[:, :70_000])


FILES = {
    "wav": WAV,
    "flac": FLAC,
    "ogg": OGG,
    "mp3": MP3,
    "mp3 without length": MP3.replace(b"Info", b"----", 1),
}


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(sorted(FILES)),
    damage=st.lists(
        st.tuples(st.floats(0.0, 0.999), st.binary(max_size=2000), st.integers(0, 2000)), max_size=3
    ),
    wanted=st.sampled_from([Audio(), Audio(trim_silence_db=3.0, loudness_lufs=-30.0, max_duration_s=2.0)]),
)
def test_whatever_is_wrong_it_is_an_audio_error_or_as_long_as_told(name, damage, wanted):
    file = FILES[name]
    for place, instead, num_bytes in damage:
        start = int(place * len(file))
        file = file[:start] + instead + file[start + num_bytes :]
    try:
        stream = open_audio(file, 32000, 1, wanted)
    except AudioError:
        return
    assert sum(block.shape[1] for block in stream.blocks()) == stream.num_samples


# --- lengths that no header tells


def without_length(mp3):
    """An mp3 file of MPEG-1 layer III less its first frame, the tag that tells the number of frames."""
    kbps = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[mp3[2] >> 4]
    return mp3[144_000 * kbps // RATE + (mp3[2] >> 1 & 1) :]


def loud_then_quiet():
    """10 s: full bit rate first, then hardly any, so that an estimate from the beginning is far too short."""
    tone = 0.01 * np.sin(np.arange(8 * RATE) / 20.0).astype(np.float32)
    return np.concatenate([noise(2 * RATE, 1), tone[:, None]])


def test_an_mp3_file_without_a_length_is_read_to_its_end():
    mp3 = encoded(loud_then_quiet(), format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    bare = without_length(mp3)
    with soundfile.SoundFile(io.BytesIO(bare)) as file:
        assert file.frames < 8 * RATE  # what libsndfile would stop at
    whole = load_audio(bare, RATE, 1)
    assert 10 * RATE <= whole.shape[1] <= 10 * RATE + 3 * 1152  # encoders add a beginning and an end
    tail = whole[0, 9 * RATE : 10 * RATE]
    assert np.abs(np.fft.rfft(tail)).argmax() == round(RATE / (2 * np.pi * 20.0))  # the quiet tone, at 351 Hz

    tagged_at_end = load_audio(bare + b"TAG" + bytes(125), RATE, 1)
    np.testing.assert_array_equal(tagged_at_end, whole)
    id3v2 = b"ID3\x03\0\0" + bytes([0, 0, 40, 0]) + bytes(40 << 7)
    np.testing.assert_array_equal(load_audio(id3v2 + bare, RATE, 1), whole)
    # Cut in the middle of a frame: all but the last frames are read.
    cut = load_audio(bare[:-100], RATE, 1)
    assert 0 < whole.shape[1] - cut.shape[1] <= 3 * 1152
    np.testing.assert_array_equal(cut, whole[:, : cut.shape[1]])


def test_a_length_tag_decides_where_an_mp3_file_ends():
    mp3 = encoded(loud_then_quiet(), format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    assert load_audio(mp3, RATE, 1).shape[1] == 10 * RATE  # the encoder's beginning and end are left out
    id3v2 = b"ID3\x03\0\0" + bytes([0, 0, 40, 0]) + bytes(40 << 7)
    np.testing.assert_array_equal(load_audio(id3v2 + mp3, RATE, 1), load_audio(mp3, RATE, 1))


def test_a_flac_file_from_a_streaming_encoder():
    """It does not know its length when it writes its header, and a pipe cannot go back."""
    flac = bytearray(FLAC)
    flac[8 + 13] &= 0xF0  # 36 bits of STREAMINFO, behind `fLaC` and the block's own header
    flac[8 + 14 : 8 + 18] = bytes(4)
    np.testing.assert_array_equal(load_audio(bytes(flac), RATE, 2), load_audio(FLAC, RATE, 2))
    start = open_audio(bytes(flac), RATE, 2, Audio(trim_silence_db=0.001)).facts.trim_start_s
    assert start == open_audio(FLAC, RATE, 2, Audio(trim_silence_db=0.001)).facts.trim_start_s


# --- files that change, and disks that fail


@pytest.mark.parametrize("file", [WAV, FLAC, MP3], ids=["wav", "flac", "mp3"])
def test_a_file_that_changes_between_two_passes(tmp_path, file):
    path = tmp_path / "a"
    path.write_bytes(file)
    stream = open_audio(path, RATE, 2)
    path.write_bytes(file[: len(file) // 2])
    with pytest.raises(AudioError, match=r"^changed while it was read$"):
        stream.read()
    path.unlink()
    with pytest.raises(AudioError, match=r"^cannot be opened: no such file or directory$"):
        stream.read()


@pytest.mark.parametrize("file", [WAV, FLAC, MP3], ids=["wav", "flac", "mp3"])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, file):
    path = tmp_path / "a"
    path.write_bytes(file)
    blocks = open_audio(path, RATE, 2).blocks()
    next(blocks)
    os.truncate(path, len(file) // 2)
    with pytest.raises(
        AudioError, match=r"^(changed while it was read|damaged: cannot be decoded to its end)$"
    ):
        list(blocks)


class BrokenDisk(io.FileIO):
    """A file whose second half cannot be read."""

    def readinto(self, buffer):
        if self.tell() + len(buffer) > os.fstat(self.fileno()).st_size // 2:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(buffer)


@pytest.mark.parametrize("file", [WAV, FLAC, OGG, MP3], ids=["wav", "flac", "ogg", "mp3"])
def test_a_disk_that_fails(tmp_path, monkeypatch, file):
    path = tmp_path / "a"
    path.write_bytes(file)
    reader = open_source(path)
    monkeypatch.setattr(Path, "open", lambda path, mode: io.BufferedReader(BrokenDisk(path)))
    with pytest.raises(AudioError, match=r"^cannot be read: input/output error$"):
        list(reader.read())
    assert reason(path) == "cannot be read: input/output error"
