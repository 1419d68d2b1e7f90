"""Streams of audio: in blocks it is what it would be as a whole, and the settings do what they say."""

import hashlib
import io
import math
import tracemalloc

import numpy as np
import pyloudnorm
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import Samples, load_audio, resample, to_channels
from tokkata.core.audio_file import BLOCK_FRAMES, AudioError
from tokkata.core.audio_stream import open_audio, resampled_length
from tokkata.core.schema import Audio

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]
LENGTHS = st.integers(5000, 20_000) | st.sampled_from(
    [blocks * BLOCK_FRAMES + more for blocks in (1, 2) for more in (-1, 0, 1)]
)


def noise(channels, num_samples, seed=0, peak=0.9):
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-1.0, 1.0, (channels, num_samples)).astype(np.float32)
    return samples * np.float32(peak / np.abs(samples).max())


def encoded(samples, sample_rate, **format):
    """The bytes of a sound file. Long arrays crash libsndfile's Vorbis encoder, so it gets pieces."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, len(samples), **format) as file:
        for start in range(0, samples.shape[1], 4096):
            file.write(samples[:, start : start + 4096].T)
    return buffer.getvalue()


def as_a_whole(samples, from_rate, to_rate, channels):
    """What a stream has to give, with all samples in memory."""
    scaled = samples / np.float32(max(1.0, np.abs(samples).max()))
    return np.clip(resample(to_channels(scaled, channels), from_rate, to_rate), -1.0, 1.0)


def check_blocks(stream, expected):
    """That `stream` gives `expected`, every time it is asked."""
    assert stream.num_samples == expected.shape[1]
    for _ in range(2):
        blocks = list(stream.blocks())
        assert {(block.dtype, block.shape[0]) for block in blocks} == {(np.dtype(np.float32), len(expected))}
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)
    np.testing.assert_array_equal(stream.read(), expected)


@settings(deadline=None, max_examples=60)
@given(
    num_samples=LENGTHS,
    from_rate=st.sampled_from(RATES),
    to_rate=st.sampled_from(RATES),
    from_channels=st.integers(1, 3),
    channels=st.integers(1, 2),
    peak=st.sampled_from([0.5, 1.0, 2.5]),
    seed=st.integers(0, 1000),
)
def test_in_blocks_it_is_bitwise_the_whole(
    num_samples, from_rate, to_rate, from_channels, channels, peak, seed
):
    samples = noise(from_channels, num_samples, seed, peak)
    expected = as_a_whole(samples, from_rate, to_rate, channels)
    check_blocks(open_audio(Samples(samples, from_rate), to_rate, channels), expected)


@settings(deadline=None, max_examples=60)
@given(from_rate=st.sampled_from(RATES), to_rate=st.sampled_from(RATES), odd=st.integers(0, 20))
def test_lengths_that_end_on_half_a_sample(from_rate, to_rate, odd):
    """70,000 samples at 48 kHz are 64,312.5 at 44.1 kHz; which way soxr rounds depends on the rates."""
    half = from_rate // math.gcd(2 * to_rate, from_rate)
    num_samples = half * (2 * odd + 1)
    resampled = resample(np.zeros((1, num_samples), np.float32), from_rate, to_rate)
    assert resampled_length(num_samples, from_rate, to_rate) == resampled.shape[1]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "format",
    [
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "WAV", "subtype": "IMA_ADPCM"},
        {"format": "FLAC", "subtype": "PCM_24"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "OGG", "subtype": "OPUS"},
        {"format": "MP3"},
    ],
    ids=lambda format: f"{format['format']} {format.get('subtype', '')}".strip(),
)
def test_every_format_is_read_like_a_whole_and_to_the_sample(tmp_path, format, channels):
    path = tmp_path / "a.bin"
    path.write_bytes(encoded(noise(channels, 3 * BLOCK_FRAMES // 2, peak=0.7), 48000, **format))
    whole = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    stream = open_audio(path, 44100, 2)
    check_blocks(stream, as_a_whole(whole, 48000, 44100, 2))
    assert stream.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    from_bytes = open_audio(path.read_bytes(), 44100, 2)
    check_blocks(from_bytes, stream.read())
    assert (from_bytes.sha256, from_bytes.facts) == (stream.sha256, stream.facts)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_trimming_is_exact_in_every_format(format):
    """Where libsndfile cannot seek to a sample, what comes before is decoded and dropped."""
    samples = np.zeros((2, 3 * BLOCK_FRAMES), np.float32)
    samples[:, 70_001:150_003] = noise(2, 80_002)
    file = encoded(samples, 44100, format=format)
    whole = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)[0].T
    whole /= np.float32(max(1.0, np.abs(whole).max()))
    stream = open_audio(file, 44100, 2, Audio(trim_silence_db=6.0))
    start = round(stream.facts.trim_start_s * 44100)
    assert 70_001 <= start < 70_050
    assert 149_950 < start + stream.num_samples <= 150_003
    check_blocks(stream, whole[:, start : start + stream.num_samples])


@settings(deadline=None, max_examples=40)
@given(
    num_samples=LENGTHS,
    silences=st.tuples(st.integers(0, 70_000), st.integers(0, 70_000)),
    trim_silence_db=st.floats(1.0, 60.0),
    max_duration_s=st.none() | st.floats(0.1, 20.0),
    seed=st.integers(0, 1000),
)
def test_what_is_kept(num_samples, silences, trim_silence_db, max_duration_s, seed):
    """The first and last frame where a channel comes near the peak, and what lies between."""
    quiet = noise(2, silences[0] + num_samples + silences[1], seed + 1, peak=0.9 * 10**-3.5)
    samples = np.pad(noise(2, num_samples, seed), [(0, 0), silences]) + quiet
    loud = np.abs(samples).max(axis=0) >= np.abs(samples).max() * 10 ** (-trim_silence_db / 20)
    start, stop = int(loud.argmax()), len(loud) - int(loud[::-1].argmax())
    if max_duration_s is not None:
        stop = min(stop, start + round(max_duration_s * 8000))
    wanted = Audio(trim_silence_db=trim_silence_db, max_duration_s=max_duration_s)
    stream = open_audio(Samples(samples, 8000), 8000, 2, wanted)
    check_blocks(stream, samples[:, start:stop])
    facts = stream.facts
    assert (facts.trim_start_s, facts.duration_s) == (start / 8000, (stop - start) / 8000)
    assert (facts.original_duration_s, facts.original_channels) == (samples.shape[1] / 8000, 2)
    assert (facts.gain_db, facts.loudness_lufs) == (0.0, None)


@settings(deadline=None, max_examples=30)
@given(
    num_samples=st.integers(8000, 80_000),
    channels=st.integers(1, 2),
    peak=st.sampled_from([0.01, 0.3, 3.0]),
    loudness_lufs=st.floats(-40.0, -20.0),
    silence=st.sampled_from([0, 4000]),
    max_duration_s=st.sampled_from([None, 0.7, 30.0]),
    seed=st.integers(0, 1000),
)
def test_it_comes_out_as_loud_as_asked(
    num_samples, channels, peak, loudness_lufs, silence, max_duration_s, seed
):
    samples = np.pad(noise(2, num_samples, seed, peak), [(0, 0), (silence, silence)])
    trim = 40.0 if silence else None
    wanted = Audio(loudness_lufs=loudness_lufs, trim_silence_db=trim, max_duration_s=max_duration_s)
    stream = open_audio(Samples(samples, 16000), 16000, channels, wanted)
    read = stream.read()
    assert np.abs(read).max() < 1.0
    measured = pyloudnorm.Meter(16000).integrated_loudness(read.T.astype(np.float64))
    assert measured == pytest.approx(loudness_lufs, abs=0.01)
    assert stream.facts.loudness_lufs + stream.facts.gain_db == pytest.approx(loudness_lufs)


def test_a_peak_is_never_clipped_for_loudness():
    samples = noise(1, 32000, peak=0.1)
    samples[0, 777] = 0.8
    stream = open_audio(Samples(samples, 16000), 16000, 1, Audio(loudness_lufs=-6.0))
    np.testing.assert_allclose(stream.read(), samples / 0.8, rtol=1e-6)
    assert stream.facts.gain_db == pytest.approx(20 * np.log10(1 / 0.8))
    assert stream.facts.loudness_lufs + stream.facts.gain_db < -6.0


def test_facts_of_a_file_that_is_scaled_to_a_peak_of_one():
    facts = open_audio(Samples(noise(3, 8000, peak=4.0), 16000), 8000, 1).facts
    assert facts.gain_db == pytest.approx(-20 * np.log10(4.0))
    assert (facts.original_sample_rate, facts.original_channels, facts.duration_s) == (16000, 3, 0.5)


def test_channels_of_the_recipe_come_before_those_of_the_codec():
    samples = noise(2, 8000)
    mono = load_audio(Samples(samples, 16000), 16000, 2, Audio(channels=1))
    np.testing.assert_array_equal(mono, np.repeat(samples.mean(axis=0, keepdims=True), 2, axis=0))
    stereo = load_audio(Samples(samples, 16000), 16000, 2, Audio(channels=2))
    np.testing.assert_array_equal(stereo, samples)


@pytest.mark.parametrize(
    ("duration_s", "wanted", "sentence"),
    [
        (0.81, {"min_duration_s": 1.0}, "too short: 0.81 s, min_duration_s is 1.0"),
        (0.9999, {"min_duration_s": 1.0}, "too short: 0.99 s, min_duration_s is 1.0"),
        (1.0, {"max_duration_s": 0.01}, "too short: 160 of 16000 samples are left"),
        (0.3, {"loudness_lufs": -20.0}, "too short to measure its loudness: 0.300 s, 0.4 s are needed"),
        (
            0.5,
            {"loudness_lufs": -20.0, "max_duration_s": 0.35},
            "too short to measure its loudness: 0.350 s, 0.4 s are needed",
        ),
    ],
)
def test_too_short(duration_s, wanted, sentence):
    with pytest.raises(AudioError) as caught:
        open_audio(Samples(noise(1, round(duration_s * 16000)), 16000), 16000, 1, Audio(**wanted))
    assert str(caught.value) == sentence


def test_trimmed_to_a_click():
    samples = noise(1, 8000, peak=0.01)
    samples[0, 4000] = 0.9
    with pytest.raises(AudioError, match="too short: 1 of 8000 samples are left"):
        open_audio(Samples(samples, 16000), 16000, 1, Audio(trim_silence_db=20.0))


def test_too_quiet_for_what_is_asked():
    faint = noise(1, 16000, peak=2e-4)
    open_audio(Samples(faint, 16000), 16000, 1)
    with pytest.raises(AudioError, match="too quiet to measure its loudness: below -70 LUFS throughout"):
        open_audio(Samples(faint, 16000), 16000, 1, Audio(loudness_lufs=-20.0))
    late = np.pad(noise(1, 16000), [(0, 0), (16000, 0)])
    with pytest.raises(AudioError, match=r"silent in the 0\.5 s that are kept"):
        open_audio(Samples(late, 16000), 16000, 1, Audio(max_duration_s=0.5))
    opposite = np.concatenate([late, -late])
    with pytest.raises(AudioError, match="silent when mixed to 1 channel"):
        open_audio(Samples(opposite, 16000), 16000, 2, Audio(channels=1, loudness_lufs=-20.0))


def test_ten_minutes_take_no_more_memory_than_one(tmp_path):
    second = noise(2, 8000, peak=0.5).T
    wanted = Audio(loudness_lufs=-20.0, trim_silence_db=40.0)
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 8000, 2) as file:
            for _ in range(60 * minutes):
                file.write(second)
        tracemalloc.start()
        assert sum(block.shape[1] for block in open_audio(path, 16000, 2, wanted).blocks()) == (
            960_000 * minutes
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_two_passes_at_once(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(noise(1, 3 * BLOCK_FRAMES), 16000, format="WAV"))
    stream = open_audio(path, 8000, 1)
    for one, other in zip(stream.blocks(), stream.blocks(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("rate", "channels"), [(32000, 1), (16000, 2), (8000, 1)])
def test_the_same_clip_at_another_rate(rate, channels):
    """Trimmed, cut and mixed as if it had been opened so, and as loud as it was opened to be."""
    samples = noise(2, 40_000, peak=0.5)  # resampled it stays below full scale
    samples[:, :9000] = 0
    wanted = Audio(trim_silence_db=30.0, max_duration_s=1.2)
    stream = open_audio(Samples(samples, 22050), 16000, 2, wanted)
    found = stream.at(rate, channels)
    again = open_audio(Samples(samples, 22050), rate, channels, wanted)
    np.testing.assert_array_equal(found.read(), again.read())
    assert (found.num_samples, found.facts) == (again.num_samples, again.facts)
    loud = open_audio(Samples(samples, 22050), 16000, 2, Audio(loudness_lufs=-30.0))
    np.testing.assert_allclose(
        loud.at(rate, channels).read(),
        10 ** (loud.facts.gain_db / 20) * open_audio(Samples(samples, 22050), rate, channels).read(),
        atol=1e-6,
    )
