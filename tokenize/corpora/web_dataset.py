"""Tar files in WebDataset's form as a corpus: found once by their headers, then read at random."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.audio import AUDIO_SUFFIXES, AudioError
from ...core.errors import UserError
from ...core.schema_corpora import WebDatasetCorpus
from ...core.sections import Split
from ..corpus import Clip, LabelTypes
from .columns import Row, describe
from .split import SPLIT_NAMES, complete_splits
from .tar_index import Member, TarIndex, read_tar_index

_DESCRIPTIONS = ("json", "txt", "cls")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class _Sample:
    """The members of one tar file that share a key."""

    shard: str
    key: str
    members: Mapping[str, Member]  # by what follows the first dot, in lower case

    @property
    def id(self) -> str:
        """The shard's path below `root` without `.tar`, and the key."""
        return f"{self.shard.removesuffix('.tar')}/{self.key}"


class WebDataset:
    """Every sample of the shards; nothing of the audio is kept in memory."""

    def __init__(self, config: WebDatasetCorpus):
        """Read the headers of all shards, and the members that describe the audio.

        A damaged shard is used up to its damage, and the damage is told on standard error. Raises `UserError`
        if there is no shard, one is no tar file or compressed, or a description is not in its format.
        """
        self.config = config
        self._audio: dict[str, tuple[Path, Member] | None] = {}
        samples = [sample for shard in self._shards() for sample in self._samples(shard)]
        if not samples:
            raise UserError(f"data.root {config.root}: the shards hold no sample")
        for sample in samples:
            if sample.id in self._audio:
                raise UserError(f"data.root {config.root}: the members of {sample.id} are not neighbours")
            member = self._audio_member(sample)
            self._audio[sample.id] = None if member is None else (config.root / sample.shard, member)
        self._clips, self.label_types = self._describe(samples)

    def clips(self) -> Sequence[Clip]:
        """All clips, sorted by id, `<shard>/<key>`."""
        return self._clips

    def audio(self, clip: Clip) -> bytes:
        """The bytes of the audio file of `clip`; raises `AudioError` if they are not there."""
        found = self._audio[clip.id]
        if found is None:
            raise AudioError("the sample has no audio file")
        return _read(*found)

    # --- shards

    def _shards(self) -> list[str]:
        """The paths of the shards below `root`, sorted."""
        root = self.config.root
        if not root.is_dir():
            raise UserError(f"data.root {root} is no folder: give the one that holds the tar files")
        found: set[str] = set()
        for pattern in self.config.shards:
            for name in _expanded(pattern):
                if Path(name).is_absolute():
                    raise UserError(f"data.shards: {name} must be a path below data.root")
                matches = [path for path in root.glob(name) if path.is_file()]
                if not matches:
                    raise UserError(f"data.shards: {root} holds no {name}")
                found.update(path.relative_to(root).as_posix() for path in matches)
        return sorted(found)

    def _samples(self, shard: str) -> Iterator[_Sample]:
        index = read_tar_index(self.config.root / shard)
        named = [member for member in index.members if all(_key(member.name))]
        samples = [
            _Sample(shard, key, _by_suffix(list(members), shard))
            for key, members in itertools.groupby(named, lambda member: _key(member.name)[0])
        ]
        if index.damage is not None:
            samples = _whole(samples)
            self._tell(shard, index, len(samples))
        yield from samples

    def _tell(self, shard: str, index: TarIndex, num_samples: int) -> None:
        print(
            f"data: {self.config.root / shard} is damaged at byte {index.damage_at} ({index.damage}): the"
            f" {num_samples} samples before it are used",
            file=sys.stderr,
        )

    # --- samples

    def _audio_member(self, sample: _Sample) -> Member | None:
        if self.config.audio is not None:
            return sample.members.get(self.config.audio.lower().removeprefix("."))
        found = [suffix for suffix in sample.members if f".{suffix}".endswith(AUDIO_SUFFIXES)]
        if len(found) > 1:
            raise UserError(
                f"data.audio: sample {sample.id} has {' and '.join(sorted(found))}: say which one is wanted"
            )
        return sample.members[found[0]] if found else None

    def _describe(self, samples: Sequence[_Sample]) -> tuple[list[Clip], LabelTypes]:
        config = self.config
        found = describe([self._row(sample) for sample in samples], config)
        given = {
            sample.id: split or _split_of(sample.shard)
            for sample, split in zip(samples, found.splits, strict=True)
        }
        splits = complete_splits(
            given,
            {name: group or name for name, group in zip(given, found.groups, strict=True)},
            config.valid_fraction,
            config.test_fraction,
        )
        clips = [
            Clip(
                id=sample.id,
                split=splits[sample.id],
                source=f"{sample.shard} {sample.key}",
                labels=labels,
                caption=caption,
            )
            for sample, labels, caption in zip(samples, found.labels, found.captions, strict=True)
        ]
        return sorted(clips, key=lambda clip: clip.id), found.label_types

    def _row(self, sample: _Sample) -> Row:
        """What the members besides the audio say: the keys of `.json`, and `txt` and `cls`."""
        path = self.config.root / sample.shard
        values: dict[str, Any] = {}
        for suffix in _DESCRIPTIONS:
            if (member := sample.members.get(suffix)) is not None:
                values |= _described(path, member, suffix)
        return Row(f"{sample.shard} sample {sample.key}", values)


