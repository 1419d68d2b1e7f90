"""Makes a listening test: all clips at one sample rate, in one number of channels, at one loudness, unnamed.

Shapes: C channels, N samples. Audio is float32 `[C, N]` in -1…1.
"""

from __future__ import annotations

import functools
import hashlib
import math
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from scipy.signal import ellip, sosfiltfilt

from ...core.audio import AudioError, load_audio, resample, to_channels, write_wav
from ...core.errors import UserError
from ...core.files import atomic_folder, write_text
from ...core.loudness import BLOCK_S, LoudnessMeter
from ...core.progress import track
from ...core.recipe import check_section
from .check_clips import TONE_COUNTS, counted_tones, quietest_of_three, soft_chord
from .collect import Collection, collect, read_prompts
from .definition import Definition, database_path, dump_definition, stimuli_folder
from .stimuli import (
    ATTENTION,
    HEADPHONES,
    RECONSTRUCTED,
    REFERENCE,
    VOLUME,
    Manifest,
    Stimulus,
    StimulusRole,
    anchor_name,
    write_manifest,
)

if TYPE_CHECKING:
    from ...tokenize.codec import Codec

_PEAK = 0.98  # what a clip's largest sample may reach
_QUIETEST_LUFS = -50.0
_FADE_S = 0.02

# The quietest of three tones, and the one in opposite phase.
_HEADPHONE_TONES = ((2, 3), (3, 1), (1, 2))


@dataclass(frozen=True)
class Built:
    """What was made."""

    definition: Definition
    """As written: with the loudness that all clips have."""
    num_items: int
    num_left_out: int
    quieter_because_of: str | None
    """The clip whose peaks kept the whole test below the loudness asked for."""


@dataclass(frozen=True)
class _Draft:
    """A clip before it is scaled."""

    item: str
    system: str
    role: StimulusRole
    source: str  # for messages
    samples: Path  # .npy [C, N]
    loudness_lufs: float
    peak: float


def build_test(test: Path, definition: Definition) -> Built:
    """Write the clips of `definition` into the folder beside `test`, then `test` itself.

    `definition.paired` and `loudness_lufs` are set to what the files allow. Raises `UserError` if `test`, its
    clips or its answers are there already, if folders do not fit together, or if a clip cannot be used.
    """
    if test.suffix not in (".yaml", ".yml"):
        raise UserError(f"{test} must end in .yaml: its clips and its answers are kept beside it")
    for path in (test, stimuli_folder(test), database_path(test)):
        if path.exists():
            raise UserError(f"{path} is there already: give the test another name, or move {path.name} away")
    collection = _collect(definition)
    definition = _checked(definition, collection)
    prompts = read_prompts(definition.prompts, collection.items)
    with tempfile.TemporaryDirectory() as scratch:
        drafts = list(_drafts(definition, collection, Path(scratch)))
        loudness, culprit = _reachable_loudness(definition.loudness_lufs, drafts)
        with atomic_folder(stimuli_folder(test)) as folder:
            # Sorted by their random names, or the times of the files would tell the systems apart.
            named = sorted((secrets.token_hex(8), draft) for draft in drafts)
            stimuli = [_write(folder, name, draft, loudness, definition) for name, draft in named]
            write_manifest(folder, Manifest({clip.id: clip for clip in stimuli}, prompts))
    definition = definition.model_copy(update={"loudness_lufs": loudness})
    write_text(test, _HEADER.format(test=test.name) + dump_definition(definition))
    return Built(definition, len(collection.items), collection.num_left_out, culprit)


_HEADER = """\
# A listening test. Which clips there are is fixed; questions, numbers of trials and exclusions can still be
# changed, until the first listener has come:
#   tokkata listen serve {test}
#   tokkata listen report {test}
"""


def _collect(definition: Definition) -> Collection:
    folders = {system.name: system.path for system in definition.systems}
    if definition.reference is not None:
        folders[REFERENCE] = definition.reference
    return collect(folders)


