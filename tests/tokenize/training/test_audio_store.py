"""The array of samples that codecs are trained from: it gives back what went in."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError, Samples
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.tokenize.corpus import Clip
from tokkata.tokenize.training.audio_store import AudioStore, write_audio_store


class Drawn:
    """A corpus of given arrays at 16 kHz; None is a clip that cannot be read."""

    label_types: Mapping[str, type] = {}

    def __init__(self, arrays: Sequence[np.ndarray | None], split: str = "train") -> None:
        self.arrays = arrays
        self._split = split

    def clips(self):
        return [Clip(f"{i:03d}", self._split, f"drawn {i}") for i in range(len(self.arrays))]

    def audio(self, clip):
        array = self.arrays[int(clip.id)]
        if array is None:
            raise AudioError("torn")
        return Samples(array[None], 16000)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(800, 1100), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_round_trip(tmp_path_factory, lengths, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.uniform(-1, 1, size=n).astype(np.float32) for n in lengths]
    folder = tmp_path_factory.mktemp("store") / "audio"
    corpus = Drawn(arrays)
    assert write_audio_store(folder, corpus, 16000) == 0
    store = AudioStore(folder)
    assert [clip.id for clip in store.clips] == [f"{i:03d}" for i in range(len(arrays))]
    assert (folder / "samples.raw").stat().st_size == 2 * sum(lengths)
    for clip, array in zip(store.clips, arrays, strict=True):
        whole = store.crop(clip, 0, clip.num_samples)
        assert (whole.dtype, whole.shape) == (np.float32, array.shape)
        # Half a step of 16 bits, or a whole one at the upper end, where 1 does not exist.
        np.testing.assert_allclose(whole, array, rtol=0, atol=0.5001 / 32768 + (array > 0.9999).max() / 65536)
        start = int(rng.integers(clip.num_samples))
        crop = store.crop(clip, start, 200)
        inside = whole[start : start + 200]
        np.testing.assert_array_equal(crop[: len(inside)], inside)
        assert not crop[len(inside) :].any()  # the next clip begins there, and is not heard


def test_full_scale_stays_on_its_side(tmp_path):
    loud = np.tile(np.array([1.0, -1.0, 0.99999, -0.99999, 0.0], np.float32), 200)
    write_audio_store(tmp_path / "audio", Drawn([loud]), 16000)
    store = AudioStore(tmp_path / "audio")
    np.testing.assert_allclose(store.crop(store.clips[0], 0, 1000), loud, atol=1 / 32768)


def test_rejects_are_named(tmp_path):
    array = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    assert write_audio_store(tmp_path / "audio", Drawn([array, None, -array, None]), 16000) == 2
    store = AudioStore(tmp_path / "audio")
    assert [clip.id for clip in store.clips] == ["000", "002"]
    np.testing.assert_allclose(store.crop(store.clips[1], 0, 1000), -array, atol=1 / 32768)
    assert read_jsonl(tmp_path / "audio" / "rejects.jsonl") == [
        {"id": "001", "source": "drawn 1", "reason": "torn"},
        {"id": "003", "source": "drawn 3", "reason": "torn"},
    ]


def test_nothing_but_rejects(tmp_path):
    with pytest.raises(UserError) as caught:
        write_audio_store(tmp_path / "audio", Drawn([None, None]), 16000)
    assert str(caught.value) == "none of the 2 clips can be used, the first (drawn 0) because: torn"
    assert list(tmp_path.iterdir()) == []


def test_splits(tmp_path):
    array = np.ones(1000, np.float32) / 2
    write_audio_store(tmp_path / "audio", Drawn([array, array], split="valid"), 16000)
    store = AudioStore(tmp_path / "audio")
    assert len(store.split("valid")) == 2
    assert store.split("train") == store.split("test") == []
