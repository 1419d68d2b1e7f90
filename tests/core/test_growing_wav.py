"""A wav file that can be listened to while it is being written."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import growing_path, growing_wav, write_wav


def noise(channels, num_samples):
    return np.random.default_rng(num_samples).uniform(-1.2, 1.2, (channels, num_samples)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5), channels=st.integers(1, 2))
def test_what_has_grown_is_what_is_written_at_once(tmp_path_factory, sizes, channels):
    folder = tmp_path_factory.mktemp("wav")
    whole = noise(channels, sum(sizes))
    with growing_wav(folder / "grown.wav", 16000, channels, sum(sizes)) as append:
        for block in np.split(whole, np.cumsum(sizes)[:-1], axis=1):
            append(block)
    write_wav(folder / "at-once.wav", whole, 16000)
    assert (folder / "grown.wav").read_bytes() == (folder / "at-once.wav").read_bytes()
    assert len(list(folder.iterdir())) == 2


def test_each_block_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    whole = noise(1, 300)
    with growing_wav(tmp_path / "a.wav", 16000, 1, 300) as append:
        for number in range(1, 4):
            append(whole[:, 100 * (number - 1) : 100 * number])
            assert not (tmp_path / "a.wav").exists()
            content = growing_path(tmp_path / "a.wav").read_bytes()
            assert len(content) == 44 + 2 * 100 * number
            assert int.from_bytes(content[40:44], "little") == 2 * 300, "the header promises the whole"
    assert soundfile.info(tmp_path / "a.wav").frames == 300


@pytest.mark.parametrize("num_samples", [99, 101])
def test_another_length_than_announced_leaves_no_file(tmp_path, num_samples):
    with (
        pytest.raises(ValueError, match=f"100 samples were announced, {num_samples} have come"),
        growing_wav(tmp_path / "a.wav", 16000, 1, 100) as append,
    ):
        append(noise(1, num_samples))
    assert list(tmp_path.iterdir()) == []


def test_nan_leaves_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="finite samples"),
        growing_wav(tmp_path / "a.wav", 16000, 1, 2) as append,
    ):
        append(np.array([[0.0, np.nan]]))
    assert list(tmp_path.iterdir()) == []
