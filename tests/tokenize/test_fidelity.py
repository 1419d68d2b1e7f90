"""Measures of a codec, against closed forms."""

import math

import pytest
import torch

from tokkata.tokenize.fidelity import MelDistance, codebook_efficiency, si_sdr

N = 4000


def orthogonal_pair(num_rows=3):
    """Signals and noises [B, N] without means, of equal energy, at right angles to each other."""
    time = 2 * torch.pi * torch.arange(N, dtype=torch.float64) / N
    rates = torch.arange(1, num_rows + 1, dtype=torch.float64)[:, None]
    return torch.sin(10 * rates * time), torch.cos(10 * rates * time)


@pytest.mark.parametrize("level_db", [-20.0, 0.0, 6.0, 40.0])
def test_si_sdr_of_a_known_noise(level_db):
    signal, noise = orthogonal_pair()
    estimate = signal + 10 ** (-level_db / 20) * noise
    torch.testing.assert_close(
        si_sdr(estimate, signal), torch.full((3,), level_db, dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_si_sdr_sees_neither_loudness_nor_offset():
    signal, noise = orthogonal_pair()
    estimate = signal + 0.3 * noise
    plain = si_sdr(estimate, signal)
    for gain, offset in [(0.01, 0.0), (-3.0, 0.5), (100.0, -2.0)]:
        torch.testing.assert_close(si_sdr(gain * estimate + offset, signal), plain, rtol=0, atol=1e-6)
        torch.testing.assert_close(si_sdr(estimate, gain * signal + offset), plain, rtol=0, atol=1e-6)


def test_si_sdr_at_its_ends():
    signal, noise = orthogonal_pair()
    assert bool((si_sdr(signal, signal) > 100).all())
    assert bool((si_sdr(noise, signal) < -100).all())
    assert bool(si_sdr(torch.zeros(1, N), torch.zeros(1, N)).isfinite().all())


def test_codes_used_evenly():
    codes = torch.arange(64).repeat(2, 3, 5)  # [2, 3, 320]: each of 64 codes ten times a codebook
    use = codebook_efficiency(codes, 64)
    assert use.entropy_bits == pytest.approx([6.0] * 3)
    assert use.used == [64] * 3
    assert use.efficiency == pytest.approx(1.0)


def test_one_code_for_everything():
    use = codebook_efficiency(torch.full((2, 3, 50), 7), 64)
    assert use.entropy_bits == pytest.approx([0.0] * 3)
    assert use.used == [1] * 3
    assert use.efficiency == pytest.approx(0.0)


def test_codebooks_count_alone():
    codes = torch.zeros(1, 2, 8, dtype=torch.int64)
    codes[0, 1] = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])  # shares 1/2, 1/4, 1/8, 1/8: 1.75 bits
    use = codebook_efficiency(codes, 16)
    assert use.entropy_bits == pytest.approx([0.0, 1.75])
    assert use.used == [1, 4]
    assert use.efficiency == pytest.approx(1.75 / (2 * math.log2(16)))


def test_mel_distance_is_zero_for_the_same_and_grows_with_noise():
    time = torch.arange(8000) / 16000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * time)[None, None]
    noise = torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))
    distance = MelDistance(16000)

    def to_tone(audio):
        return float(distance(audio, tone))

    assert to_tone(tone.clone()) == 0.0
    distances = [to_tone(tone + level * noise) for level in (0.001, 0.01, 0.1)]
    assert 0 < distances[0] < distances[1] < distances[2]
    # Ten times as loud: log10 differs by one in every band that is above the floor, in five resolutions.
    hiss = 0.03 * noise
    tenfold = distance(10 * hiss, hiss)
    assert float(tenfold) == pytest.approx(5, rel=0.01)