def _expanded(pattern: str) -> list[str]:
    """The names that braces stand for: `{000..127}`, and `{a,b}`."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, listed = match.groups()
    if first is None:
        parts = listed.split(",")
    else:
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        if not parts:
            raise UserError(f"data.shards: {match[0]} counts down")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for part in parts for name in _expanded(before + part + after)]


def _key(name: str) -> tuple[str, str]:
    """A member's key, which is its path up to the first dot of the file's name, and what follows the dot.

    Both are empty for a hidden file, such as macOS puts beside others.
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, suffix = file.partition(".")
    return (folder + slash + key, suffix.lower()) if key else ("", "")


def _by_suffix(members: Sequence[Member], shard: str) -> dict[str, Member]:
    found = {_key(member.name)[1]: member for member in members}
    if len(found) < len(members):
        raise UserError(f"data.root: {shard} holds {members[-1].name} twice")
    return found


def _whole(samples: list[_Sample]) -> list[_Sample]:
    """Without the last sample, if members that the first one has were lost with the damage."""
    if len(samples) > 1 and not samples[0].members.keys() <= samples[-1].members.keys():
        return samples[:-1]
    return samples


def _split_of(shard: str) -> Split | None:
    """What the name of a shard, or else the innermost folder that has such a name, says of its split."""
    for part in reversed(shard.removesuffix(".tar").split("/")):
        name = re.match(r"[a-z]+", part.lower())
        if name and name[0] in SPLIT_NAMES:
            return SPLIT_NAMES[name[0]]
    return None


def _read(path: Path, member: Member) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.num_bytes)
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise AudioError(f"{path.name} cannot be read: {reason}") from error
    if len(content) < member.num_bytes:
        raise AudioError(f"{path.name} has become shorter")
    return content


def _described(path: Path, member: Member, suffix: str) -> dict[str, Any]:
    """What a `.json`, `.txt` or `.cls` member says."""
    where = f"{path.name} member {member.name}"
    try:
        text = _read(path, member).decode("utf-8-sig").strip()
        value = json.loads(text) if suffix == "json" else text
    except AudioError as error:
        raise UserError(f"data.root: {error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{where}: not {'JSON' if suffix == 'json' else 'text'} in UTF-8") from error
    if suffix == "cls":
        return {"cls": int(text) if text.isdecimal() and text.isascii() else text}
    if suffix == "txt":
        return {"txt": text}
    if not isinstance(value, dict):
        raise UserError(f'{where}: an object such as {{"pitch": 60}} is expected')
    return value
