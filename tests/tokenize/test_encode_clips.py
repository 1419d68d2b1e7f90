"""Clips through a codec: windows, batches and threads change nothing; damaged clips leave no trace."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError, Samples
from tokkata.core.audio_stream import AS_IT_IS, open_audio
from tokkata.tests.tokenize.frame_codec import HOP, FrameCodec
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.corpus import Clip
from tokkata.tokenize.encode_clips import ClipEncoder, StoreEncoder, read_windows
from tokkata.tokenize.read_ahead import read_ahead
from tokkata.tokenize.store_writer import Reject

RATE = 16000


@dataclass
class Torn:
    """A stream that breaks after some of its samples."""

    samples: np.ndarray
    num_good: int

    def __getattr__(self, name):
        return getattr(open_audio(Samples(self.samples, RATE), RATE, 1), name)

    def blocks(self):
        yield self.samples[:, : self.num_good]
        raise AudioError("damaged: cannot be decoded to its end")


class Made:
    """A corpus of noise, (length, fate) a clip.

    The fate is None, "unusable", or the number of samples after which the clip breaks.
    """

    def __init__(self, clips):
        self.clips_made = clips

    def clips(self):
        return [Clip(f"{i:03d}", "train", f"{i}.wav") for i in range(len(self.clips_made))]

    def samples(self, clip):
        length = self.clips_made[int(clip.id)][0]
        return np.random.default_rng(int(clip.id)).uniform(-1, 1, (1, length)).astype(np.float32)

    def audio(self, clip):
        fate = self.clips_made[int(clip.id)][1]
        if fate == "unusable":
            raise AudioError("torn")
        samples = self.samples(clip)
        return Samples(samples, RATE) if fate is None else Torn(samples, fate)


@pytest.fixture(autouse=True)
def torn_streams(monkeypatch):
    def open_made(source, *more):
        return source if isinstance(source, Torn) else open_audio(source, *more)

    monkeypatch.setattr("tokkata.tokenize.encode_clips.open_audio", open_made)


def encode(corpus, codec, window_frames=20, batch=3, num_threads=2, store="codes", clips=None):
    """Rows, rejects, and what was reported."""
    told = [0.0, 0.0]

    def report(clips, seconds):
        told[0] += clips
        told[1] += seconds

    readings = read_ahead(
        corpus.clips() if clips is None else clips,
        lambda clip: read_windows(corpus, clip, codec, window_frames, AS_IT_IS),
        num_threads=num_threads,
        num_ahead=num_threads + 2,
        depth=2,
    )
    rejects: list[Reject] = []
    encoder = ClipEncoder(StoreEncoder(codec, store), lambda num_samples: batch, report)
    return list(encoder.rows(readings, rejects)), rejects, told


lengths = st.one_of(st.integers(800, 12000), st.sampled_from([800, 1600, 3200, 3201]))
fates = st.one_of(st.none(), st.none(), st.just("unusable"), st.integers(0, 790))


@settings(deadline=None, max_examples=60)
@given(
    clips=st.lists(st.tuples(lengths, fates), max_size=12),
    window_frames=st.integers(4, 40),
    batch=st.integers(1, 5),
    num_threads=st.integers(1, 3),
)
def test_rows_are_those_of_whole_clips(clips, window_frames, batch, num_threads):
    """Whatever the windows, the batches and the threads; and damaged clips are rejected whole."""
    corpus = Made(clips)
    rows, rejects, told = encode(corpus, FrameCodec(), window_frames, batch, num_threads)
    good = [clip for clip in corpus.clips() if clips[int(clip.id)][1] is None]
    assert [row.id for row in rows] == [clip.id for clip in good]
    plain = FrameCodec()
    for row, clip in zip(rows, good, strict=True):
        whole = torch.from_numpy(corpus.samples(clip))[None]
        np.testing.assert_array_equal(row.codes, plain.encode(whole)[0].numpy())
        assert row.codes.dtype == np.uint16
        assert row.num_samples == whole.shape[-1]
    bad = {f"{i:03d}": fate for i, (_, fate) in enumerate(clips) if fate is not None}
    assert [reject.id for reject in rejects] == sorted(bad)
    for reject in rejects:
        assert reject.reason == (
            "torn" if bad[reject.id] == "unusable" else "damaged: cannot be decoded to its end"
        )
    if not bad:
        assert told == pytest.approx([len(rows), sum(row.num_samples for row in rows) / RATE])


def shapes(corpus, num_threads):
    codec = FrameCodec()
    encode(corpus, codec, num_threads=num_threads)
    return codec.seen


def test_batches_depend_on_the_clips_alone():
    rng = np.random.default_rng(0)
    kinds = [(3200, None), (3200, None), (1600, None), (40000, None), (8000, 500)]
    corpus = Made([kinds[i] for i in rng.integers(0, len(kinds), 40)])
    seen = shapes(corpus, 1)
    assert shapes(corpus, 3) == seen
    assert shapes(corpus, 3) == seen
    assert max(shape[0] for shape in seen) == 3
    assert np.mean([shape[0] for shape in seen]) > 2  # windows of equal length do find each other


def test_a_rare_length_does_not_hold_up_the_rows():
    """All codes made meanwhile would have to be kept."""
    corpus = Made([(1600, None), *[(3200, None)] * 60])
    underway = [0]
    codec = FrameCodec()
    readings = ((clip, read_windows(corpus, clip, codec, 20, AS_IT_IS)) for clip in corpus.clips())

    def counted():
        for reading in readings:
            underway[0] += 1
            yield reading

    most = 0
    encoder = ClipEncoder(StoreEncoder(codec, "codes"), lambda _: 3, lambda *_: None)
    for _ in encoder.rows(counted(), []):
        most = max(most, underway[0])
        underway[0] -= 1
    assert most <= 4 * 3 + 2


def test_an_unexpected_error_is_not_taken_for_a_damaged_clip():
    class Broken(Made):
        def audio(self, clip):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        encode(Broken([(1600, None)]), FrameCodec())


class Files:
    """A corpus of files."""

    def __init__(self, *paths):
        self.paths = {path.name: path for path in paths}

    def clips(self):
        return [Clip(name, "train", name) for name in self.paths]

    def audio(self, clip):
        return self.paths[clip.id]


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = {}
    for seconds in (20, 200):
        path = tmp_path / f"{seconds}.flac"
        soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, seconds * 44100), 44100)
        tracemalloc.start()
        rows, _, _ = encode(Files(path), FrameCodec(), window_frames=300)
        peaks[seconds] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows[0].num_frames == seconds * RATE // HOP
    codes = 180 * RATE // HOP * 2 * 2  # what 180 s more of two codebooks take
    # 180 s of samples would be 11.5 MB at 16 kHz; how full the queues are is a matter of chance.
    assert peaks[200] < peaks[20] + codes + 1_500_000


@pytest.mark.parametrize("store", ["codes", "latents", "projected_latents"])
def test_a_long_file_through_a_real_codec(tmp_path, tiny_codec, store):
    rng = np.random.default_rng(1)
    notes = np.sin(np.cumsum(rng.uniform(0.01, 1.0, (1, 12, 1)).repeat(8000, 2).reshape(1, -1), axis=1))
    soundfile.write(tmp_path / "long.wav", 0.4 * notes[0] + 0.01 * rng.normal(size=96000), RATE)
    codec = load_codec(str(tiny_codec), num_codebooks=4)
    rows, _, _ = encode(Files(tmp_path / "long.wav"), codec, window_frames=70, batch=2, store=store)
    whole = torch.from_numpy(open_audio(tmp_path / "long.wav", RATE, 1).read())[None]
    if store == "codes":
        np.testing.assert_array_equal(rows[0].codes, codec.encode(whole)[0].numpy())
        return
    wanted = codec.encode_latents(whole) if store == "latents" else codec.encode_projected_latents(whole)
    np.testing.assert_allclose(rows[0].latents, wanted[0].numpy(), atol=1e-5)
    assert rows[0].codes is None
