import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokkata.lm.patterns import CoarseFirstPattern, DelayPattern, FlattenPattern, Pattern, make_pattern

X = 99  # the special token


def numbered_codes(num_codebooks: int, num_frames: int) -> Tensor:
    """Frame t of codebook k is 10·k + t: [1, K, T]."""
    return torch.tensor([[[10 * k + t for t in range(num_frames)] for k in range(num_codebooks)]])


def assert_table(pattern: Pattern, num_frames: int, expected: list[list[int]]) -> None:
    assert pattern.apply(numbered_codes(len(expected), num_frames), X)[0].tolist() == expected
    assert pattern.mask(num_frames).tolist() == [[token != X for token in row] for row in expected]


def test_the_delay_pattern_is_the_table_of_the_paper() -> None:
    expected = [
        [0, 1, 2, 3, 4, 5, X, X, X],
        [X, 10, 11, 12, 13, 14, 15, X, X],
        [X, X, 20, 21, 22, 23, 24, 25, X],
        [X, X, X, 30, 31, 32, 33, 34, 35],
    ]
    assert_table(DelayPattern((0, 1, 2, 3)), 6, expected)
    assert DelayPattern((0, 1, 2, 3)).steps(6)[2].tolist() == [2, 3, 4, 5, 6, 7]


def test_uneven_delays_shift_each_codebook_by_its_own() -> None:
    assert_table(DelayPattern((2, 0, 2)), 2, [[X, X, 0, 1], [10, 11, X, X], [X, X, 20, 21]])
    # Stereo: the two channels' codebooks of one level side by side.
    stereo = DelayPattern((0, 0, 1, 1, 2, 2, 3, 3))
    assert stereo.steps(5)[:, 4].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]


def test_the_parallel_pattern_leaves_the_codes_as_they_are() -> None:
    codes = numbered_codes(3, 4)
    assert torch.equal(DelayPattern.parallel(3).apply(codes, X), codes)


def test_the_flattened_pattern_has_one_token_a_step_frame_by_frame() -> None:
    expected = [
        [0, X, X, 1, X, X],
        [X, 10, X, X, 11, X],
        [X, X, 20, X, X, 21],
    ]
    assert_table(FlattenPattern(3), 2, expected)


def test_coarse_first_begins_the_other_codebooks_after_all_of_the_first() -> None:
    expected = [
        [0, 1, 2, X, X, X],
        [X, X, X, 10, 11, 12],
        [X, X, X, 20, 21, 22],
    ]
    assert_table(CoarseFirstPattern(3), 3, expected)
    assert_table(CoarseFirstPattern(1), 3, [[0, 1, 2]])


def test_names_stand_for_patterns() -> None:
    assert make_pattern("delay", 4) == DelayPattern((0, 1, 2, 3))
    assert make_pattern("delay", 4, delays=[0, 0, 1, 1]) == DelayPattern((0, 0, 1, 1))
    assert make_pattern("parallel", 3) == DelayPattern((0, 0, 0))
    assert make_pattern("flatten", 3) == FlattenPattern(3)
    assert make_pattern("coarse_first", 3) == CoarseFirstPattern(3)


delay_lists = st.lists(st.integers(0, 7), min_size=1, max_size=6).map(lambda d: tuple(x - min(d) for x in d))
patterns = st.one_of(
    delay_lists.map(DelayPattern),
    st.integers(1, 6).map(FlattenPattern),
    st.integers(1, 6).map(CoarseFirstPattern),
)
clip_lengths = st.integers(1, 12)


@given(
    pattern=patterns, num_frames=st.integers(0, 12), batch_size=st.integers(1, 3), seed=st.integers(0, 2**31)
)
def test_applying_and_reverting_loses_nothing(
    pattern: Pattern, num_frames: int, batch_size: int, seed: int
) -> None:
    shape = batch_size, pattern.num_codebooks, num_frames
    codes = torch.randint(0, X, shape, generator=torch.Generator().manual_seed(seed))
    sequence = pattern.apply(codes, X)
    assert sequence.shape == (*shape[:2], pattern.num_steps(num_frames))
    assert pattern.num_frames(sequence.shape[2]) == num_frames
    assert torch.equal(pattern.revert(sequence), codes)
    mask = pattern.mask(num_frames)
    assert torch.equal(sequence != X, mask.expand_as(sequence))
    assert mask.sum() == pattern.num_codebooks * num_frames


