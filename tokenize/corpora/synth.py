"""A corpus that needs no download: notes, phrases and chords synthesised from a seed.

Six families of instruments, twenty instruments each, with the labels of NSynth (arXiv:1704.01279, sec. 2.1):
pitch, velocity, family, instrument. Instruments are split, not clips, so a test clip is always played by an
instrument that training never heard.

Shapes: P partials, N samples. All angles in radians, all times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.audio import MIN_DURATION_S, Samples
from ...core.errors import UserError
from ...core.schema_corpora import SynthCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes

VELOCITIES = (25, 50, 75, 100, 127)
NUM_INSTRUMENTS = 20  # in each family
SPLIT_OF_INSTRUMENT: tuple[Split, ...] = ("train",) * 14 + ("valid",) * 3 + ("test",) * 3

# Every random draw is seeded with [seed, one of these, …], so that no two streams share numbers.
_LABELS, _PERFORMANCE, _TIMBRE = 0, 1, 2

# Partials end below the Nyquist frequency with room for vibrato and detuning.
_HIGHEST_PARTIAL = 0.47

_TABLE_SIZE = 4096  # a power of two

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "blues": (0, 3, 5, 6, 7, 10),
}
CHORDS = (
    (0, 4, 7),  # major
    (0, 3, 7),  # minor
    (0, 2, 7),  # sus2
    (0, 5, 7),  # sus4
    (0, 4, 7, 11),  # major seventh
    (0, 3, 7, 10),  # minor seventh
    (0, 4, 7, 10),  # dominant seventh
)
# Lengths of successive notes, in beats.
RHYTHMS = (
    (1, 1, 2),
    (1.5, 0.5, 2),
    (1, 0.5, 0.5, 2),
    (1, 1, 1, 1),
    (1.5, 0.5, 1, 1),
    (0.5, 0.5, 1, 0.5, 1.5),
    (1, 0.5, 0.5, 1, 1),
    (0.5, 0.5, 0.5, 0.5, 1, 1),
    (1, 0.5, 0.5, 0.5, 0.5, 1),
)


def pitch_to_hz(pitch: float) -> float:
    """The frequency of a MIDI pitch, A4 = 69 = 440 Hz."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


@dataclass(frozen=True)
class Timbre:
    """How one instrument sounds."""

    ratios: np.ndarray  # [P] frequency of each partial over the fundamental's
    amplitudes: np.ndarray  # [P] at full velocity
    attack_s: float
    release_s: float
    soft_tilt: float
    """A note at the lowest velocity loses this many powers of the partial's ratio."""
    decay_s: np.ndarray | None = None  # [P] time to fall by 60 dB at middle C; None: the sound is sustained
    vibrato_hz: float = 0.0
    vibrato_cents: float = 0.0
    detune_cents: tuple[float, ...] = (0.0,)
    """One voice for each, sounding together."""
    swell_s: float = 0.0
    """Time in which a sustained sound opens from dark to bright."""
    noise: float = 0.0
    """Breath or hammer noise, relative to the peak."""


def _keys(rng: np.random.Generator) -> Timbre:
    """Struck strings: stiff, so partials are a little sharp (f_k = k f_0 sqrt(1 + B k^2))."""
    k = np.arange(1, 33)
    inharmonicity = rng.uniform(5e-5, 4e-4)
    strike = rng.uniform(0.09, 0.16)  # where the hammer hits, as a share of the string
    decay = rng.uniform(3.0, 7.0) / (1.0 + rng.uniform(0.12, 0.4) * (k - 1))
    return Timbre(
        ratios=k * np.sqrt(1.0 + inharmonicity * k**2),
        amplitudes=np.abs(np.sin(np.pi * k * strike)) / strike / np.pi * k ** -rng.uniform(1.1, 1.7),
        attack_s=rng.uniform(0.002, 0.006),
        release_s=rng.uniform(0.08, 0.2),
        soft_tilt=rng.uniform(0.8, 1.3),
        decay_s=decay,
        detune_cents=tuple(rng.uniform(-0.9, 0.9, size=2)),
        noise=rng.uniform(0.01, 0.05),
    )


