"""Random pieces for General MIDI instruments, rendered by `fluidsynth` from a SoundFont.

Shapes: C channels, N samples. Times in seconds.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mido
import numpy as np

from ...core.audio import AudioError, Samples, load_audio
from ...core.errors import UserError
from ...core.schema_corpora import SoundFontCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .split import stable_unit

# FluidSynth transposes samples without a filter, so at a low rate it would alias: render high, then resample.
RENDER_RATE = 44100

DRUM_PROGRAM = 128  # the label of a piece without a pitched instrument, as in MuseNet and MT3
_DRUM_CHANNEL = 9

_TICKS_PER_S = 960  # mido's default: 480 ticks a beat at 120 beats a minute

# Comfortable pitches of the General MIDI families, eight programs each, 0-111.
_RANGES = (
    (30, 96),  # piano
    (55, 98),  # chromatic percussion
    (40, 91),  # organ
    (40, 84),  # guitar
    (28, 55),  # bass
    (38, 88),  # strings
    (40, 84),  # ensemble
    (38, 80),  # brass
    (44, 84),  # reed
    (58, 94),  # pipe
    (40, 91),  # synth lead
    (38, 84),  # synth pad
    (40, 84),  # synth effects
    (45, 84),  # ethnic
)
MIN_PIECE_S = 0.5

NUM_PROGRAMS = 8 * len(_RANGES)
_BASS_PROGRAMS = range(32, 40)

_SCALES = (
    (0, 2, 4, 5, 7, 9, 11),
    (0, 2, 3, 5, 7, 8, 10),
    (0, 2, 3, 5, 7, 9, 10),
    (0, 2, 4, 5, 7, 9, 10),
)
# Degrees of the scale on which one chord after the other is built.
_PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (5, 3, 0, 4), (1, 4, 0, 0), (0, 2, 3, 4))

KINDS = ("melody", "chords", "note", "ensemble", "drums")
_KIND_SHARES = (0.28, 0.2, 0.14, 0.28, 0.1)
_SOLO_KINDS = ("melody", "chords", "note")


@dataclass(frozen=True)
class Note:
    """One note of a piece."""

    channel: int
    pitch: int
    velocity: int
    start_s: float
    end_s: float


@dataclass
class Piece:
    """What is sent to the synthesiser."""

    programs: dict[int, int] = field(default_factory=dict)  # channel → program
    notes: list[Note] = field(default_factory=list)

    def write_midi(self, path: Path, duration_s: float) -> None:
        """Write a Standard MIDI File that lasts `duration_s`."""
        events: list[tuple[int, int, mido.Message]] = []
        for note in self.notes:
            start, end = round(note.start_s * _TICKS_PER_S), round(note.end_s * _TICKS_PER_S)
            on = mido.Message("note_on", channel=note.channel, note=note.pitch, velocity=note.velocity)
            off = mido.Message("note_off", channel=note.channel, note=note.pitch)
            # At one tick a note ends before the next begins, or it would cut off a repeated pitch.
            events += [(start, 1, on), (max(end, start + 1), 0, off)]
        track = mido.MidiTrack()
        for channel, program in self.programs.items():
            track.append(mido.Message("program_change", channel=channel, program=program, time=0))
        now = 0
        for tick, _, message in sorted(events, key=lambda event: event[:2]):
            track.append(message.copy(time=tick - now))
            now = tick
        rest = max(0, round(duration_s * _TICKS_PER_S) - now)
        track.append(mido.MetaMessage("end_of_track", time=rest))
        mido.MidiFile(type=0, ticks_per_beat=480, tracks=[track]).save(path)


@dataclass(frozen=True)
class _Harmony:
    """Key, tempo and chords that the parts of a piece share."""

    tonic: int  # 0…11
    scale: tuple[int, ...]
    progression: tuple[int, ...]  # one chord a bar
    beat_s: float
    loudness: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Harmony:
        return cls(
            tonic=int(rng.integers(12)),
            scale=_SCALES[rng.integers(len(_SCALES))],
            progression=_PROGRESSIONS[rng.integers(len(_PROGRESSIONS))],
            beat_s=60.0 / rng.uniform(66.0, 168.0),
            loudness=int(rng.integers(45, 115)),
        )

    def pitch(self, degree: int, octave: int) -> int:
        octaves, step = divmod(degree, len(self.scale))
        return self.tonic + self.scale[step] + 12 * (octave + octaves)

    def chord(self, time_s: float) -> int:
        """The degree on which the chord at `time_s` is built."""
        return self.progression[int(time_s / (4 * self.beat_s)) % len(self.progression)]


def _velocity(loudness: int, rng: np.random.Generator) -> int:
    return int(np.clip(loudness + rng.normal(0.0, 7.0), 20, 127))


def _fold(pitch: int, low: int, high: int) -> int:
    """The same pitch class inside `low`…`high`, by octaves; ranges are wider than an octave."""
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return pitch


def _range(program: int) -> tuple[int, int]:
    return _RANGES[program // 8]


def _octave(program: int, rng: np.random.Generator) -> int:
    low, high = _range(program)
    return int(rng.integers(low, max(low + 1, high - 12))) // 12


def _melody(
    channel: int, program: int, harmony: _Harmony, end_s: float, rng: np.random.Generator
) -> list[Note]:
    low, high = _range(program)
    octave, legato = _octave(program, rng), rng.uniform(0.6, 1.0)
    lengths = ((0.25, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.5), (0.5, 1.0, 1.0, 2.0))[rng.integers(3)]
    notes: list[Note] = []
    degree, now = harmony.chord(0.0) + int(rng.choice([0, 2, 4])), 0.0
    while now < end_s - 0.1:
        length_s = float(rng.choice(lengths)) * harmony.beat_s
        rests = rng.uniform() < 0.12
        if not rests or not notes:
            pitch = _fold(harmony.pitch(degree, octave), low, high)
            velocity = _velocity(harmony.loudness, rng)
            notes.append(Note(channel, pitch, velocity, now, min(end_s, now + legato * length_s)))
        degree += int(rng.choice([-4, -2, -1, -1, 0, 1, 1, 2, 4]))
        degree -= int(np.sign(degree) * len(harmony.scale)) if abs(degree) > 9 else 0
        now += length_s
    return notes


def _chords(
    channel: int, program: int, harmony: _Harmony, end_s: float, rng: np.random.Generator
) -> list[Note]:
    """Triads and sevenths: held, repeated or broken."""
    low, high = _range(program)
    octave = _octave(program, rng)
    degrees = (0, 2, 4) if rng.uniform() < 0.65 else (0, 2, 4, 6)
    pattern = ("held", "repeated", "broken")[rng.integers(3)]
    step_s = harmony.beat_s * {"held": 4.0, "repeated": 1.0, "broken": 0.5}[pattern]
    now, index, notes = 0.0, 0, []
    while now < end_s - 0.1:
        root = harmony.chord(now)
        chosen = (degrees[index % len(degrees)],) if pattern == "broken" else degrees
        for pitch in {_fold(harmony.pitch(root + degree, octave), low, high): None for degree in chosen}:
            velocity = _velocity(harmony.loudness, rng)
            notes.append(Note(channel, pitch, velocity, now, min(end_s, now + 0.95 * step_s)))
        now, index = now + step_s, index + 1
    return notes


def _long_notes(channel: int, program: int, end_s: float, rng: np.random.Generator) -> list[Note]:
    """One to three sustained notes anywhere in the instrument's range, each with a rest after it."""
    low, high = _range(program)
    num_notes = int(rng.integers(1, 4))
    slot_s = end_s / num_notes
    return [
        Note(
            channel,
            int(rng.integers(low, high + 1)),
            int(rng.integers(25, 128)),
            i * slot_s,
            (i + rng.uniform(0.55, 0.95)) * slot_s,
        )
        for i in range(num_notes)
    ]


