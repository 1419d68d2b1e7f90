"""Whether a research dataset is whole: what its index names, what is there, and what can be opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ...core import schema_corpora as schema
from ...core.audio import AUDIO_SUFFIXES, AudioError, AudioSource, load_audio
from ...core.errors import UserError
from ...core.progress import track
from ...core.sections import Split
from ..corpus import Clip, Corpus
from .dataset_facts import DATASETS, DatasetFacts
from .dataset_index import MissingFile
from .gtzan import Gtzan
from .maestro import Maestro
from .magnatagatune import MagnaTagATune
from .musicnet import MusicNet
from .nsynth import NSynth

_SUFFIXES = (*AUDIO_SUFFIXES, ".au")
_COMPANIONS = ("midi", "notes")  # labels that are paths of files
_NUM_SHOWN = 10

_CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "nsynth": lambda root: NSynth(schema.NSynthCorpus(kind="nsynth", root=root)),
    "gtzan": lambda root: Gtzan(schema.GtzanCorpus(kind="gtzan", root=root)),
    # The official splits: nothing is taken from train.
    "musicnet": lambda root: MusicNet(schema.MusicNetCorpus(kind="musicnet", root=root, valid_fraction=0.0)),
    "maestro": lambda root: Maestro(schema.MaestroCorpus(kind="maestro", root=root)),
    "magnatagatune": lambda root: MagnaTagATune(schema.MagnaTagATuneCorpus(kind="magnatagatune", root=root)),
}


@dataclass(frozen=True)
class SplitCheck:
    """One official split: what the whole dataset has, and what was found."""

    expected_clips: int
    expected_hours: float
    num_clips: int
    """Files that are there and can be opened."""
    hours: float
    num_known_faults: int
    """Files that cannot be used because they were published so."""


@dataclass(frozen=True)
class CheckReport:
    """What was found of a dataset; paths are below its folder."""

    facts: DatasetFacts
    root: Path
    splits: dict[Split, SplitCheck]
    missing: list[str]
    """Files that the index names and that are not there."""
    corrupt: dict[str, str]
    """Files that cannot be used, each with the reason."""
    unlisted: list[str]
    """Audio files that the index does not name."""

    @property
    def exit_code(self) -> int:
        """0 if the dataset is complete, 1 if it is usable but incomplete, 2 if no clip can be used."""
        if not any(split.num_clips for split in self.splits.values()):
            return 2
        whole = all(
            split.num_clips + split.num_known_faults >= split.expected_clips for split in self.splits.values()
        )
        num_known = sum(split.num_known_faults for split in self.splits.values())
        return 0 if whole and not self.missing and len(self.corrupt) == num_known else 1

    def text(self) -> str:
        """The report for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        facts = self.facts
        yield f"{facts.name} in {self.root}"
        yield f"licence: {facts.licence} ({facts.licence_id})"
        yield f"address: {facts.homepage}"
        yield ""
        yield f"{'split':6} {'expected':>9} {'found':>9} {'hours':>8} {'found':>8}"
        for name, split in self.splits.items():
            yield (
                f"{name:6} {split.expected_clips:9d} {split.num_clips:9d}"
                f" {split.expected_hours:8.1f} {split.hours:8.1f}"
            )
        yield ""
        yield from _listed("missing files", self.missing)
        yield from _listed(
            "files that cannot be used", [f"{path}: {why}" for path, why in self.corrupt.items()]
        )
        yield from _listed("audio files that the index does not name", self.unlisted)
        if facts.note:
            yield f"known of the dataset: {facts.note}"
        yield ""
        yield facts.citation
        yield ""
        yield ("complete", "usable, but incomplete", "unusable: no clip can be read")[self.exit_code]


def _listed(title: str, entries: Sequence[str]) -> Iterator[str]:
    yield f"{title}: {len(entries) or 'none'}"
    yield from (f"  {entry}" for entry in entries[:_NUM_SHOWN])
    if len(entries) > _NUM_SHOWN:
        yield f"  … and {len(entries) - _NUM_SHOWN} more"


def check_corpus(kind: str, path: Path, deep: bool = False) -> CheckReport:
    """Open the header of each file that the index of the dataset in `path` names; `deep` decodes them whole.

    A header does not show every fault: that a file was cut short, is silent or holds NaN is only seen by
    decoding it. Raises `UserError` for an unknown `kind`, and where the index is missing or unreadable.
    """
    if kind not in _CORPORA:
        raise UserError(f"no dataset '{kind}': there are {', '.join(_CORPORA)}")
    facts = DATASETS[kind]
    corpus = _CORPORA[kind](path)
    clips = corpus.clips()
    missing: list[str] = []
    corrupt: dict[str, str] = {}
    found: dict[Split, list[float]] = {name: [] for name in facts.splits}
    known: Counter[Split] = Counter()
    for clip in track(clips, f"check {kind}"):
        missing += _missing_companions(path, clip)
        try:
            found[clip.split].append(_duration_s(corpus.audio(clip), deep))
        except MissingFile:
            missing.append(clip.source)
        except AudioError as error:
            corrupt[clip.source] = str(error)
            known[clip.split] += clip.id in facts.known_faults
    splits = {
        name: SplitCheck(split.num_clips, split.hours, len(found[name]), sum(found[name]) / 3600, known[name])
        for name, split in facts.splits.items()
    }
    unlisted = sorted(set(_audio_files(path)) - {clip.source for clip in clips})
    return CheckReport(facts, path, splits, missing, corrupt, unlisted)


def _missing_companions(root: Path, clip: Clip) -> list[str]:
    """The files of aligned notes that the labels of `clip` name and that are not there."""
    names = [str(clip.labels[name]) for name in _COMPANIONS if name in clip.labels]
    return [name for name in names if not (root / name).is_file()]


def _duration_s(path: AudioSource, deep: bool) -> float:
    """What the header says; raises `AudioError` if the file cannot be opened or (`deep`) cannot be used."""
    assert isinstance(path, Path)
    try:
        if not path.stat().st_size:
            raise AudioError("empty file (0 bytes)")
        with soundfile.SoundFile(path) as sound:
            num_samples, sample_rate, channels = sound.frames, sound.samplerate, sound.channels
    except soundfile.LibsndfileError as error:
        raise AudioError("not audio, or its header is damaged") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {(error.strerror or 'input/output error').lower()}") from error
    if not num_samples:
        raise AudioError("no samples")
    if deep:
        load_audio(path, sample_rate, channels)
    return float(num_samples / sample_rate)


def _audio_files(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()
