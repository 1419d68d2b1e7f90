import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokkata.lm.patterns import DelayPattern

X = 99  # the special token


def test_the_delay_pattern_is_the_table_of_the_paper() -> None:
    # Codes are numbered 10·k + t: four codebooks, six frames, delays 0 1 2 3.
    codes = torch.tensor([[[10 * k + t for t in range(6)] for k in range(4)]])
    expected = [
        [0, 1, 2, 3, 4, 5, X, X, X],
        [X, 10, 11, 12, 13, 14, 15, X, X],
        [X, X, 20, 21, 22, 23, 24, 25, X],
        [X, X, X, 30, 31, 32, 33, 34, 35],
    ]
    pattern = DelayPattern((0, 1, 2, 3))
    assert pattern.apply(codes, X)[0].tolist() == expected
    assert pattern.mask(6).tolist() == [[token != X for token in row] for row in expected]
    assert pattern.steps(6)[2].tolist() == [2, 3, 4, 5, 6, 7]


def test_uneven_delays_shift_each_codebook_by_its_own() -> None:
    codes = torch.tensor([[[1, 2], [3, 4], [5, 6]]])
    assert DelayPattern((2, 0, 2)).apply(codes, X)[0].tolist() == [[X, X, 1, 2], [3, 4, X, X], [X, X, 5, 6]]


def test_no_delays_leave_the_codes_as_they_are() -> None:
    codes = torch.arange(12).reshape(1, 3, 4)
    assert torch.equal(DelayPattern((0, 0, 0)).apply(codes, X), codes)


delay_lists = st.lists(st.integers(0, 7), min_size=1, max_size=6).map(lambda d: tuple(x - min(d) for x in d))


@given(delays=delay_lists, num_frames=st.integers(1, 12), batch_size=st.integers(1, 3), data=st.data())
def test_applying_and_reverting_loses_nothing(
    delays: tuple[int, ...], num_frames: int, batch_size: int, data: st.DataObject
) -> None:
    pattern = DelayPattern(delays)
    seed = data.draw(st.integers(0, 2**31))
    shape = batch_size, len(delays), num_frames
    codes = torch.randint(0, X, shape, generator=torch.Generator().manual_seed(seed))
    sequence = pattern.apply(codes, X)
    assert sequence.shape[2] == pattern.num_steps(num_frames) == num_frames + max(delays)
    assert pattern.num_frames(sequence.shape[2]) == num_frames
    assert torch.equal(pattern.revert(sequence), codes)
    assert torch.equal(sequence != X, pattern.mask(num_frames).expand_as(sequence))


def test_what_no_pattern_can_do_is_refused() -> None:
    with pytest.raises(ValueError, match="smallest 0"):
        DelayPattern((1, 2))
    with pytest.raises(ValueError, match="smallest 0"):
        DelayPattern(())
    with pytest.raises(ValueError, match="2 codebooks, the codes have 3"):
        DelayPattern((0, 1)).apply(torch.zeros(1, 3, 4, dtype=torch.int64), X)
    with pytest.raises(ValueError, match="2 codebooks, the sequence has 3"):
        DelayPattern((0, 1)).revert(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="fewer than the largest delay"):
        DelayPattern((0, 4)).revert(torch.zeros(1, 2, 3, dtype=torch.int64))
