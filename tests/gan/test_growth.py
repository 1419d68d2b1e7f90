"""The schedule of growing: which level belongs to how many images."""

from hypothesis import given
from hypothesis import strategies as st

from tokkata.gan.growth import level_of


def test_a_level_is_trained_for_a_phase_and_the_next_fades_in_for_one() -> None:
    levels = [level_of(seen, num_levels=3, images_per_phase=4) for seen in range(22)]
    assert levels == [0] * 4 + [0, 0.25, 0.5, 0.75] + [1] * 4 + [1, 1.25, 1.5, 1.75] + [2] * 6


@given(
    seen=st.integers(0, 10**8),
    more=st.integers(0, 10**6),
    num_levels=st.integers(1, 9),
    phase=st.integers(1, 10**6),
)
def test_it_never_shrinks_nor_leaps_nor_passes_the_top(
    seen: int, more: int, num_levels: int, phase: int
) -> None:
    before, after = level_of(seen, num_levels, phase), level_of(seen + more, num_levels, phase)
    assert 0 <= before <= after <= num_levels - 1
    assert after - before <= more / phase + 1e-9
    assert level_of((2 * num_levels - 2) * phase, num_levels, phase) == num_levels - 1


@given(phase=st.integers(1, 10**6), n=st.integers(0, 7), inside=st.floats(0, 1, exclude_max=True))
def test_odd_phases_fade_and_even_ones_stand(phase: int, n: int, inside: float) -> None:
    seen = int(inside * phase)
    assert level_of(2 * n * phase + seen, 9, phase) == n
    assert level_of((2 * n + 1) * phase + seen, 9, phase) == n + seen / phase
