import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.copies import neighbours as module
from tokkata.eval.copies.neighbours import NeighbourSearch, level
from tokkata.eval.copies.strong_mel import StrongMel

HOP_S = 0.75  # so that a window of 3 s is 4 frames
CPU = torch.device("cpu")


def frames(seed, num, width=3):
    return np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32)


def stretched(window, quiet=0.0):
    """The vector of a window: centred, and of length 1 unless it is quiet."""
    vector = window.astype(np.float64).ravel()
    vector = vector - vector.mean()
    return vector / max(np.linalg.norm(vector), quiet, 1e-6)


def quiet_of(windows):
    return module.QUIET * max(np.linalg.norm(window.ravel() - window.mean()) for window in windows)


def windows_of(query):
    length = min(4, len(query))
    last = len(query) - length
    return {start: query[start : start + length] for start in {*range(0, last + 1, length), last}}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_equals_a_comparison_of_all_windows(seed, lengths):
    queries = [frames([seed, 0, i], num) for i, num in enumerate(lengths)]
    training = [frames([seed, 1, i], num) for i, num in enumerate((3, 7, 20))]
    search = NeighbourSearch(queries, HOP_S, device=CPU)
    for clip, found in enumerate(training):
        search.add(clip, found)
    for query, neighbour in zip(queries, search.window_neighbours(), strict=True):
        length = min(4, len(query))
        alike = [w for other in queries if min(4, len(other)) == length for w in windows_of(other).values()]
        quiet = quiet_of(alike)
        cosines = {
            (clip, there, here): stretched(window, quiet) @ stretched(found[there : there + length], quiet)
            for here, window in windows_of(query).items()
            for clip, found in enumerate(training)
            for there in range(len(found) - length + 1)
        }
        assert neighbour.cosine == pytest.approx(max(cosines.values()), abs=1e-5)
        place = (neighbour.clip, round(neighbour.clip_s / HOP_S), round(neighbour.query_s / HOP_S))
        assert cosines[place] == pytest.approx(neighbour.cosine, abs=1e-5)
    quiet = quiet_of([query.mean(0) for query in queries])
    for query, neighbour in zip(queries, search.clip_neighbours(), strict=True):
        means = [stretched(query.mean(0), quiet) @ stretched(found.mean(0), quiet) for found in training]
        assert neighbour.cosine == pytest.approx(max(means), abs=1e-5)
        assert neighbour.clip == int(np.argmax(means))


def test_blocks_do_not_change_what_is_found(monkeypatch):
    def found():
        search = NeighbourSearch([frames([0, i], 9) for i in range(5)], HOP_S, device=CPU)
        for clip in range(6):
            search.add(clip, frames([1, clip], 40))
        return search.window_neighbours()

    whole = found()
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 4 * 12)
    for one, other in zip(whole, found(), strict=True):
        assert (one.clip, one.clip_s, one.query_s) == (other.clip, other.clip_s, other.query_s)
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)


def test_a_part_of_a_clip_is_found_where_it_is():
    training = frames(0, 30)
    search = NeighbourSearch([training[17:21]], HOP_S, device=CPU)
    search.add(3, training[10:], start_s=10 * HOP_S)
    (found,) = search.window_neighbours()
    assert (found.clip, found.clip_s) == (3, 17 * HOP_S)
    assert found.cosine == pytest.approx(1.0, abs=1e-6)


def test_a_clip_is_not_its_own_neighbour():
    clips = [frames(i, 8) for i in range(3)]
    search = NeighbourSearch(clips, HOP_S, own=[0, 1, None], device=CPU)
    for clip, found in enumerate(clips):
        search.add(clip, found)
    assert [found.clip == clip for clip, found in enumerate(search.window_neighbours())] == [
        False,
        False,
        True,
    ]
    assert [found.clip == clip for clip, found in enumerate(search.clip_neighbours())] == [False, False, True]


def test_nothing_to_compare_with_is_no_neighbour():
    search = NeighbourSearch([frames(0, 8), np.empty((0, 3), np.float32)], HOP_S, device=CPU)
    search.add(0, frames(1, 2))  # shorter than a window
    search.add(1, np.empty((0, 3), np.float32))
    assert [found.clip for found in search.window_neighbours()] == [None, None]
    assert [found.cosine for found in search.window_neighbours()] == [-1.0, -1.0]
    assert [found.clip for found in search.clip_neighbours()] == [0, None]


def test_silences_are_not_alike():
    loud, silent = frames(0, 4), np.full((4, 3), 1e-4, np.float32) * np.arange(3)
    search = NeighbourSearch([loud, silent], HOP_S, device=CPU)
    search.add(0, silent)
    assert search.window_neighbours()[1].cosine < 0.01


def test_level_takes_gain_away_and_does_not_count_silence():
    samples = frames(0, 1, 4000)
    levelled = level(samples, 8000)
    assert np.allclose(level(0.05 * samples, 8000), levelled, atol=1e-6)
    assert np.sqrt(np.square(levelled).mean()) == pytest.approx(module.RMS, rel=1e-5)
    assert np.allclose(level(np.pad(samples, ((0, 0), (0, 4000))), 8000)[:, :4000], levelled, atol=1e-6)
    assert not level(np.zeros((1, 100), np.float32), 8000).any()
    assert level(np.zeros((1, 0), np.float32), 8000).shape == (1, 0)


def test_strong_mel_hardly_hears_what_is_20_db_below():
    embedding = StrongMel(CPU)
    time = torch.arange(8000) / 8000
    tone = 0.14 * torch.sin(2 * torch.pi * 440 * time)[None, None]
    noise = 0.01 * torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))
    clean, noisy = embedding.embed(tone), embedding.embed(tone + noise)
    assert clean.shape == (1, embedding.frames(8000), embedding.info.width)
    cosine = torch.nn.functional.cosine_similarity(clean.flatten(), noisy.flatten(), dim=0)
    assert cosine > 0.9
    assert clean.max() > 1.0
    assert not embedding.embed(torch.zeros(1, 1, 100)).any()