@given(pattern=patterns, num_frames=clip_lengths)
def test_steps_rise_along_time_from_the_first_to_the_last(pattern: Pattern, num_frames: int) -> None:
    steps = pattern.steps(num_frames)
    assert steps.shape == (pattern.num_codebooks, num_frames)
    assert bool((steps.diff(dim=1) > 0).all())
    assert steps.min() == 0
    assert steps.max() == pattern.num_steps(num_frames) - 1


@given(num_codebooks=st.integers(1, 6), num_frames=clip_lengths)
def test_within_a_frame_finer_codebooks_come_after_coarser_ones(num_codebooks: int, num_frames: int) -> None:
    for pattern in (make_pattern("delay", num_codebooks), make_pattern("flatten", num_codebooks)):
        assert bool((pattern.steps(num_frames).diff(dim=0) > 0).all())
    fine_after_coarse = make_pattern("coarse_first", num_codebooks).steps(num_frames)
    assert bool((fine_after_coarse[1:] > fine_after_coarse[:1]).all())


@given(num_codebooks=st.integers(1, 5), num_frames=st.integers(1, 7), delays=delay_lists)
def test_a_token_sees_what_the_definition_of_its_pattern_says(
    num_codebooks: int, num_frames: int, delays: tuple[int, ...]
) -> None:
    def assert_sees(pattern: Pattern, expected: Callable[[int, int, int, int], bool]) -> None:
        steps = pattern.steps(num_frames).tolist()
        tokens = [(k, t) for k in range(pattern.num_codebooks) for t in range(num_frames)]
        for k, t in tokens:
            seen = {(j, u) for j, u in tokens if steps[j][u] < steps[k][t]}
            assert seen == {(j, u) for j, u in tokens if expected(j, u, k, t)}

    # Whether token (j, u) is known when (k, t) is predicted: j and k are codebooks, u and t frames.
    assert_sees(DelayPattern.parallel(num_codebooks), lambda j, u, k, t: u < t)
    assert_sees(DelayPattern(delays), lambda j, u, k, t: u - t < delays[k] - delays[j])
    assert_sees(make_pattern("delay", num_codebooks), lambda j, u, k, t: u - t < k - j)
    assert_sees(FlattenPattern(num_codebooks), lambda j, u, k, t: (u, j) < (t, k))
    assert_sees(
        CoarseFirstPattern(num_codebooks),
        lambda j, u, k, t: (u < t and (j == 0) == (k == 0)) or j == 0 < k,
    )


@given(pattern=patterns.filter(lambda p: p.packs), lengths=st.lists(clip_lengths, min_size=1, max_size=4))
def test_clips_in_a_row_have_their_sequences_in_a_row(pattern: Pattern, lengths: list[int]) -> None:
    # Clip i consists of the token i.
    clips = [torch.full((1, pattern.num_codebooks, num_frames), i) for i, num_frames in enumerate(lengths)]
    gap = torch.full((1, pattern.num_codebooks, pattern.gap), X)
    row = torch.cat([piece for clip in clips for piece in (gap, clip)][1:], dim=2)
    sequences = torch.cat([pattern.apply(clip, X) for clip in clips], dim=2)
    assert torch.equal(pattern.apply(row, X), sequences)


def test_the_gap_of_each_pattern() -> None:
    assert DelayPattern((0, 3, 1)).gap == 3
    assert DelayPattern.parallel(4).gap == 0
    assert FlattenPattern(4).gap == 0
    assert CoarseFirstPattern(1).gap == 0


@given(num_codebooks=st.integers(2, 5), lengths=st.tuples(clip_lengths, clip_lengths), gap=st.integers(0, 8))
def test_coarse_first_does_not_pack_with_any_gap(
    num_codebooks: int, lengths: tuple[int, int], gap: int
) -> None:
    pattern = CoarseFirstPattern(num_codebooks)
    first, second = (torch.full((1, num_codebooks, num_frames), i) for i, num_frames in enumerate(lengths))
    row = torch.cat([first, torch.full((1, num_codebooks, gap), X), second], dim=2)
    sequences = torch.cat([pattern.apply(first, X), pattern.apply(second, X)], dim=2)
    assert not torch.equal(pattern.apply(row, X), sequences)
    assert not pattern.packs
    with pytest.raises(
        ValueError, match=re.escape(f"under CoarseFirstPattern(num_codebooks={num_codebooks})")
    ):
        _ = pattern.gap


