"""Integrated loudness as ITU-R BS.1770-4 defines it, measured block by block.

Shapes: C channels, N samples, H hops of 100 ms.
"""

from __future__ import annotations

import numpy as np

BLOCK_S = 0.4
"""Length of a gating block; shorter audio has no loudness."""

_HOPS = 4  # hops in a gating block: blocks overlap by 75 %
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0
_CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # BS.1770-4, table 3: the surround channels count more


def _power(lufs: float) -> float:
    return float(10.0 ** ((lufs + 0.691) / 10.0))


def _lufs(power: float) -> float:
    # BS.1770-4, eq. 2
    return float(-0.691 + 10.0 * np.log10(power)) if power > 0.0 else -np.inf


class LoudnessMeter:
    """Measures audio that comes in blocks of any length; what it keeps grows by a few bytes each 100 ms.

    The filters are pyloudnorm's, and so are the ends of its gating blocks: the results are equal. Those
    filters come close to the standard's: a sine of 997 Hz at 48 kHz measures 0.04 LU too low.
    """

    def __init__(self, sample_rate: int, channels: int):
        if not 1 <= channels <= len(_CHANNEL_WEIGHTS):
            raise ValueError(f"loudness is defined for 1 to 5 channels, not {channels}")
        self._rate, self._num_samples = sample_rate, 0
        self._weights = np.array(_CHANNEL_WEIGHTS[:channels])
        # Imported here: it takes long, and few processes measure loudness.
        from pyloudnorm import Meter

        # K-weighting: a shelf for the head, a high-pass for the ear. pyloudnorm has no public name for them.
        filters = Meter(sample_rate)._filters.values()
        self._sos = np.array([[*stage.b, *stage.a] for stage in filters])
        self._state = np.zeros((len(self._sos), channels, 2))
        self._energies = [0.0]  # of each hop: squares summed over its samples and weighted over channels

    def add(self, samples: np.ndarray) -> None:
        """Go on with `samples` [C, N]."""
        from scipy.signal import sosfilt

        weighted, self._state = sosfilt(self._sos, samples.astype(np.float64), axis=1, zi=self._state)
        squares = self._weights @ np.square(weighted)
        start = 0
        while start < len(squares):
            stop = min(self._hop_start(len(self._energies)) - self._num_samples, len(squares))
            self._energies[-1] += float(squares[start:stop].sum())
            if self._num_samples + stop == self._hop_start(len(self._energies)):
                self._energies.append(0.0)
            start = stop
        self._num_samples += len(squares)

    def _hop_start(self, hop: int) -> int:
        return int(BLOCK_S * (hop * (1 / _HOPS)) * self._rate)

    def integrated_lufs(self) -> float:
        """The loudness of all that was added; -inf if it is below -70 LUFS throughout.

        Raises `ValueError` for less than `BLOCK_S`.
        """
        if self._num_samples < BLOCK_S * self._rate:
            raise ValueError(f"loudness is defined from {BLOCK_S} s on, not for {self._num_samples} samples")
        # The last block may end up to half a hop after the audio, as if silence followed.
        num_blocks = int(np.round((self._num_samples / self._rate - BLOCK_S) / (BLOCK_S / _HOPS)) + 1)
        energies = np.array([*self._energies, *[0.0] * _HOPS])
        blocks = np.lib.stride_tricks.sliding_window_view(energies, _HOPS)[:num_blocks]
        powers = blocks.sum(axis=1) / (BLOCK_S * self._rate)
        # BS.1770-4, eq. 5 to 7: the absolute gate, then one 10 LU below the mean of what passed it
        loud = powers[powers >= _power(_ABSOLUTE_GATE_LUFS)]
        if not len(loud):
            return -np.inf
        relative_gate = loud.mean() * 10.0 ** (_RELATIVE_GATE_LU / 10.0)
        return _lufs(float(loud[loud > relative_gate].mean()))