def _checked(definition: Definition, collection: Collection) -> Definition:
    num_items = len(collection.items)
    if definition.items_per_listener > num_items:
        raise UserError(
            f"{definition.items_per_listener} items per listener are asked for, but the folders share only"
            f" {num_items}: ask for fewer"
        )
    return check_section(Definition, definition.model_dump() | {"paired": collection.paired})


# ---------------------------------------------------------------------------------------------- drafts


def _drafts(definition: Definition, collection: Collection, scratch: Path) -> Iterator[_Draft]:
    """All clips, each measured and saved in `scratch`."""
    rate = definition.sample_rate_hz
    channels = _channels(collection)

    def draft(item: str, system: str, role: StimulusRole, source: str, samples: np.ndarray) -> _Draft:
        path = scratch / f"{system}-{hashlib.sha256(item.encode()).hexdigest()}.npy"
        np.save(path, samples)
        loudness = _loudness(samples, rate, source)
        return _Draft(item, system, role, source, path, loudness, float(np.abs(samples).max()))

    for item in track(collection.items, "clips"):
        for name, samples in _versions(item, definition, collection, channels).items():
            role: StimulusRole = "scored"
            if name in (REFERENCE, RECONSTRUCTED):
                role = "reference"
            elif name not in collection.paths:
                role = "anchor"
            # A clip made of the recording is named after it in messages.
            source = collection.paths.get(name, collection.paths.get(REFERENCE, {}))[item]
            yield draft(item, name, role, str(source), samples)
    if definition.attention_items:
        for count in TONE_COUNTS:
            yield draft(str(count), ATTENTION, "attention", "", counted_tones(count, rate, channels))
    yield draft("volume", VOLUME, "check", "", soft_chord(rate, channels))
    for quietest, opposed in _HEADPHONE_TONES:
        tones = quietest_of_three(quietest, opposed, rate)
        yield draft(str(quietest), HEADPHONES, "check", "", tones)


def _channels(collection: Collection) -> int:
    """Stereo if any file is, for all: or the number of channels would tell the systems apart."""
    for files in collection.paths.values():
        for path in files.values():
            try:
                if soundfile.info(path).channels > 1:
                    return 2
            except soundfile.LibsndfileError as error:
                raise UserError(f"{path} cannot be read as audio: mend it or take it away") from error
    return 1


def _versions(
    item: str, definition: Definition, collection: Collection, channels: int
) -> dict[str, np.ndarray]:
    """All versions of `item`, [C, N] each, by system."""
    rate = definition.sample_rate_hz
    versions = {
        system: _cut(_load(files[item], rate, channels), definition.max_duration_s, rate)
        for system, files in collection.paths.items()
    }
    if definition.codec is not None:
        recording = versions[REFERENCE]
        versions[RECONSTRUCTED] = _reconstruct(recording, rate, definition.codec)
    for cutoff in definition.anchors_hz:
        versions[anchor_name(cutoff)] = low_pass(versions[REFERENCE], cutoff, rate)
    if definition.method == "mushra":
        versions = _equally_long(versions, item, rate)
    return versions


def _load(path: Path, rate: int, channels: int) -> np.ndarray:
    try:
        return load_audio(path, rate, channels)
    except AudioError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _cut(samples: np.ndarray, max_duration_s: float, rate: int) -> np.ndarray:
    num_samples = round(max_duration_s * rate)
    if samples.shape[1] <= num_samples:
        return samples
    kept = samples[:, :num_samples].copy()
    num_faded = min(round(_FADE_S * rate), num_samples)
    kept[:, -num_faded:] *= np.linspace(1.0, 0.0, num_faded, dtype=np.float32)
    return kept


def _equally_long(versions: dict[str, np.ndarray], item: str, rate: int) -> dict[str, np.ndarray]:
    lengths = {system: samples.shape[1] for system, samples in versions.items()}
    shortest = min(lengths, key=lambda system: lengths[system])
    longest = max(lengths, key=lambda system: lengths[system])
    if lengths[shortest] < 0.9 * lengths[longest]:
        raise UserError(
            f"item '{item}' lasts {lengths[shortest] / rate:.2f} s in '{shortest}' and"
            f" {lengths[longest] / rate:.2f} s in '{longest}': MUSHRA compares versions of one length"
        )
    return {system: samples[:, : lengths[shortest]] for system, samples in versions.items()}


