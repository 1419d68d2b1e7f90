"""Audio of any length in constant memory: checked, trimmed, mixed, scaled and resampled as a recipe says.

Shapes: C channels, N samples. Audio is float32 `[C, N]` in -1…1.

A first pass finds out all that has to be known of a clip before its first sample can be given: whether it is
sound, its length, peak, loudness, and where its silence ends. Each call of `blocks` is another pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import soxr

from .audio_file import BLOCK_FRAMES, AudioError, AudioReader, AudioSource, open_source
from .loudness import BLOCK_S, LoudnessMeter
from .schema import Audio

MIN_DURATION_S = 0.05
"""Shorter audio is refused: no codec frame and no embedding can be made of it."""

SILENCE_PEAK = 1e-4
"""Audio whose largest sample is below this (-80 dBFS) is refused: it teaches and measures nothing."""

AS_IT_IS = Audio()
"""The settings that leave audio as it is."""


@dataclass(frozen=True)
class AudioFacts:
    """What was found in a source, and what was done to it."""

    original_sample_rate: int
    original_channels: int
    original_duration_s: float
    trim_start_s: float
    """Seconds cut off the beginning."""
    duration_s: float
    """Seconds kept."""
    gain_db: float
    """Scaling, to the wanted loudness or to a peak of 1; 0 if none."""
    loudness_lufs: float | None
    """Integrated loudness of what was kept and mixed, before scaling; None if it was not measured. Where its
    sum with `gain_db` stays below the wanted loudness, the peak set the limit."""


@dataclass(frozen=True)
class AudioStream:
    """A clip that has been looked through once, and can be read any number of times."""

    sample_rate: int
    channels: int
    num_samples: int
    """Samples of each channel that `blocks` gives in all, to the sample."""
    facts: AudioFacts
    sha256: str
    """Of the file's bytes, or of the samples where there never was a file."""
    _reader: AudioReader
    _mix: _Mix
    _start: int
    _stop: int
    _divisor: float

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in order, in blocks float32 `[channels, n]` of any length n > 0.

        Raises `AudioError` if the file has changed since it was opened, or can no longer be read.
        """
        from_rate, position = self._reader.sample_rate, self._start
        resampler = None
        if from_rate != self.sample_rate:
            # Its blocks together are bitwise what soxr makes of the whole.
            resampler = soxr.ResampleStream(
                from_rate, self.sample_rate, self.channels, dtype="float32", quality="HQ"
            )
        for block in self._reader.read(self._start, self._stop):
            position += block.shape[1]
            samples = self._mix(block if self._divisor == 1.0 else block / np.float32(self._divisor))
            if resampler is not None:
                samples = resampler.resample_chunk(samples.T, last=position == self._stop).T
            if samples.shape[1]:  # a resampler may first want more
                yield np.ascontiguousarray(np.clip(samples, -1.0, 1.0))

    def at(self, sample_rate: int, channels: int) -> AudioStream:
        """The same clip, cut and scaled alike, at another rate and mixed to other channels."""
        return dataclasses.replace(
            self,
            sample_rate=sample_rate,
            channels=channels,
            num_samples=resampled_length(self._stop - self._start, self._reader.sample_rate, sample_rate),
            _mix=_Mix(channels, self._mix.settings),
        )

    def read(self) -> np.ndarray:
        """The whole clip, float32 `[channels, num_samples]`; raises `AudioError` as `blocks` does."""
        whole = np.empty((self.channels, self.num_samples), np.float32)
        position = 0
        for block in self.blocks():
            whole[:, position : position + block.shape[1]] = block
            position += block.shape[1]
        return whole


def open_audio(
    source: AudioSource,
    sample_rate: int,
    channels: int,
    settings: Audio = AS_IT_IS,
    *,
    silence_ok: bool = False,
) -> AudioStream:
    """Look through a wav, flac, ogg or mp3 file, the bytes of one, or samples, and get ready to read them.

    What is read is trimmed, cut, mixed (`to_channels`, first to `settings.channels`), scaled, resampled to
    `sample_rate` Hz, and clipped where resampling overshoots. Without `settings.loudness_lufs`, audio with
    samples beyond ±1 (floating-point, or a lossy codec's overshoot) is scaled down to a peak of 1 rather than
    clipped. Loudness is that of all `channels` together: a mono file repeated in stereo is 3 LU louder.

    Raises `AudioError` if the source is empty, unreadable, no audio, damaged, truncated, shorter than
    `MIN_DURATION_S` or `settings.min_duration_s`, silent (`SILENCE_PEAK`), or holds NaN or infinite samples,
    and if its loudness is wanted but cannot be measured. With `silence_ok` silence is taken like any sound: a
    model that falls silent has to be scored for it.

    What is found: a wav file shorter than its header says; a flac file with any wrong byte in its audio; an
    ogg file with damage before its end; an mp3 file where the decoder loses its way for 1024 bytes. What is
    not: wrong samples in a wav file, an ogg file that ends early, and in an mp3 file an early end, a missing
    piece or a few wrong bytes, all of which are read as far as they go. An mp3 file that goes on after the
    length in its Xing tag is read up to that.
    """
    reader = open_source(source)
    mix = _Mix(channels, settings)
    rate = reader.sample_rate
    with_meter = settings.loudness_lufs is not None
    whole = _measure(reader, mix, 0, None, with_meter and settings.trim_silence_db is None)
    if whole.num_frames < MIN_DURATION_S * rate:
        raise AudioError(f"too short: {whole.num_frames} sample{'s' if whole.num_frames != 1 else ''}")
    if whole.peak < SILENCE_PEAK and not silence_ok:
        raise AudioError("silent")
    start, stop = _kept(reader, whole, settings)
    kept = whole
    if (start, stop) != (0, whole.num_frames) or (with_meter and whole.meter is None):
        kept = _measure(reader, mix, start, stop, with_meter)
    if not silence_ok:
        _check_kept(kept, max(1.0, whole.peak), mix)
    loudness_lufs = None if kept.meter is None else _loudness(kept.meter, kept.num_frames / rate)
    divisor = max(1.0, whole.peak)
    if loudness_lufs is not None and settings.loudness_lufs is not None:
        divisor = max(10.0 ** ((loudness_lufs - settings.loudness_lufs) / 20.0), kept.mixed_peak)
    return AudioStream(
        sample_rate=sample_rate,
        channels=channels,
        num_samples=resampled_length(stop - start, rate, sample_rate),
        facts=AudioFacts(
            original_sample_rate=rate,
            original_channels=reader.channels,
            original_duration_s=whole.num_frames / rate,
            trim_start_s=start / rate,
            duration_s=(stop - start) / rate,
            gain_db=-20.0 * math.log10(divisor) + 0.0,  # not -0.0
            loudness_lufs=loudness_lufs,
        ),
        sha256=reader.sha256,
        _reader=reader,
        _mix=mix,
        _start=start,
        _stop=stop,
        _divisor=divisor,
    )


def to_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """Mix `[C, N]` to `[channels, N]`.

    The same number is returned as it is. Otherwise all channels are averaged, and the average is repeated:
    what each of five or eight channels means is not known here, and a mean never clips.
    """
    if channels < 1:
        raise ValueError(f"channels must be positive, not {channels}")
    if samples.shape[0] == channels:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=samples.dtype), channels, axis=0)


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """How many samples soxr makes of `num_samples`, with the rounding error of its own division."""
    if from_rate == to_rate:
        return num_samples
    return math.floor(num_samples / (from_rate / to_rate) + 0.5)


@dataclass(frozen=True)
class _Mix:
    """To the recipe's number of channels, then to the codec's."""

    channels: int
    settings: Audio

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return to_channels(to_channels(samples, self.settings.channels or len(samples)), self.channels)


@dataclass
class _Measured:
    """What one pass over a stretch of a source finds out."""

    meter: LoudnessMeter | None
    num_frames: int = 0
    block_peaks: list[float] = field(default_factory=list)
    mixed_peak: float = 0.0

    @property
    def peak(self) -> float:
        """The largest sample of any channel before mixing."""
        return max(self.block_peaks, default=0.0)

    def add(self, block: np.ndarray, mix: _Mix) -> None:
        self.num_frames += block.shape[1]
        self.block_peaks.append(_peak(block))
        if not math.isfinite(self.block_peaks[-1]):
            raise AudioError("contains NaN or infinite samples")
        mixed = mix(block)
        self.mixed_peak = max(self.mixed_peak, _peak(mixed))
        if self.meter is not None:
            self.meter.add(mixed)


def _peak(samples: np.ndarray) -> float:
    return float(max(samples.max(), -samples.min()))


def _measure(reader: AudioReader, mix: _Mix, start: int, stop: int | None, with_meter: bool) -> _Measured:
    measured = _Measured(LoudnessMeter(reader.sample_rate, mix.channels) if with_meter else None)
    for block in reader.read(start, stop):
        measured.add(block, mix)
    return measured


def _kept(reader: AudioReader, whole: _Measured, settings: Audio) -> tuple[int, int]:
    """The first frame that is kept and the one after the last; raises `AudioError` if too few are left."""
    rate, start, stop = reader.sample_rate, 0, whole.num_frames
    if settings.trim_silence_db is not None:
        start, stop = _loud_frames(reader, whole, settings.trim_silence_db)
    num_frames = stop - start
    if settings.min_duration_s is not None and num_frames < round(settings.min_duration_s * rate):
        # Cut off, not rounded: 0.999 s must not read as 1.0 s.
        raise AudioError(
            f"too short: {num_frames * 100 // rate / 100} s, min_duration_s is {settings.min_duration_s}"
        )
    if settings.max_duration_s is not None:
        num_frames = min(num_frames, round(settings.max_duration_s * rate))
    if num_frames < MIN_DURATION_S * rate:
        raise AudioError(f"too short: {num_frames} of {whole.num_frames} samples are left")
    return start, start + num_frames


def _loud_frames(reader: AudioReader, whole: _Measured, silence_db: float) -> tuple[int, int]:
    """From the first frame to the one after the last that come within `silence_db` of the peak."""
    # Rounded like the samples, or the peak of a block could pass a threshold that none of its samples does.
    threshold = np.float32(whole.peak * 10.0 ** (-silence_db / 20.0))
    loud_blocks = np.flatnonzero(np.array(whole.block_peaks) >= threshold)
    first, last = (_loud_in_block(reader, int(loud_blocks[i]), threshold) for i in (0, -1))
    return int(first[0]), int(last[-1]) + 1


def _loud_in_block(reader: AudioReader, index: int, threshold: np.float32) -> np.ndarray:
    """The frames of the block `index` that reach `threshold`, ascending."""
    start = index * BLOCK_FRAMES
    frames = next(reader.read(start, start + BLOCK_FRAMES))
    return start + np.flatnonzero(np.abs(frames).max(axis=0) >= threshold)


def _loudness(meter: LoudnessMeter, duration_s: float) -> float:
    if duration_s < BLOCK_S:
        raise AudioError(f"too short to measure its loudness: {duration_s:.3f} s, {BLOCK_S} s are needed")
    lufs = meter.integrated_lufs()
    if not math.isfinite(lufs):
        raise AudioError("too quiet to measure its loudness: below -70 LUFS throughout")
    return lufs


def _check_kept(kept: _Measured, divisor: float, mix: _Mix) -> None:
    if kept.peak < SILENCE_PEAK * divisor:
        raise AudioError(f"silent in the {mix.settings.max_duration_s} s that are kept")
    if kept.mixed_peak < SILENCE_PEAK * divisor:
        mixed = min(mix.settings.channels or mix.channels, mix.channels)
        raise AudioError(f"silent when mixed to {mixed} channel{'s' if mixed != 1 else ''}")
