"""Audio files: which are refused and why, and what happens to the ones that are read."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError, load_audio, resample, to_channels, write_wav


def tone(hz=440.0, duration_s=0.25, sample_rate=16000, channels=1, amplitude=0.5):
    """A sine, the same in every channel, [C, N]."""
    seconds = np.arange(round(duration_s * sample_rate)) / sample_rate
    return np.tile((amplitude * np.sin(2 * np.pi * hz * seconds)).astype(np.float32), (channels, 1))


def reason(path):
    """Why `path` is refused."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, 16000, 1)
    return str(caught.value)


def test_zero_byte_file(tmp_path):
    (tmp_path / "a.wav").touch()
    assert reason(tmp_path / "a.wav") == "empty file (0 bytes)"


def test_text_renamed_to_wav(tmp_path):
    (tmp_path / "a.wav").write_text("these are notes, but of another kind\n" * 50)
    assert reason(tmp_path / "a.wav").startswith("not audio")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_truncated_wav(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(channels=2).T, 16000, subtype=subtype)
    load_audio(path, 16000, 2)
    whole = path.read_bytes()
    assert whole.count(b"data") == 1
    start = whole.index(b"data") + 8
    frame_bytes = 2 * {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[subtype]
    path.write_bytes(whole[: start + 1234 * frame_bytes])
    assert reason(path) == "truncated: header says 4000 frames, 1234 are there"
    path.write_bytes(whole[:-1])
    assert reason(path) == "truncated: header says 4000 frames, 3999 are there"


def test_wav_with_chunks_around_its_data_is_not_truncated(tmp_path):
    samples = (tone()[0] * 32767).astype("<i2").tobytes()
    chunks = [
        b"LIST" + struct.pack("<I", 5) + b"INFOx\0",  # odd length, padded
        b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16),
        b"data" + struct.pack("<I", len(samples)) + samples,
        b"LIST" + struct.pack("<I", 4) + b"INFO",
    ]
    body = b"WAVE" + b"".join(chunks)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(load_audio(path, 16000, 1), tone(), atol=1e-4)


def test_wav_from_a_streaming_writer_is_accepted(tmp_path):
    """`ffmpeg … - | cat > a.wav` cannot go back to fill in the sizes."""
    path = tmp_path / "a.wav"
    write_wav(path, tone(), 16000)
    whole = bytearray(path.read_bytes())
    whole[4:8] = whole[40:44] = b"\xff" * 4
    path.write_bytes(whole)
    np.testing.assert_allclose(load_audio(path, 16000, 1), tone(), atol=1e-4)


def test_truncated_flac(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(duration_s=2.0).T, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path).startswith(("damaged", "truncated"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_sample_is_enough(tmp_path, value):
    samples = tone(channels=2)
    samples[1, 777] = value
    soundfile.write(tmp_path / "a.wav", samples.T, 16000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "contains NaN or infinite samples"


def test_one_sample_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.5]), 16000)
    assert reason(tmp_path / "a.wav") == "too short: 1 sample"


def test_shortest_file(tmp_path):
    write_wav(tmp_path / "a.wav", tone(duration_s=0.05), 16000)
    assert load_audio(tmp_path / "a.wav", 16000, 1).shape == (1, 800)
    write_wav(tmp_path / "a.wav", tone(duration_s=0.05)[:, 1:], 16000)
    assert reason(tmp_path / "a.wav") == "too short: 799 samples"


def test_silence(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros((1, 8000), np.float32), 16000)
    assert reason(tmp_path / "a.wav") == "silent"
    write_wav(tmp_path / "a.wav", tone(amplitude=0.9e-4), 16000)
    assert reason(tmp_path / "a.wav") == "silent"
    write_wav(tmp_path / "a.wav", tone(amplitude=4e-4), 16000)
    load_audio(tmp_path / "a.wav", 16000, 1)


def test_channels_that_cancel_each_other(tmp_path):
    write_wav(tmp_path / "a.wav", np.concatenate([tone(), -tone()]), 16000)
    assert reason(tmp_path / "a.wav") == "silent when mixed to 1 channel"
    assert load_audio(tmp_path / "a.wav", 16000, 2).shape == (2, 4000)


def test_missing_file_and_folder(tmp_path):
    assert reason(tmp_path / "a.wav") == "cannot be opened: no such file or directory"
    assert reason(tmp_path) == "not a regular file"


_READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from tokkata.core.audio import AudioError, load_audio
path = Path(sys.argv[1])
os.chdir(path.parent)
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # root may read everything
try:
    load_audio(Path(path.name), 16000, 1)
except AudioError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs POSIX permissions")
def test_unreadable_permissions(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, tone(), 16000)
    tmp_path.chmod(0o755)
    answers = []
    for mode in (0o644, 0o000):
        path.chmod(mode)
        command = [sys.executable, "-c", _READ_AS_NOBODY, str(path)]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert answers == ["", "permission denied"]