def _mallet(rng: np.random.Generator) -> Timbre:
    """Struck bars and small bells: a strong fundamental, a few inharmonic modes, no harmonics."""
    # Modes of a uniform bar (1 : 2.76 : 5.40 : 8.93), of a marimba's and of a vibraphone's tuned bar.
    modes = np.array([(1, 2.756, 5.404, 8.933), (1, 3.93, 9.2, 16.0), (1, 4.0, 10.3, 17.5)])[rng.integers(3)]
    modes = modes * np.concatenate([[1.0], rng.uniform(0.97, 1.03, size=3)])
    decay = rng.uniform(0.7, 4.0) / modes ** rng.uniform(0.6, 1.1)
    return Timbre(
        ratios=modes,
        amplitudes=np.array([1.0, *(rng.uniform(0.1, 0.45) * np.array([1.0, 0.5, 0.25]))]),
        attack_s=rng.uniform(0.001, 0.003),
        release_s=rng.uniform(0.15, 0.3),
        soft_tilt=rng.uniform(0.7, 1.4),
        decay_s=decay,
        noise=rng.uniform(0.01, 0.04),
    )


def _organ(rng: np.random.Generator) -> Timbre:
    """Drawbars: a few harmonics at fixed levels, no decay, hardly any attack."""
    ratios = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16])
    drawbars = rng.integers(0, 9, size=len(ratios)) / 8.0 / np.sqrt(ratios)
    drawbars[0] = 1.0  # the pitch has to be told
    return Timbre(
        ratios=ratios,
        amplitudes=drawbars,
        attack_s=rng.uniform(0.008, 0.03),
        release_s=rng.uniform(0.05, 0.12),
        soft_tilt=rng.uniform(0.3, 0.7),
        vibrato_hz=rng.uniform(5.5, 7.0),
        vibrato_cents=rng.uniform(0.0, 6.0),
    )


def _pluck(rng: np.random.Generator) -> Timbre:
    """Plucked strings: harmonics missing where the string is plucked, high ones gone within a moment."""
    k = np.arange(1, 41)
    position = rng.uniform(0.12, 0.45)
    loss = rng.uniform(0.02, 0.12)
    return Timbre(
        ratios=k * np.sqrt(1.0 + rng.uniform(1e-5, 8e-5) * k**2),
        amplitudes=np.abs(np.sin(np.pi * k * position)) / k ** rng.uniform(0.8, 1.3) + 1e-3 / k,
        attack_s=rng.uniform(0.001, 0.002),
        release_s=rng.uniform(0.04, 0.1),
        soft_tilt=rng.uniform(0.4, 0.8),
        decay_s=rng.uniform(1.0, 2.6) / (1.0 + loss * (k - 1) ** 1.7),
        noise=rng.uniform(0.02, 0.08),
    )


def _reed(rng: np.random.Generator) -> Timbre:
    """A cylindrical bore: odd harmonics and a formant, with breath and a little vibrato."""
    k = np.arange(1, 41)
    even = rng.uniform(0.02, 0.25)
    formant, width = rng.uniform(3.0, 8.0), rng.uniform(1.0, 2.5)
    resonance = 1.0 + rng.uniform(0.5, 2.0) * np.exp(-(((k - formant) / width) ** 2))
    return Timbre(
        ratios=k,
        amplitudes=np.where(k % 2, 1.0, even) * resonance / k ** rng.uniform(1.0, 1.4),
        attack_s=rng.uniform(0.02, 0.06),
        release_s=rng.uniform(0.05, 0.1),
        soft_tilt=rng.uniform(0.7, 1.2),
        vibrato_hz=rng.uniform(4.5, 6.0),
        vibrato_cents=rng.uniform(3.0, 14.0),
        swell_s=rng.uniform(0.04, 0.12),
        noise=rng.uniform(0.005, 0.02),
    )


