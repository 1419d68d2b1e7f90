"""Datasets from their official addresses: resumed where they broke off, checked, unpacked."""

from __future__ import annotations

import errno
import hashlib
import http
import http.client
import itertools
import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ...core.errors import UserError
from ...core.files import fsync, write_json
from .dataset_facts import Archive, DatasetFacts
from .unpack import archive_name, is_packed, unpack

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each further attempt, when nothing came in the one before."""

_TIMEOUT_S = 30.0
_BLOCK = 1 << 20
_DONE = "downloads.json"  # which archives have been unpacked
_GIVE_UP = {401: "refuses access", 403: "refuses access", 404: "has no such file", 410: "has it no longer"}
_TRY_AGAIN = (408, 416, 425, 429, 500, 502, 503, 504)


class _Broken(Exception):
    """The connection or the server failed in a way that may pass; the text says how."""


@dataclass(frozen=True)
class _Source:
    """Which version of a file the bytes in a `.part` file belong to."""

    url: str
    num_bytes: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What to send as If-Range; a weak ETag does not promise equal bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


# --- a dataset


def get_dataset(
    facts: DatasetFacts, folder: Path, *, keep_archives: bool = False, pauses_s: Sequence[float] = PAUSES_S
) -> None:
    """Download and unpack a dataset into `folder`; the same call again goes on where it ended.

    Raises `UserError` if it has no official address, the disk is too small, or a file cannot be had.
    """
    if not facts.archives:
        raise UserError(
            f"{facts.name} has no stable official address: get it as {facts.homepage} says, and unpack it to"
            f" {folder}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {(error.strerror or str(error)).lower()}") from error
    done = _read_done(folder)
    wanted = {name: parts for name, parts in _wholes(facts.archives).items() if name not in done}
    _check_space(wanted, folder)
    for name, parts in wanted.items():
        files = [download(part, folder, pauses_s=pauses_s) for part in parts]
        if is_packed(name):
            with _bar(f"unpack {name}") as (bar, task):
                unpack(files, folder, lambda at, total: bar.update(task, completed=at, total=total))
        done = [*done, name]
        write_json(folder / _DONE, done)
        if is_packed(name) and not keep_archives:
            for file in files:
                file.unlink()


def _wholes(archives: Sequence[Archive]) -> dict[str, list[Archive]]:
    """Archives by name, those that come in parts with all of them."""
    found = itertools.groupby(archives, key=lambda archive: archive_name(archive.name))
    return {name: list(parts) for name, parts in found}


def _read_done(folder: Path) -> list[str]:
    path = folder / _DONE
    done: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return done


def _check_space(wanted: dict[str, list[Archive]], folder: Path) -> None:
    """What is unpacked is at least as large as packed, and one archive lies beside what comes out of it."""
    sizes = {name: sum(part.num_bytes or 0 for part in parts) for name, parts in wanted.items()}
    packed = [size for name, size in sizes.items() if is_packed(name)]
    there = sum(
        path.stat().st_size
        for part in itertools.chain(*wanted.values())
        for path in (folder / part.name, _part_file(folder, part))
        if path.exists()
    )
    needed = sum(sizes.values()) + max(packed, default=0) - there
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but downloading and unpacking need at least"
            f" {needed / 1e9:.1f} GB: give a folder on a larger disk"
        )


# --- one file


def download(archive: Archive, folder: Path, *, pauses_s: Sequence[float] = PAUSES_S) -> Path:
    """The file of `archive` in `folder`, downloaded if it is not there; its size and checksum are right.

    While it is incomplete it is called `<name>.part`. Raises `UserError` if the server does not have it, does
    not answer after `pauses_s`, or has another file than the one that is published.
    """
    path, part = folder / archive.name, _part_file(folder, archive)
    if path.exists():
        if fault := _fault(path, archive):
            raise UserError(f"{path} {fault}: delete it, and run the same command again to download it")
        return path
    _fetch(archive, part, pauses_s)
    if fault := _fault(part, archive):
        part.unlink()
        _note_file(part).unlink(missing_ok=True)
        raise UserError(f"{archive.url} {fault}: what came was deleted, run the same command again")
    fsync(part)
    part.replace(path)
    _note_file(part).unlink(missing_ok=True)
    return path


def _fetch(archive: Archive, part: Path, pauses_s: Sequence[float]) -> None:
    """Transfer until all is there, or until nothing came in as many attempts as there are pauses, and one."""
    with _bar(archive.name) as (bar, task):
        vain = 0
        while True:
            before = _size(part)
            try:
                for at, total in _transfer(archive, part):
                    bar.update(task, completed=at, total=total)
                break
            except _Broken as fault:
                vain = 0 if _size(part) > before else vain + 1
                if vain > len(pauses_s):
                    raise UserError(
                        f"{archive.url} cannot be downloaded: {fault}; what is there is kept, and the same"
                        " command goes on with it"
                    ) from fault
                pause_s = pauses_s[max(vain - 1, 0)] if pauses_s else 0.0
                bar.console.print(f"{archive.name}: {fault}, trying again in {pause_s:g} s")
                time.sleep(pause_s)


def _part_file(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.name}.part"


def _note_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(archive: Archive, part: Path) -> Iterator[tuple[int, int | None]]:
    """Read the rest of a file into `part`, or all of it if it has changed; yields bytes done and in all.

    Raises `_Broken` if it did not come to its end.
    """
    source = _read_note(part, archive)
    start = _size(part) if source else 0
    if source and source.num_bytes == start:
        return
    response = _open(archive, part, source)
    with response:
        found, start = _found(response, archive, start, source)
        if archive.num_bytes is not None and found.num_bytes not in (None, archive.num_bytes):
            raise UserError(
                f"{archive.url} has {found.num_bytes} bytes, but {archive.num_bytes} are expected: what is at"
                " this address is not the published file"
            )
        yield from _receive(response, part, found, start)


def _open(archive: Archive, part: Path, source: _Source | None) -> http.client.HTTPResponse:
    headers = {"User-Agent": "tokkata", "Accept-Encoding": "identity"}
    start = _size(part) if source else 0
    if start and source and source.validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": source.validator}
    request = urllib.request.Request(archive.url, headers=headers)
    host = request.host
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is longer than the file
        if error.code in _TRY_AGAIN:
            raise _Broken(f"{host} answers with status {error.code}") from error
        said = _GIVE_UP.get(error.code, "does not give it")
        raise UserError(f"{archive.url}: {host} {said} (status {error.code})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror) and not start:
            raise UserError(f"{archive.url} cannot be reached: there is no network, or no {host}") from error
        raise _Broken(f"{host} cannot be reached ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"{host} cannot be reached ({error})") from error


def _found(
    response: http.client.HTTPResponse, archive: Archive, start: int, source: _Source | None
) -> tuple[_Source, int]:
    """Which version the server sends, and from which byte on."""
    length = response.headers.get("Content-Length")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and source is not None:
        sent = response.headers.get("Content-Range", "")
        if not sent.startswith(f"bytes {start}-"):
            raise _Broken("the server sends another part than was asked for")
        return source, start
    found = _Source(
        archive.url,
        int(length) if length and length.isdecimal() else None,
        response.headers.get("ETag"),
        response.headers.get("Last-Modified"),
    )
    return found, 0


def _receive(
    response: http.client.HTTPResponse, part: Path, source: _Source, start: int
) -> Iterator[tuple[int, int | None]]:
    try:
        with part.open("r+b" if start else "wb") as file:
            if not start:  # the note stands for the bytes that are there, so it comes after the file is empty
                write_json(_note_file(part), asdict(source))
            file.seek(start)
            at = start
            yield at, source.num_bytes
            while block := _read_block(response):
                file.write(block)
                at += len(block)
                yield at, source.num_bytes
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
        raise UserError(f"{part} cannot be written: {what}; the same command goes on once it can") from error
    if source.num_bytes is not None and at < source.num_bytes:
        raise _Broken(f"the connection broke off after {at} of {source.num_bytes} bytes")


def _read_block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke off ({error})") from error


def _read_note(part: Path, archive: Archive) -> _Source | None:
    """What the bytes in `part` are of; None if there are none that can be gone on with."""
    note = _note_file(part)
    if not part.exists() or not note.exists():
        return None
    source = _Source(**json.loads(note.read_text(encoding="utf-8")))
    return source if source.url == archive.url and source.validator else None


def _fault(path: Path, archive: Archive) -> str | None:
    """What differs from what is published: size or checksum; None if nothing does."""
    if archive.num_bytes is not None and path.stat().st_size != archive.num_bytes:
        return f"has {path.stat().st_size} bytes, but {archive.num_bytes} are expected"
    published = archive.sha256 or archive.md5
    if published is None:
        return None
    name = "sha256" if archive.sha256 else "md5"
    digest = hashlib.new(name, usedforsecurity=False)
    with _bar(f"check {archive.name}") as (bar, task), path.open("rb") as file:
        bar.update(task, total=path.stat().st_size)
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(task, advance=len(block))
    if digest.hexdigest() == published:
        return None
    return f"has the {name} {digest.hexdigest()}, but {published} is published"


@contextmanager
def _bar(description: str) -> Iterator[tuple[Progress, TaskID]]:
    """A bar in bytes on standard error, and its task."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
    ) as bar:
        yield bar, bar.add_task(description, total=None)
