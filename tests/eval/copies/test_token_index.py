from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.eval.copies.postings import MAX_PLACES, PostingsWriter
from tokkata.eval.copies.token_index import (
    MAX_OCCURRENCES,
    NGRAM,
    STRIDE,
    TokenIndex,
    build_token_index,
    hash_ngrams,
    index_bytes,
    miss_probability,
)

GUARANTEED = NGRAM + STRIDE - 1


def made(seed, num_frames, size=1024):
    """Codes [2, T]; the second codebook is noise that must not matter."""
    return np.random.default_rng(seed).integers(0, size, (2, num_frames))


def index_of(tmp_path, clips):
    return build_token_index(tmp_path / "index", iter(clips))


def brute_share(query, clip, window):
    """The largest share over all alignments and windows, token by token."""
    best = 0.0
    for offset in range(-len(query) + 1, len(clip)):
        frames = offset + np.arange(len(query))
        inside = (frames >= 0) & (frames < len(clip))
        same = np.zeros(len(query), bool)
        same[inside] = query[inside] == clip[frames[inside]]
        best = max(best, *(same[i : i + window].mean() for i in range(len(query) - window + 1)))
    return best


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(GUARANTEED, 60),
    start=st.integers(0, 100),
    before=st.integers(0, 30),
    after=st.integers(0, 30),
)
def test_every_common_run_of_13_frames_is_found(tmp_path_factory, seed, length, start, before, after):
    clips = [made([seed, 0], 90), made([seed, 1], start + length + 7), made([seed, 2], 50)]
    run = clips[1][:, start : start + length]
    # What surrounds the run is of other tokens, so that the run is not longer by chance.
    query = np.concatenate([1024 + made([seed, 3], before), run, 1024 + made([seed, 4], after)], axis=1)
    index = index_of(tmp_path_factory.mktemp("copies"), clips)
    match = index.search(query, window_frames=length)
    assert match.is_exact
    assert (match.clip, match.clip_frame, match.query_frame) == (1, start, before)
    assert match.longest_run >= length


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 6), window=st.integers(8, 40))
def test_never_more_than_a_comparison_with_everything(tmp_path_factory, seed, size, window):
    clips = [made([seed, i], 70, size) for i in range(3)]
    query = made([seed, 9], 40, size)
    match = index_of(tmp_path_factory.mktemp("copies"), clips).search(query, window)
    exhaustive = [brute_share(query[0], clip[0], window) for clip in clips]
    assert match.share <= max(exhaustive) + 1e-12
    if match.clip is not None:
        assert match.share <= exhaustive[match.clip] + 1e-12