def _bass(channel: int, harmony: _Harmony, end_s: float, rng: np.random.Generator) -> list[Note]:
    low, high = _RANGES[4]
    step_s = harmony.beat_s * float(rng.choice([0.5, 1.0, 2.0]))
    now, notes = 0.0, []
    while now < end_s - 0.1:
        degree = harmony.chord(now) + int(rng.choice([0, 0, 0, 4, 7]))
        pitch = _fold(harmony.pitch(degree, 2), low, high)
        notes.append(
            Note(channel, pitch, _velocity(harmony.loudness, rng), now, min(end_s, now + 0.9 * step_s))
        )
        now += step_s
    return notes


def _drums(harmony: _Harmony, end_s: float, rng: np.random.Generator) -> list[Note]:
    """A bar of sixteenths for each instrument, repeated, with a few hits left out or added."""
    cymbal = int(rng.choice([42, 42, 46, 51, 54, 70]))  # hi-hats, ride, tambourine, maracas
    snare = int(rng.choice([38, 38, 40, 37, 39]))
    every = int(rng.choice([1, 2, 2, 4]))
    bar = {
        36: {0, 8} | set(rng.choice(16, size=int(rng.integers(0, 3))).tolist()),
        snare: {4, 12} | ({int(rng.integers(16))} if rng.uniform() < 0.4 else set()),
        cymbal: set(range(0, 16, every)),
    }
    for extra in rng.choice([41, 43, 45, 47, 49, 56, 62, 63, 64, 75], size=int(rng.integers(0, 3))).tolist():
        bar[extra] = set(rng.choice(16, size=int(rng.integers(1, 4))).tolist())
    step_s, notes = harmony.beat_s / 4, []
    for step in range(int(end_s / step_s)):
        for pitch, hits in bar.items():
            left_out = rng.uniform() < 0.04
            if step % 16 in hits and (step == 0 or not left_out):
                accent = 12 if step % 4 == 0 else -6
                velocity = _velocity(harmony.loudness + accent, rng)
                notes.append(Note(_DRUM_CHANNEL, pitch, velocity, step * step_s, (step + 0.9) * step_s))
    return notes


