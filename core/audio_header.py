"""What the headers of wav and mp3 files say about their length, where libsndfile does not tell."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

# A streaming writer does not know the length when it writes the header, and puts this there.
_UNKNOWN_SIZE = 0xFFFFFFFF

_ID3_HEADER_BYTES = 10
_XING_HAS_FRAMES = 1


@dataclass(frozen=True)
class WavSizes:
    """How much audio a wav file should hold, and how much follows its header."""

    promised_bytes: int
    present_bytes: int
    frame_bytes: int


def wav_sizes(file: BinaryIO, num_bytes: int) -> WavSizes | None:
    """What the header of a RIFF (or RF64) file promises; None if it is none, or does not say.

    libsndfile quietly shortens a truncated file to what is there, so the header has to be read here.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    frame_bytes = 0
    large_bytes = 0  # RF64 keeps sizes beyond 4 GiB in its chunk ds64
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        start = file.tell()
        if name == b"data":
            promised = large_bytes if size == _UNKNOWN_SIZE else size
            if not promised or not frame_bytes:
                return None
            return WavSizes(promised, num_bytes - start, frame_bytes)
        if name == b"fmt ":
            body = file.read(14)
            if len(body) < 14:
                return None
            frame_bytes = struct.unpack("<H", body[12:])[0]  # nBlockAlign
        elif name == b"ds64":
            body = file.read(16)
            if len(body) < 16:
                return None
            large_bytes = struct.unpack("<Q", body[8:])[0]
        file.seek(start + size + size % 2)  # chunks are padded to an even length
    return None


def mp3_has_length(file: BinaryIO) -> bool:
    """Whether the first frame of an mp3 file is a Xing or Info tag that gives the number of frames.

    Without one libsndfile takes the first frame's bit rate for all, and stops at the length that follows.
    """
    file.seek(0)
    head = file.read(_ID3_HEADER_BYTES)
    start = 0
    if head[:3] == b"ID3" and len(head) == _ID3_HEADER_BYTES:
        start = _ID3_HEADER_BYTES
        # The size of an ID3 tag is written in four times seven bits.
        start += sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    first = file.read(4096)
    for name in (b"Xing", b"Info"):
        tag = first.find(name)
        if tag >= 0 and len(first) >= tag + 8:
            return bool(first[tag + 7] & _XING_HAS_FRAMES)
    return False