def _string(rng: np.random.Generator) -> Timbre:
    """Bowed strings in unison: saw-like, slow to speak, each voice with a vibrato of its own."""
    k = np.arange(1, 61)
    body = 1.0 + 0.5 * np.cos(np.log(k) * rng.uniform(2.0, 5.0) + rng.uniform(0.0, 2.0 * np.pi))
    return Timbre(
        ratios=k,
        amplitudes=body / k ** rng.uniform(0.95, 1.25),
        attack_s=rng.uniform(0.06, 0.16),
        release_s=rng.uniform(0.1, 0.2),
        soft_tilt=rng.uniform(0.5, 0.9),
        vibrato_hz=rng.uniform(4.8, 6.2),
        vibrato_cents=rng.uniform(8.0, 22.0),
        detune_cents=tuple(rng.uniform(-7.0, 7.0, size=int(rng.integers(2, 4)))),
        swell_s=rng.uniform(0.1, 0.3),
        noise=rng.uniform(0.002, 0.008),
    )


FAMILIES: dict[str, Callable[[np.random.Generator], Timbre]] = {
    "keys": _keys,
    "mallet": _mallet,
    "organ": _organ,
    "pluck": _pluck,
    "reed": _reed,
    "string": _string,
}


def _damped_partials(
    hz: np.ndarray,
    amplitudes: np.ndarray,
    phases: np.ndarray,
    decay_s: np.ndarray,
    num_samples: int,
    rate: int,
) -> np.ndarray:
    """Sum of exponentially decaying sines, `[P]` each → `[N]`.

    A decaying sine is Im(a z^n). With n = rows * width + column, z^n is an outer product of coarse and
    fine powers: 2 sqrt(N) exponentials for each partial instead of N.
    """
    exponents = (-np.log(1000.0) / decay_s + 2j * np.pi * hz) / rate
    width = int(np.ceil(np.sqrt(num_samples)))
    fine = np.exp(exponents[:, None] * np.arange(width))
    coarse = (
        np.exp(exponents[:, None] * (width * np.arange(width)) + 1j * phases[:, None]) * amplitudes[:, None]
    )
    # Not a matrix product: BLAS rounds differently with each number of threads, einsum always alike.
    total: np.ndarray = np.einsum(
        "pr,pc->rc", np.concatenate([coarse.imag, coarse.real]), np.concatenate([fine.real, fine.imag])
    )
    return total.reshape(-1)[:num_samples]