def split_programs() -> list[Split]:
    """The split of each program: 80 % train, 10 % valid, 10 % test, in the order of their hashes."""
    order = sorted(range(NUM_PROGRAMS), key=lambda program: stable_unit(f"program {program}"))
    num_held_out = NUM_PROGRAMS // 10
    splits: list[Split] = ["train"] * NUM_PROGRAMS
    for rank, program in enumerate(order[: 2 * num_held_out]):
        splits[program] = "test" if rank < num_held_out else "valid"
    return splits


def _split_piece(index: int) -> Split:
    unit = stable_unit(f"piece {index}")
    return "test" if unit < 0.1 else "valid" if unit < 0.2 else "train"


@dataclass(frozen=True)
class _Plan:
    """What a clip is, before any note is drawn."""

    kind: str
    program: int
    split: Split


_LABEL_TYPES: LabelTypes = {"program": int, "kind": str}


class SoundFont:
    """Rendered pieces; piece i depends on the seed, the length and i alone.

    Solo pieces are split by program, so some instruments are never heard in training: ensembles of the
    split `train` are cast from its programs only. Ensembles and drums are split by a hash of their id.
    """

    label_types: LabelTypes = _LABEL_TYPES

    def __init__(self, config: SoundFontCorpus):
        self.config = config
        self.seed = config.seed % 2**64  # NumPy takes no negative seeds
        self.program_splits = split_programs()
        if config.duration_s < MIN_PIECE_S:
            raise UserError(f"data.duration_s {config.duration_s} is below {MIN_PIECE_S}: make pieces longer")
        self.fluidsynth = shutil.which("fluidsynth")
        if self.fluidsynth is None:
            raise UserError("the program fluidsynth is missing: install it (Debian: apt install fluidsynth)")
        if not config.soundfont.is_file():
            raise UserError(
                f"data.soundfont {config.soundfont} does not exist: give a General MIDI .sf2 file"
                " (Debian: apt install fluid-soundfont-gm)"
            )

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id; nothing is rendered."""
        return [self.clip(index) for index in range(self.config.num_clips)]

    def clip(self, index: int) -> Clip:
        """What clip `index` holds."""
        plan = self._plan(index, np.random.default_rng([self.seed, index]))
        return Clip(
            id=f"{index:08d}",
            split=plan.split,
            source=f"{self.config.soundfont.name}: {plan.kind}, program {plan.program}",
            labels={"program": plan.program, "kind": plan.kind},
        )

    def audio(self, clip: Clip) -> Samples:
        """Render `clip`, in stereo at `RENDER_RATE`."""
        with tempfile.TemporaryDirectory(prefix="tokkata-") as folder:
            midi, wav = Path(folder) / "piece.mid", Path(folder) / "piece.wav"
            self.piece(int(clip.id)).write_midi(midi, self.config.duration_s)
            command: list[str | Path] = [str(self.fluidsynth), "-n", "-i", "-q", "-g", "1.5"]
            command += ["-o", "synth.dynamic-sample-loading=1"]  # reads only the samples that are played
            command += ["-r", str(RENDER_RATE), "-T", "wav", "-O", "float", "-F", wav]
            result = subprocess.run(
                [*command, self.config.soundfont, midi], capture_output=True, text=True, check=False
            )
            if result.returncode or not wav.exists():
                raise AudioError(f"fluidsynth failed: {' '.join(result.stderr.split())[-200:]}")
            rendered = load_audio(wav, RENDER_RATE, 2)
        num_samples = round(self.config.duration_s * RENDER_RATE)
        rendered = np.pad(rendered, ((0, 0), (0, max(0, num_samples - rendered.shape[1]))))[:, :num_samples]
        return Samples(np.ascontiguousarray(rendered), RENDER_RATE)

    def piece(self, index: int) -> Piece:
        """The notes of clip `index`."""
        rng = np.random.default_rng([self.seed, index])
        plan = self._plan(index, rng)
        # The last notes need a moment to ring off.
        end_s = self.config.duration_s - min(0.4, 0.1 * self.config.duration_s)
        harmony = _Harmony.draw(rng)
        if plan.kind == "drums":
            return Piece(notes=_drums(harmony, end_s, rng))
        if plan.kind == "note":
            return Piece({0: plan.program}, _long_notes(0, plan.program, end_s, rng))
        part = _chords if plan.kind == "chords" else _melody
        piece = Piece({0: plan.program}, part(0, plan.program, harmony, end_s, rng))
        if plan.kind == "ensemble":
            self._accompany(piece, plan, harmony, end_s, rng)
        return piece

    def _accompany(
        self, piece: Piece, plan: _Plan, harmony: _Harmony, end_s: float, rng: np.random.Generator
    ) -> None:
        """Add chords, and mostly a bass, a second melody and drums."""
        cast = self._cast(plan.split)
        piece.programs[1] = int(rng.choice(cast))
        piece.notes += _chords(1, piece.programs[1], harmony, end_s, rng)
        if rng.uniform() < 0.7:
            piece.programs[2] = int(rng.choice([program for program in cast if program in _BASS_PROGRAMS]))
            piece.notes += _bass(2, harmony, end_s, rng)
        if rng.uniform() < 0.3:
            piece.programs[3] = int(rng.choice(cast))
            piece.notes += _melody(3, piece.programs[3], harmony, end_s, rng)
        if rng.uniform() < 0.6:
            piece.notes += _drums(harmony, end_s, rng)

    def _cast(self, split: Split) -> list[int]:
        """The programs that an ensemble of `split` may use."""
        return [p for p, own in enumerate(self.program_splits) if own == "train" or split != "train"]

    def _plan(self, index: int, rng: np.random.Generator) -> _Plan:
        kind = str(rng.choice(KINDS, p=_KIND_SHARES))
        if kind in _SOLO_KINDS:
            program = int(rng.integers(NUM_PROGRAMS))
            return _Plan(kind, program, self.program_splits[program])
        split = _split_piece(index)
        if kind == "drums":
            return _Plan(kind, DRUM_PROGRAM, split)
        return _Plan(kind, int(rng.choice(self._cast(split))), split)
