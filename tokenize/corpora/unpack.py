"""Unpack a downloaded archive: whole or not at all, and never outside of its folder."""

from __future__ import annotations

import bisect
import gzip
import io
import itertools
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ...core.errors import UserError
from ...core.files import PARTIAL_PREFIX

_PART = re.compile(r"\.\d{3}$")  # mp3.zip.001 and so on are one file, cut
_BLOCK = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

Advance = Callable[[int, int], None]
"""Is told how much of how much is done."""


def archive_name(name: str) -> str:
    """The name without the number of a part: `mp3.zip` for `mp3.zip.001`."""
    return _PART.sub("", name)


def is_packed(name: str) -> bool:
    """Whether a file of this name (or part of one) is an archive, rather than to be kept as it is."""
    return archive_name(name).lower().endswith((*_TARS, ".zip"))


def unpack(parts: Sequence[Path], folder: Path, advance: Advance) -> None:
    """Unpack an archive, in one file or several, into `folder`; what is there already is replaced.

    Raises `UserError` if the archive is damaged, has a member that would land outside of `folder`, or needs
    more room than there is; nothing of it is left in `folder` then.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("archives are only unpacked safely by Python 3.11.4 or later: update Python")
    name = archive_name(parts[0].name)
    aside = folder / f"{PARTIAL_PREFIX}{name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        with io.BufferedReader(JoinedFile(parts), _BLOCK) as file:
            if name.lower().endswith(".zip"):
                _unzip(file, aside, name, advance)
            else:
                _untar(file, aside, advance)
        _move(aside, folder)
    except tarfile.FilterError as error:
        raise UserError(
            f"{parts[0]} is refused: {error.tarinfo.name} would land outside of its folder"
        ) from error
    except _DAMAGE as error:
        what = str(error).partition(":\n")[0]
        raise UserError(
            f"{parts[0]} is damaged ({what}): delete it and run the same command again"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{parts[0]} cannot be unpacked to {folder}: {reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _untar(file: BinaryIO, folder: Path, advance: Advance) -> None:
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            tar.extract(member, folder, filter="data")
            tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
            advance(file.tell(), num_bytes)
        assert tar.fileobj is not None
        while tar.fileobj.read(_BLOCK):  # the checksum of gzip comes after the end of the tar file
            pass


def _unzip(file: BinaryIO, folder: Path, name: str, advance: Advance) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        num_bytes = sum(member.file_size for member in members)
        if num_bytes > (free := shutil.disk_usage(folder).free):
            raise UserError(
                f"{name} needs {num_bytes / 1e9:.1f} GB unpacked, but {folder.parent} has"
                f" {free / 1e9:.1f} GB free"
            )
        for member in members:
            # zipfile would quietly put it elsewhere.
            if member.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.filename):
                raise UserError(f"{name} is refused: {member.filename} would land outside of its folder")
        done = 0
        for member in members:
            archive.extract(member, folder)
            done += member.file_size
            advance(done, num_bytes)


def _move(source: Path, target: Path) -> None:
    """Move what is in the folder `source` into `target`, folder into folder."""
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            _move(entry, there)
        else:
            entry.replace(there)


class JoinedFile(io.RawIOBase):
    """The bytes of several files, one after the other, as one file to read."""

    def __init__(self, parts: Sequence[Path]):
        self._files = [part.open("rb") for part in parts]
        sizes = [part.stat().st_size for part in parts]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning of the first file."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte of the whole."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError("a position before the beginning of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the file that the position is in; 0 at the end."""
        if self._at >= self._starts[-1]:
            return 0
        number = bisect.bisect_right(self._starts, self._at) - 1
        file = self._files[number]
        file.seek(self._at - self._starts[number])
        count = file.readinto(memoryview(buffer)[: self._starts[number + 1] - self._at])
        self._at += count
        return count

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
        super().close()