def _wavetable(ratios: np.ndarray, amplitudes: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """One period of a harmonic sound, `[_TABLE_SIZE + 1]`; the last sample repeats the first."""
    size = _TABLE_SIZE
    spectrum = np.zeros(size // 2 + 1, dtype=np.complex128)
    spectrum[ratios.astype(np.int64)] = -0.5j * size * amplitudes * np.exp(1j * phases)
    period = np.fft.irfft(spectrum, size)
    return np.append(period, period[0])


@dataclass(frozen=True)
class _Phase:
    """Where in a wavetable each sample lies."""

    index: np.ndarray  # [N]
    fraction: np.ndarray  # [N] of the way to the next entry

    @classmethod
    def from_turns(cls, turns: np.ndarray) -> _Phase:
        """Of a rising phase in turns, `[N]`."""
        position = turns * _TABLE_SIZE
        whole = position.astype(np.int64)
        return cls(whole & (_TABLE_SIZE - 1), position - whole)

    def look_up(self, table: np.ndarray) -> np.ndarray:
        """Samples of a wavetable, linearly interpolated, `[N]`."""
        samples: np.ndarray = table[self.index] + self.fraction * np.diff(table)[self.index]
        return samples


def render_note(
    timbre: Timbre,
    pitch: int,
    velocity: int,
    held_s: float,
    rate: int,
    rng: np.random.Generator,
    *,
    random_phase: bool = False,
) -> np.ndarray:
    """One note, `[N]` float64 with a peak near 1, held for `held_s` and then released to silence.

    Its oscillators start with the note, as in most synthesisers, or anywhere if `random_phase`.
    """
    f0 = pitch_to_hz(pitch)
    softness = 1.0 - velocity / 127.0
    attack_s, release_s = min(timbre.attack_s, 0.25 * held_s), min(timbre.release_s, held_s)
    num_samples = max(2, round((held_s + release_s) * rate))
    seconds = np.arange(num_samples) / rate

    audible = timbre.ratios * f0 < _HIGHEST_PARTIAL * rate
    ratios = timbre.ratios[audible]
    amplitudes = timbre.amplitudes[audible] * ratios ** -(timbre.soft_tilt * softness)
    phases = rng.uniform(0.0, 2.0 * np.pi, size=len(ratios)) if random_phase else np.zeros(len(ratios))
    note = np.zeros(num_samples)
    if timbre.decay_s is not None:
        # Low strings and bars ring longer.
        decay_s = timbre.decay_s[audible] * 2.0 ** ((60 - pitch) / 24.0)
        for cents in timbre.detune_cents:
            hz = ratios * f0 * 2.0 ** (cents / 1200.0)
            note += _damped_partials(hz, amplitudes, phases, decay_s, num_samples, rate)
    else:
        bright = _wavetable(ratios, amplitudes, phases)
        dark = _wavetable(ratios, amplitudes * ratios**-1.2, phases)
        closed = np.exp(-seconds / timbre.swell_s) if timbre.swell_s else None
        # Players let a note settle before they shake it.
        depth = timbre.vibrato_cents * np.minimum(1.0, seconds / 0.35)
        for cents in timbre.detune_cents:
            vibrato_hz = timbre.vibrato_hz * rng.uniform(0.95, 1.05)
            shake = depth * np.sin(2.0 * np.pi * vibrato_hz * seconds + rng.uniform(0.0, 2.0 * np.pi))
            hz = f0 * 2.0 ** (cents / 1200.0) * (1.0 + shake * (np.log(2.0) / 1200.0))
            turns = np.cumsum(hz) / rate
            phase = _Phase.from_turns(turns + rng.uniform() if random_phase else turns)
            note += phase.look_up(bright)
            if closed is not None:
                note += closed * phase.look_up(dark - bright)
    note /= np.abs(note).max()
    note += _noise(timbre, seconds, rng)

    num_attack, num_release = max(1, round(attack_s * rate)), max(2, round(release_s * rate))
    note[:num_attack] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(num_attack) / num_attack)
    note[-num_release:] *= np.linspace(1.0, 0.0, num_release) ** 2
    return note


def _noise(timbre: Timbre, seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Breath for sustained sounds; a click of some milliseconds for struck ones."""
    white = rng.standard_normal(len(seconds) + 2) * (0.4 * timbre.noise)
    soft = white[:-2] + white[1:-1] + white[2:]
    return soft if timbre.decay_s is None else soft * np.exp(-seconds / 0.012)


@dataclass(frozen=True)
class _Note:
    """A note of a clip; times are shares of the clip."""

    pitch: int
    start: float
    held: float


def _single(pitch: int, rng: np.random.Generator) -> list[_Note]:
    return [_Note(pitch, 0.0, rng.uniform(0.6, 0.85))]


def _chord(pitch: int, rng: np.random.Generator) -> list[_Note]:
    intervals = CHORDS[rng.integers(len(CHORDS))]
    strum = rng.uniform(0.0, 0.012) if rng.uniform() < 0.5 else 0.0
    held = rng.uniform(0.6, 0.82)
    return [_Note(pitch + step, i * strum, held - i * strum) for i, step in enumerate(intervals)]


def _phrase(pitch: int, rng: np.random.Generator) -> list[_Note]:
    """A walk through a scale from `pitch`, mostly by step, that comes to rest on the tonic's chord."""
    scale = list(SCALES.values())[rng.integers(len(SCALES))]
    beats = np.array(RHYTHMS[rng.integers(len(RHYTHMS))])
    shares = 0.9 * beats / beats.sum()
    starts = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
    legato = rng.uniform(0.75, 1.0)
    degree, notes = 0, []
    for i, (start, share) in enumerate(zip(starts, shares, strict=True)):
        if i:
            degree += int(rng.choice([-3, -2, -1, 1, 2, 3], p=[0.06, 0.16, 0.28, 0.28, 0.16, 0.06]))
        if i == len(beats) - 1:
            rests = (-len(scale), 0, 2, 4, len(scale))
            degree = min(rests, key=lambda rest: abs(rest - degree))
        octave, step = divmod(degree, len(scale))
        notes.append(_Note(pitch + 12 * octave + scale[step], float(start), float(share * legato)))
    return notes


_FORMS: dict[str, Callable[[int, np.random.Generator], list[_Note]]] = {
    "note": _single,
    "phrase": _phrase,
    "chord": _chord,
}


_LABEL_TYPES: LabelTypes = {
    "pitch": int,
    "velocity": int,
    "instrument_family": str,
    "instrument": str,
    "form": str,
}


class Synth:
    """Synthesised clips; clip i depends on the seed and on i alone, so any clip can be made by itself."""

    label_types: LabelTypes = _LABEL_TYPES

    def __init__(self, config: SynthCorpus):
        self.config = config
        self.seed = config.seed % 2**64  # NumPy takes no negative seeds
        self.highest_pitch = int(
            np.floor(69 + 12 * np.log2(_HIGHEST_PARTIAL * config.sample_rate_hz / 440.0))
        )
        if config.pitch_max > self.highest_pitch:
            raise UserError(
                f"data.pitch_max {config.pitch_max} ({pitch_to_hz(config.pitch_max):.0f} Hz) does not fit"
                f" into data.sample_rate_hz {config.sample_rate_hz}: lower the pitch to"
                f" {self.highest_pitch} or raise the rate"
            )

        if config.duration_s < MIN_DURATION_S:
            raise UserError(
                f"data.duration_s {config.duration_s} is below {MIN_DURATION_S}: make clips longer"
            )

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id; nothing is synthesised."""
        return [self.clip(index) for index in range(self.config.num_clips)]

    def clip(self, index: int) -> Clip:
        """What clip `index` holds."""
        rng = np.random.default_rng([self.seed, _LABELS, index])
        # Instruments take turns, 3 being prime to 20, so that seven clips already fill all three splits.
        number = index * 3 % NUM_INSTRUMENTS
        family = self.config.families[rng.integers(len(self.config.families))]
        instrument = f"{family}_{number:03d}"
        pitch = int(rng.integers(self.config.pitch_min, self.config.pitch_max + 1))
        velocity = VELOCITIES[rng.integers(len(VELOCITIES))]
        form = self.config.forms[rng.integers(len(self.config.forms))]
        return Clip(
            id=f"{index:08d}",
            split=SPLIT_OF_INSTRUMENT[number],
            source=f"synthesised: {instrument}, {form}, pitch {pitch}, velocity {velocity}",
            labels={
                "pitch": pitch,
                "velocity": velocity,
                "instrument_family": family,
                "instrument": instrument,
                "form": form,
            },
        )

    def audio(self, clip: Clip) -> Samples:
        """The samples of `clip`, mono, at the corpus's own rate."""
        return Samples(self._render(int(clip.id))[None], self.config.sample_rate_hz)

    def _timbre(self, instrument: str) -> Timbre:
        family, _, number = instrument.partition("_")
        position = list(FAMILIES).index(family)
        return FAMILIES[family](np.random.default_rng([self.seed, _TIMBRE, position, int(number)]))

    def _render(self, index: int) -> np.ndarray:
        """Clip `index` at the corpus's rate, `[N]` float32."""
        labels = self.clip(index).labels
        pitch, velocity = int(str(labels["pitch"])), int(str(labels["velocity"]))
        rate, duration_s = self.config.sample_rate_hz, self.config.duration_s
        timbre = self._timbre(str(labels["instrument"]))
        rng = np.random.default_rng([self.seed, _PERFORMANCE, index])
        num_samples = round(duration_s * rate)
        mix = np.zeros(num_samples)
        for note in _FORMS[str(labels["form"])](pitch, rng):
            in_range = note.pitch
            while in_range > self.highest_pitch:
                in_range -= 12
            # The release has to end inside the clip too.
            start, held_s = round(note.start * num_samples), note.held * duration_s
            end_s = duration_s - start / rate
            held_s = min(held_s, max(0.5 * end_s, end_s - timbre.release_s))
            sound = render_note(
                timbre,
                in_range,
                velocity,
                held_s,
                rate,
                rng,
                random_phase=self.config.random_phase,
            )[: num_samples - start]
            mix[start : start + len(sound)] += sound
        peak = 0.2 + 0.7 * (velocity - VELOCITIES[0]) / (VELOCITIES[-1] - VELOCITIES[0])
        samples: np.ndarray = (mix * (peak / np.abs(mix).max())).astype(np.float32)
        return samples
