"""Where samples come from: files, their bytes, or arrays, read in blocks and checked against their headers.

Shapes: C channels, N samples. A frame is one sample of each channel. Audio is float32 `[C, N]`.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from .audio_header import mp3_has_length, wav_sizes

BLOCK_FRAMES = 1 << 16
"""Frames that are held at once; only the last block of a file is shorter."""

_OPEN_FAULTS = {3: "malformed header", 4: "unsupported encoding"}  # libsndfile's SF_ERR_…
_UNKNOWN_FRAMES = 1 << 62  # libsndfile gives SF_COUNT_MAX for a flac file that does not say its length

_MP3_FRAME = 1152
_ID3V1_BYTES = 128


class AudioError(Exception):
    """A file or clip that cannot be used; the text is the reason, short and without the file's name."""


class _DecodeError(AudioError):
    """The decoder gave up."""


@dataclass(frozen=True)
class Samples:
    """Audio that is in memory already."""

    samples: np.ndarray  # [C, N] float32
    sample_rate: int
    sha256: str | None = None
    """Of the file that they were decoded from; None where there never was one."""


AudioSource = Path | bytes | Samples
"""A file, the bytes of a file, or samples."""

_Opened = io.BufferedReader | io.BytesIO


class AudioReader(Protocol):
    """An opened source. No file stays open between two calls of `read`."""

    sample_rate: int
    channels: int
    sha256: str
    """Of the file's bytes, or of the samples where there never was a file."""

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The frames from `start` to `stop`, by default to the end, in blocks float32 `[C, n]`.

        Each has `BLOCK_FRAMES` frames, but for the last. The same call gives the same samples again. Raises
        `AudioError` if they cannot be had, or if the end comes before `stop` or before the header says.
        """
        ...


def open_source(source: AudioSource) -> AudioReader:
    """A reader of `source`; raises `AudioError` if it is empty, unreadable, no audio, or truncated."""
    return _SamplesReader(source) if isinstance(source, Samples) else _FileReader(source)


class _SamplesReader:
    def __init__(self, source: Samples):
        self._samples = source.samples
        self.sample_rate, self.channels = source.sample_rate, source.samples.shape[0]
        self.sha256 = source.sha256 or hashlib.sha256(np.ascontiguousarray(source.samples).data).hexdigest()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        stop = self._samples.shape[1] if stop is None else stop
        for first in range(start, stop, BLOCK_FRAMES):
            yield self._samples[:, first : min(first + BLOCK_FRAMES, stop)]


class _FileReader:
    def __init__(self, source: Path | bytes):
        self._source = source
        with _disk_faults("opened"):
            if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
                raise AudioError("not a regular file")
            file = self._open()
        with file, _disk_faults("read"):
            self._stamp = _stamp(file)
            if not self._stamp.num_bytes:
                raise AudioError("empty file (0 bytes)")
            wav = wav_sizes(file, self._stamp.num_bytes)
            has_length = mp3_has_length(file)
            file.seek(0)
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if wav is not None and wav.present_bytes < wav.promised_bytes:
            raise _truncated(wav.promised_bytes // wav.frame_bytes, wav.present_bytes // wav.frame_bytes)
        self._is_endless = False
        with self._sound() as (sound, _):
            self.sample_rate, self.channels = int(sound.samplerate), int(sound.channels)
            is_mp3, has_frames = sound.format == "MP3", sound.frames < _UNKNOWN_FRAMES
            # What cuts an mp3 often leaves the length in its tag as it was, so that a short one is no fault.
            self._promised = int(sound.frames) if has_frames and not is_mp3 else None
            # libsndfile's seeking in ogg is inexact; an mp3 frame needs those before it to be decoded.
            self._seeks = has_frames and sound.subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))
            self._is_endless = is_mp3 and not has_length

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        position = start
        with self._sound() as (sound, file):
            self._skip(sound, file, start)
            for block in self._blocks(sound, file, None if stop is None else stop - start):
                position += len(block)
                yield np.ascontiguousarray(block.T)  # means over whole rows are far faster
        if stop is None and self._promised is not None and position < self._promised:
            raise _truncated(self._promised, position)
        if stop is not None and position < stop:
            raise AudioError("changed while it was read")

    def _skip(self, sound: Any, file: _Bytes, num_frames: int) -> None:
        """Go from the first frame to the one after `num_frames`."""
        if not self._seeks:
            for _ in self._blocks(sound, file, num_frames):
                pass
        elif num_frames:
            try:
                sound.seek(num_frames)
            except soundfile.LibsndfileError as error:
                file.raise_fault()
                raise _DecodeError("damaged: cannot be decoded to its end") from error

    def _blocks(self, sound: Any, file: _Bytes, num_frames: int | None) -> Iterator[np.ndarray]:
        """The next `num_frames` frames, or all that follow, in blocks [n, C]."""
        position = 0
        while num_frames is None or position < num_frames:
            wanted = BLOCK_FRAMES if num_frames is None else min(BLOCK_FRAMES, num_frames - position)
            block = self._block(sound, file, wanted)
            if not len(block):
                return
            position += len(block)
            yield block

    def _block(self, sound: Any, file: _Bytes, num_frames: int) -> np.ndarray:
        if not self._is_endless:
            return _decode(sound, file, num_frames)
        # A frame that is cut in two by the end makes the whole call fail, so calls are as short as a frame.
        parts, missing = [np.empty((0, self.channels), np.float32)], num_frames
        while missing:
            try:
                part = _decode(sound, file, min(_MP3_FRAME, missing))
            except _DecodeError:
                if not file.is_at_end:
                    raise
                break
            if not len(part):
                break
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)

    def _open(self) -> _Opened:
        return self._source.open("rb") if isinstance(self._source, Path) else io.BytesIO(self._source)

    @contextmanager
    def _sound(self) -> Iterator[tuple[Any, _Bytes]]:
        """libsndfile at the beginning of the file, and what it reads from."""
        with _disk_faults("opened"):
            file = self._open()
        with file:
            if _stamp(file) != self._stamp:
                raise AudioError("changed while it was read")
            readable = _Bytes(file, self._stamp.num_bytes, self._is_endless)
            try:
                sound = _Sequential(readable)
            except soundfile.LibsndfileError as error:
                readable.raise_fault()
                # libsndfile's own words mislead: for a text file it says that the file does not exist.
                reason = _OPEN_FAULTS.get(error.code, "no wav, flac, ogg or mp3 inside")
                raise AudioError(f"not audio: {reason}") from error
            with sound:
                yield sound, readable


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read from front to back.

    After each block soundfile seeks to where it stands already, and in an mp3 that changes what follows.
    """

    def seekable(self) -> bool:
        """No, whatever libsndfile says; `seek` works all the same."""
        return False