def test_80_percent_copies_are_found_as_often_as_calculated(tmp_path):
    clips = [made([5, i], 1500) for i in range(40)]
    index = index_of(tmp_path, clips)
    rng = np.random.default_rng(0)
    found = {250: 0, 60: 0}
    for window in found:
        for _ in range(300):
            clip, start = rng.integers(40), rng.integers(1500 - window)
            query = clips[clip][:, start : start + window].copy()
            changed = rng.permutation(window)[: window // 5]
            query[0, changed] = 1024
            match = index.search(query, window)
            found[window] += (match.clip, match.clip_frame, match.share) == (clip, start, 0.8)
    assert found[250] >= 299  # missed by calculation: 1e-4
    missed = 1 - found[60] / 300
    # Exactly a fifth changed is not quite an independent choice for each token.
    assert missed == pytest.approx(miss_probability(60, 0.8), abs=0.09)
    assert 0.02 < miss_probability(60, 0.8) < 0.2


def test_evenly_spread_mismatches_leave_nothing_to_hit(tmp_path):
    """The limit that the docstring states."""
    clips = [made([6, i], 500) for i in range(4)]
    query = clips[2][:, 100:350].copy()
    query[0, ::5] = 1024
    assert index_of(tmp_path, clips).search(query, 250).clip is None


def test_made_tokens_have_no_copies(tmp_path):
    index = index_of(tmp_path, [made([7, i], 1500) for i in range(40)])
    matches = [index.search(made([8, i], 250), 250) for i in range(50)]
    assert max(match.share for match in matches) < 0.1


def test_a_window_does_not_run_over_the_end_of_a_clip(tmp_path):
    clips = [made([9, i], 100) for i in range(2)]
    query = np.concatenate([clips[0][:, 50:], clips[1][:, :50]], axis=1)
    match = index_of(tmp_path, clips).search(query, 100)
    assert match.share == 0.5
    assert match.longest_run == 50


def test_steady_tones_cannot_be_searched_and_the_rest_can(tmp_path):
    steady = np.full((1, 300), 7)
    melody = made([10, 0], 300)[:1]
    index = index_of(tmp_path, [*[steady] * 10, melody])
    assert 10 * (300 // STRIDE) > MAX_OCCURRENCES
    match = index.search(steady, 250)
    assert (match.searchable, match.share, match.clip) == (False, 0.0, None)
    assert index.search(np.concatenate([steady, melody], axis=1), 250).clip == 10


def test_a_clip_does_not_find_itself_if_told_so(tmp_path):
    clips = [made([11, i], 300) for i in range(3)]
    clips.append(clips[0])
    index = index_of(tmp_path, clips)
    assert index.search(clips[0], 250).is_exact
    assert index.search(clips[0], 250, own=0).clip == 3
    assert index.search(clips[1], 250, own=1).clip is None


def test_clips_too_short_for_an_ngram_and_no_clips(tmp_path):
    index = index_of(tmp_path, [made(0, 3), np.zeros((1, 0), int), made(1, 40)])
    assert index.search(made(1, 40), 40).clip == 2
    assert not index.search(made(1, 3), 40).searchable
    empty = index_of(tmp_path, [])
    assert len(empty) == 0
    assert empty.search(made(1, 40), 40).clip is None


def test_windows_are_5_s_or_the_longest_clip(tmp_path):
    assert index_of(tmp_path, [made(0, 900), made(1, 30)]).window_frames(50.0) == 250
    assert index_of(tmp_path, [made(0, 100), made(1, 30)]).window_frames(50.0) == 100


def test_the_files_are_as_large_as_said_and_can_be_opened_again(tmp_path):
    clips = [made([12, i], 800) for i in range(20)]
    index_of(tmp_path, clips)
    num_frames = 20 * 800
    assert (tmp_path / "index" / "ngrams.uint64").stat().st_size == index_bytes(num_frames)
    assert (tmp_path / "index" / "first_codebook.uint16").stat().st_size == 2 * num_frames
    assert TokenIndex(tmp_path / "index").search(clips[4], 250).clip == 4
    assert index_bytes(10_000 * 3600 * 50) == 1_800_000_000


def test_more_than_32_bits_of_places_are_refused(tmp_path):
    writer = PostingsWriter(tmp_path / "postings")
    with pytest.raises(UserError, match="more than 4,294,967,296 places"):
        writer.add(np.zeros(1, np.uint32), np.array([MAX_PLACES]))


def test_the_largest_key_is_found(tmp_path):
    writer = PostingsWriter(Path(tmp_path) / "postings")
    writer.add(np.array([2**32 - 1, 0, 2**32 - 1]), np.array([MAX_PLACES - 1, 5, 3]))
    hits = writer.finish().look_up(np.array([2**32 - 1, 0, 1]), max_occurrences=2)
    assert hits.queries.tolist() == [0, 0, 1]
    assert hits.places.tolist() == [3, MAX_PLACES - 1, 5]


def test_ngrams_that_differ_have_different_hashes():
    tokens = np.random.default_rng(0).integers(0, 1024, 50_000)
    hashes = hash_ngrams(tokens, 1)
    assert len(np.unique(hashes)) > len(hashes) - 5  # 50,000² / 2^33 = 0.3 collisions expected
    assert (hash_ngrams(tokens, STRIDE) == hashes[::STRIDE]).all()