def _reconstruct(samples: np.ndarray, rate: int, codec_id: str) -> np.ndarray:
    """`samples` through a codec and back, [C, N] as before."""
    import torch  # which takes a second that a test without a codec need not wait

    codec = _codec(codec_id)
    audio = to_channels(resample(samples, rate, codec.sample_rate), codec.channels)
    with torch.inference_mode():
        decoded = codec.reconstruct(torch.from_numpy(np.ascontiguousarray(audio))[None])[0].cpu().numpy()
    whole = to_channels(resample(decoded, codec.sample_rate, rate), samples.shape[0])
    missing = max(0, samples.shape[1] - whole.shape[1])
    return np.pad(whole, ((0, 0), (0, missing)))[:, : samples.shape[1]]


@functools.cache
def _codec(codec_id: str) -> Codec:
    from ...core.progress import hide_library_bars
    from ...tokenize.codec import load_codec

    hide_library_bars()
    return load_codec(codec_id)


def low_pass(samples: np.ndarray, cutoff_hz: float, sample_rate: int) -> np.ndarray:
    """`samples` [C, N] without what lies above `cutoff_hz`, without delay in any frequency.

    Within the limits that ITU-R BS.1534-3 sets for the anchor of 3.5 kHz: ±0.1 dB up to the cut-off, at least
    25 dB less at 4 kHz and 50 dB at 4.5 kHz.
    """
    # Forwards and backwards, so that phases cancel and decibels double.
    filters = ellip(7, 0.04, 30.0, cutoff_hz, output="sos", fs=sample_rate)
    padding = min(round(0.05 * sample_rate), samples.shape[1] - 1)
    filtered: np.ndarray = sosfiltfilt(filters, samples, axis=1, padlen=padding)
    return filtered.astype(np.float32)


# -------------------------------------------------------------------------------------------- loudness


def _loudness(samples: np.ndarray, rate: int, source: str) -> float:
    if samples.shape[1] < BLOCK_S * rate:
        raise UserError(f"{source} is too short: clips of a listening test last {BLOCK_S} s or more")
    meter = LoudnessMeter(rate, samples.shape[0])
    meter.add(samples)
    loudness = meter.integrated_lufs()
    if not math.isfinite(loudness):
        raise UserError(f"{source} is too quiet to be brought to any loudness: take it away")
    return loudness


def _reachable_loudness(wanted_lufs: float, drafts: list[_Draft]) -> tuple[float, str | None]:
    """What all clips can have without clipping, and which one keeps it below `wanted_lufs`."""
    limits = {draft: draft.loudness_lufs + 20.0 * math.log10(_PEAK / draft.peak) for draft in drafts}
    worst = min(limits, key=lambda draft: limits[draft])
    if limits[worst] >= wanted_lufs:
        return wanted_lufs, None
    reachable = math.floor(limits[worst] * 10.0) / 10.0
    if reachable < _QUIETEST_LUFS:
        raise UserError(
            f"{worst.source} has such peaks that it can only be {reachable} LUFS loud without clipping:"
            " take it away"
        )
    return reachable, f"{worst.source} ({worst.system})"


def _write(folder: Path, name: str, draft: _Draft, loudness: float, definition: Definition) -> Stimulus:
    samples = np.load(draft.samples)
    gain_db = loudness - draft.loudness_lufs
    path = folder / f"{name}.wav"
    write_wav(path, samples * np.float32(10.0 ** (gain_db / 20.0)), definition.sample_rate_hz)
    return Stimulus(
        id=name,
        item=draft.item,
        system=draft.system,
        role=draft.role,
        duration_s=samples.shape[1] / definition.sample_rate_hz,
        gain_db=round(gain_db, 3),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