@given(pattern=patterns, num_frames=clip_lengths, data=st.data())
def test_sampling_begins_at_the_first_step_that_the_prompt_leaves_open(
    pattern: Pattern, num_frames: int, data: st.DataObject
) -> None:
    num_prompt = data.draw(st.integers(0, num_frames - 1))
    codes = torch.zeros(1, pattern.num_codebooks, num_frames, dtype=torch.int64)
    codes[:, :, num_prompt:] = 1
    open_steps = (pattern.apply(codes, X) == 1).any(1)[0]  # [S]
    assert pattern.first_step(num_prompt, num_frames) == open_steps.tolist().index(True)


def test_the_first_step_after_a_prompt_in_each_pattern() -> None:
    assert DelayPattern((0, 1, 2, 3)).first_step(5, 9) == 5
    assert FlattenPattern(4).first_step(5, 9) == 20
    assert CoarseFirstPattern(4).first_step(5, 9) == 5


@given(pattern=patterns, num_frames=st.integers(0, 12))
def test_frames_are_complete_once_all_their_tokens_are_known(pattern: Pattern, num_frames: int) -> None:
    complete = pattern.num_complete_frames(num_frames)
    num_steps = pattern.num_steps(num_frames)
    sequence = pattern.apply(torch.zeros(1, pattern.num_codebooks, num_frames, dtype=torch.int64), X)
    assert complete.shape == (num_steps,)
    for step in range(num_steps):
        known = torch.where(torch.arange(num_steps) <= step, sequence, X)
        is_complete = (pattern.revert(known)[0] != X).all(0).tolist()  # [T]
        assert is_complete == [t < complete[step] for t in range(num_frames)]


def test_how_many_frames_each_pattern_has_complete() -> None:
    assert DelayPattern((0, 1, 2)).num_complete_frames(3).tolist() == [0, 0, 1, 2, 3]
    assert DelayPattern.parallel(2).num_complete_frames(3).tolist() == [1, 2, 3]
    assert FlattenPattern(2).num_complete_frames(3).tolist() == [0, 1, 1, 2, 2, 3]
    assert CoarseFirstPattern(2).num_complete_frames(3).tolist() == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("pattern", [DelayPattern((0, 2)), FlattenPattern(2), CoarseFirstPattern(2)])
def test_tables_are_on_the_device_of_the_codes(pattern: Pattern) -> None:
    cpu, codes = torch.device("cpu"), numbered_codes(2, 4)
    sequence = pattern.apply(codes, X)
    expected = [sequence, codes, pattern.mask(4), pattern.num_complete_frames(4)]
    with torch.device("meta"):  # where a tensor is that nobody gave a device; it has no values
        found = [
            pattern.apply(codes, X),
            pattern.revert(sequence),
            pattern.mask(4, cpu),
            pattern.num_complete_frames(4, cpu),
        ]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_no_pattern_can_do_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest 0"):
        DelayPattern((1, 2))
    with pytest.raises(ValueError, match="smallest 0"):
        DelayPattern(())
    with pytest.raises(ValueError, match="at least 1 codebook, not 0"):
        FlattenPattern(0)
    with pytest.raises(ValueError, match="2 codebooks, the codes have 3"):
        DelayPattern((0, 1)).apply(torch.zeros(1, 3, 4, dtype=torch.int64), X)
    with pytest.raises(ValueError, match="2 codebooks, the sequence has 3"):
        DelayPattern((0, 1)).revert(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="fewer than the largest delay"):
        DelayPattern((0, 4)).revert(torch.zeros(1, 2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="5 steps are no whole frames of 2 tokens"):
        FlattenPattern(2).revert(torch.zeros(1, 2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="5 steps are not twice a number of frames"):
        CoarseFirstPattern(2).revert(torch.zeros(1, 2, 5, dtype=torch.int64))
    for num_prompt in (-1, 4, 5):
        with pytest.raises(ValueError, match=f"shorter prompt, not one of {num_prompt} frames"):
            FlattenPattern(2).first_step(num_prompt, 4)


def test_names_and_delays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"leave out \[0, 1\] for 'flatten'"):
        make_pattern("flatten", 2, delays=[0, 1])
    with pytest.raises(ValueError, match=r"3 codebooks need 3 delays, not \[0, 1\]"):
        make_pattern("delay", 3, delays=[0, 1])
    with pytest.raises(ValueError, match="unknown pattern 'spiral'"):
        make_pattern("spiral", 2)  # type: ignore[arg-type]