class _Bytes(io.RawIOBase):
    """A file as libsndfile reads it: a disk fault is kept instead of lost between Python and C.

    An endless one claims to be much longer than it is, and gives nothing where it really ends. libsndfile
    then reads an mp3 without a length to its last frame, where it would stop at an estimate. Its last bytes
    are found at the false end too, because mpg123 looks there for an ID3 tag.
    """

    _FACTOR = 64  # beyond the ratio of any two bit rates

    def __init__(self, file: _Opened, num_bytes: int, is_endless: bool):
        super().__init__()
        self._file, self._num_bytes = file, num_bytes
        self._gap = num_bytes * (self._FACTOR - 1) if is_endless else 0
        self._position = 0
        self._fault: OSError | None = None
        self.is_at_end = False

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` bytes from the beginning, from here, or from the claimed end."""
        self._position = offset + (0, self._position, self._num_bytes + self._gap)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there are bytes; a fault counts as the end here, see `raise_fault`."""
        in_tail = self._position >= self._num_bytes + self._gap - _ID3V1_BYTES
        position = self._position - (self._gap if in_tail else 0)
        num_read = 0
        if 0 <= position < self._num_bytes:
            try:
                self._file.seek(position)
                num_read = self._file.readinto(buffer)
            except OSError as error:
                self._fault = error
        self._position += num_read
        self.is_at_end = num_read < len(buffer)
        return num_read

    def raise_fault(self) -> None:
        """Raise `AudioError` if the disk failed since the file was opened."""
        if self._fault is not None:
            raise AudioError(f"cannot be read: {_told(self._fault)}") from self._fault


def _decode(sound: Any, file: _Bytes, num_frames: int) -> np.ndarray:
    """At most `num_frames` frames [n, C]; none at the end."""
    # libsndfile's way from 16 bits to the same floats takes four times as long.
    as_integers = sound.subtype == "PCM_16"
    try:
        block: np.ndarray = sound.read(
            num_frames, dtype="int16" if as_integers else "float32", always_2d=True
        )
    except soundfile.LibsndfileError as error:
        file.raise_fault()
        raise _DecodeError("damaged: cannot be decoded to its end") from error
    file.raise_fault()
    return block * np.float32(1.0 / 32768.0) if as_integers else block


@dataclass(frozen=True)
class _Stamp:
    """What changes when somebody writes to a file."""

    num_bytes: int
    changed_ns: int


def _stamp(file: _Opened) -> _Stamp:
    if isinstance(file, io.BytesIO):
        return _Stamp(len(file.getbuffer()), 0)
    status = os.fstat(file.fileno())
    return _Stamp(status.st_size, status.st_mtime_ns)


def _told(error: OSError) -> str:
    return (error.strerror or "input/output error").lower()


@contextmanager
def _disk_faults(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except OSError as error:
        raise AudioError(f"cannot be {what}: {_told(error)}") from error


def _truncated(promised: int, present: int) -> AudioError:
    return AudioError(f"truncated: header says {promised} frames, {present} are there")
