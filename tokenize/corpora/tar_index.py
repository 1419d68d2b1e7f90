"""Where the members of a tar file lie, from its headers alone."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Member:
    """A regular file in a tar file."""

    name: str
    offset: int
    """Of its first byte."""
    num_bytes: int


@dataclass
class TarIndex:
    """The members of a tar file, in their order, up to its end or to the first damage."""

    members: list[Member] = field(default_factory=list)
    damage: str | None = None
    """What is wrong, or None."""
    damage_at: int = 0
    """The byte from which on nothing is used."""


def read_tar_index(path: Path) -> TarIndex:
    """Read the headers of the tar file `path`; the data between them is skipped.

    Raises `UserError` if it cannot be read, is no tar file, or is compressed, which leaves no way to read at
    random.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            _refuse_compressed(file.read(8), path)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return _read(tar, num_bytes)
    except tarfile.ReadError as error:  # raised for the first header only
        raise UserError(f"{path} is no tar file ({error})") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {(error.strerror or 'input/output error').lower()}"
        ) from error


def _refuse_compressed(head: bytes, path: Path) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"{path} is compressed with {name}, and cannot be read at random: unpack it to a plain .tar"
            )


def _read(tar: tarfile.TarFile, num_bytes: int) -> TarIndex:
    index = TarIndex()
    at = 0
    while True:
        try:
            member = tar.next()
        except (tarfile.ReadError, ValueError) as error:
            index.damage, index.damage_at = str(error), at
            return index
        if member is None:
            _check_end(tar, at, index)
            return index
        tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
        # A negative size would lead back, and round for ever.
        if member.size < 0 or tar.offset <= at or member.offset_data + member.size > num_bytes:
            index.damage, index.damage_at = f"{member.name} is cut off", at
            return index
        if member.isreg() and member.sparse is None:
            index.members.append(Member(member.name, member.offset_data, member.size))
        at = tar.offset


def _check_end(tar: tarfile.TarFile, at: int, index: TarIndex) -> None:
    """Blocks of zeros end a tar file; anything else that stops the reader is damage."""
    assert tar.fileobj is not None
    tar.fileobj.seek(at)
    block = tar.fileobj.read(_BLOCK)
    if block != bytes(_BLOCK):
        index.damage = "its end is missing" if len(block) < _BLOCK else "a header is not valid"
        index.damage_at = at