def test_eight_channels_are_averaged(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (8, 2000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples.T, 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", 16000, 8), samples)
    mono = load_audio(tmp_path / "a.wav", 16000, 1)
    np.testing.assert_allclose(mono, samples.mean(axis=0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", 16000, 2), np.repeat(mono, 2, axis=0))


def test_192_khz(tmp_path):
    write_wav(tmp_path / "a.wav", tone(sample_rate=192000, duration_s=0.5), 192000)
    read = load_audio(tmp_path / "a.wav", 16000, 1)
    assert read.shape == (1, 8000)
    inside = slice(400, -400)  # away from the resampler's edges
    np.testing.assert_allclose(read[:, inside], tone(duration_s=0.5)[:, inside], atol=2e-3)


@pytest.mark.parametrize("name", ["two words.wav", "Füür Élise – 夜曲.wav", "a.WAV", "50% #1?.wav"])
def test_names(tmp_path, name):
    write_wav(tmp_path / name, tone(), 16000)
    np.testing.assert_allclose(load_audio(tmp_path / name, 16000, 1), tone(), atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_and_rates(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(channels=2, sample_rate=48000, duration_s=0.5).T, 48000)
    read = load_audio(path, 16000, 2)
    assert (read.shape, read.dtype) == ((2, 8000), np.float32)
    spectrum = np.abs(np.fft.rfft(read[0] * np.hanning(8000)))
    assert spectrum.argmax() * 2 == 440  # bins are 2 Hz wide


def test_floats_beyond_one_are_scaled_not_clipped(tmp_path):
    samples = tone(channels=2, amplitude=3.0) * np.array([[1.0], [0.1]], np.float32)
    soundfile.write(tmp_path / "a.wav", samples.T, 16000, subtype="FLOAT")
    read = load_audio(tmp_path / "a.wav", 16000, 2)
    np.testing.assert_allclose(read, samples / np.abs(samples).max(), atol=1e-6)


def test_resampling_overshoot_stays_inside(tmp_path):
    square = np.sign(tone(hz=100.0)).astype(np.float32)
    assert np.abs(resample(square, 16000, 22050)).max() > 1.0
    soundfile.write(tmp_path / "a.wav", square.T, 16000, subtype="FLOAT")
    assert np.abs(load_audio(tmp_path / "a.wav", 22050, 1)).max() == 1.0


def test_wav_gives_back_what_it_got(tmp_path):
    pcm = np.random.default_rng(0).integers(-32768, 32768, (2, 5000))
    samples = (pcm / 32768).astype(np.float32)
    write_wav(tmp_path / "deep" / "a.wav", samples, 44100)
    np.testing.assert_array_equal(load_audio(tmp_path / "deep" / "a.wav", 44100, 2), samples)
    first = (tmp_path / "deep" / "a.wav").read_bytes()
    write_wav(tmp_path / "deep" / "a.wav", samples, 44100)
    assert (tmp_path / "deep" / "a.wav").read_bytes() == first
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.wav"]


def test_wav_clips_and_refuses_what_is_no_audio(tmp_path):
    write_wav(tmp_path / "a.wav", np.full((1, 2000), 1.5, np.float32), 16000)
    assert load_audio(tmp_path / "a.wav", 16000, 1).max() == np.float32(32767 / 32768)
    with pytest.raises(ValueError, match="finite samples"):
        write_wav(tmp_path / "b.wav", np.full((1, 2000), np.nan, np.float32), 16000)
    with pytest.raises(ValueError, match=r"\[2000\]"):
        write_wav(tmp_path / "b.wav", np.zeros(2000, np.float32), 16000)
    assert not Path(tmp_path / "b.wav").exists()


@settings(deadline=None, max_examples=25)
@given(
    num_samples=st.integers(800, 3000),
    from_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
    to_rate=st.sampled_from([8000, 16000, 24000, 32000, 44100]),
    channels=st.integers(1, 3),
)
def test_resampled_length(num_samples, from_rate, to_rate, channels):
    samples = np.random.default_rng(num_samples).uniform(-1, 1, (channels, num_samples)).astype(np.float32)
    resampled = resample(samples, from_rate, to_rate)
    assert resampled.shape[0] == channels
    assert abs(resampled.shape[1] - num_samples * to_rate / from_rate) <= 0.5
    assert resampled.dtype == np.float32
    if from_rate == to_rate:
        assert resampled is samples


def test_to_channels():
    samples = np.array([[1.0, 0.0], [0.0, 0.5]], np.float32)
    assert to_channels(samples, 2) is samples
    np.testing.assert_array_equal(to_channels(samples, 1), [[0.5, 0.25]])
    np.testing.assert_array_equal(to_channels(samples[:1], 3), [[1.0, 0.0]] * 3)
    with pytest.raises(ValueError, match="positive"):
        to_channels(samples, 0)
