"""Clips of any length through a codec in constant memory: windows with real context on both sides.

A frame of a convolutional codec depends on a bounded stretch of audio (`receptive_field.py`). A window that
holds this context gives the codes of the whole clip once the frames of the context are dropped. The clip's
real ends need none: there, a window pads as the whole clip does.

Shapes: C channels, N samples of a clip, n samples of a block or piece, K codebooks, D latent width, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core.audio import AudioError
from ..core.errors import UserError

if TYPE_CHECKING:
    from .codec import Chunking, Codec, Encoded


@dataclass(frozen=True)
class Window:
    """A stretch of a clip that goes through the codec at once, and what is kept of the result."""

    start: int
    """First sample."""
    num_samples: int
    """Length, with the zeros that fill the clip's last frame."""
    drop_frames: int
    """Frames at the beginning that other windows give, or that lack context."""
    keep_frames: int
    """Frames after those that this window gives; the rest lacks context."""
    pad_samples: int = 0
    """How many of the samples are such zeros, behind the end of the clip."""


def plan_windows(
    num_samples: int, hop_length: int, window_frames: int, context: int, warm_up: int = 0
) -> list[Window]:
    """Windows that together give each frame of a clip once, in order.

    A clip of up to `window_frames` frames is one window. A longer one is cut into windows that are all of
    `window_frames` frames, so that they make batches: the last is moved back to end with the clip, and drops
    what was given before. Each kept frame has `warm_up + context` frames of its window before it and
    `context` after it, or the clip's end.

    Raises `ValueError` if the window is not longer than the context on both sides, and for an empty clip.
    """
    if num_samples < 1:
        raise ValueError("a clip without samples has no windows")
    around = warm_up + 2 * context
    if window_frames <= around:
        raise ValueError(
            f"a window of {window_frames} frames is all context: {around + 1} frames is the least"
        )
    num_frames = math.ceil(num_samples / hop_length)
    if num_frames <= window_frames:
        return [_window(0, num_frames, 0, num_frames, num_samples, hop_length)]
    windows = []
    given = 0
    while given < num_frames:
        start = min(max(0, given - context - warm_up), num_frames - window_frames)
        end = start + window_frames
        keep_end = end if end == num_frames else end - context
        windows.append(_window(start, end, given - start, keep_end - given, num_samples, hop_length))
        given = keep_end
    return windows


def _window(start: int, end: int, drop: int, keep: int, num_samples: int, hop_length: int) -> Window:
    """A window from frame `start` up to frame `end`."""
    return Window(
        start=start * hop_length,
        num_samples=(end - start) * hop_length,
        drop_frames=drop,
        keep_frames=keep,
        pad_samples=max(0, end * hop_length - num_samples),
    )


def window_frames(chunking: Chunking, frame_rate: float, window_s: float) -> int:
    """`window_s` in frames.

    Raises `UserError` if the codec's context would be more than half of such a window: it would be mostly
    computed to be thrown away.
    """
    frames = round(window_s * frame_rate)
    around = chunking.warm_up + 2 * max(chunking.encoder_context, chunking.decoder_context)
    least = max(1, 2 * around)
    if frames < least:
        # Rounded up, so that the number in the message is one that works.
        least_s = math.ceil(100 * least / frame_rate) / 100
        raise UserError(
            f"window_s: {window_s:g} s is too short for a codec that needs"
            f" {around / frame_rate:.2g} s around each frame: {least_s:g} s is the least"
        )
    return frames


def cut(blocks: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """The samples `[C, window.num_samples]` of each window, from a clip that comes in blocks `[C, n]`.

    Blocks may have any sizes. What is held at a time is one window, its overlap with the next, and one block.
    Windows come in order of their starts and leave nothing out between them.

    Raises `AudioError` if the clip is longer or shorter than the windows say.
    """
    promised = windows[-1].start + windows[-1].num_samples - windows[-1].pad_samples
    source = _Source(blocks)
    tail: np.ndarray | None = None  # the end of the last window that the next one begins with
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        samples = source.fill(tail, window.num_samples, window.num_samples - window.pad_samples)
        if samples is None:
            raise AudioError(f"truncated: {promised} samples announced, {source.taken} are there")
        if following is not None:
            tail = samples[:, following.start - window.start :].copy()
        yield samples
        del samples  # the next window is built while this one is nobody's any more
    if source.has_more():
        raise AudioError(f"longer than the {promised} samples announced")


class _Source:
    """Blocks of samples, taken in other portions than they come in."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.blocks = iter(blocks)
        self.block = np.empty((1, 0), np.float32)  # what is left of the last one
        self.taken = 0
        """Samples handed on so far."""

    def has_more(self) -> bool:
        while not self.block.shape[1]:
            block = next(self.blocks, None)
            if block is None:
                return False
            self.block = block
        return True

    def fill(self, tail: np.ndarray | None, size: int, end: int) -> np.ndarray | None:
        """`tail`, then new samples up to `end`, then zeros up to `size`; None if the blocks run out."""
        samples: np.ndarray | None = None
        filled = 0
        if tail is not None:
            samples, filled = _zeros(tail, size), tail.shape[1]
            samples[:, :filled] = tail
        while filled < end:
            if not self.has_more():
                return None
            if samples is None:
                samples = _zeros(self.block, size)
            count = min(end - filled, self.block.shape[1])
            samples[:, filled : filled + count] = self.block[:, :count]
            self.block = self.block[:, count:]
            filled += count
            self.taken += count
        return samples


def _zeros(like: np.ndarray, size: int) -> np.ndarray:
    return np.zeros((like.shape[0], size), np.float32)


def encode_long(codec: Codec, blocks: Iterable[np.ndarray], num_samples: int, window_frames: int) -> Encoded:
    """Codes `[K, T]` and, where the codec has them, gains `[S]` of a clip that comes in blocks `[C, n]`.

    Both are on the CPU, without a batch dimension. Where `codec.chunking.exact`, they are those of the whole
    clip. Memory is that of one window and of the codes. Raises `AudioError` if the clip is longer or shorter
    than `num_samples`.
    """
    from .codec import Encoded

    codes, gains = [], []
    windows = codec.plan(num_samples, window_frames)
    for window, samples in zip(windows, cut(blocks, windows), strict=True):
        encoded = codec.encode_window(_batch_of_one(samples, codec))
        codes.append(_kept(encoded.codes, window))
        if encoded.gains is not None:
            gains.append(encoded.gains[0].cpu())
    return Encoded(torch.cat(codes, dim=1), torch.cat(gains) if gains else None)


def encode_latents_long(
    codec: Codec, blocks: Iterable[np.ndarray], num_samples: int, window_frames: int
) -> Tensor:
    """Latents `[D, T]` (float32, CPU) of a clip; otherwise as `encode_long`."""
    windows = codec.plan(num_samples, window_frames)
    latents = [
        _kept(codec.encode_latents(_batch_of_one(samples, codec)), window)
        for window, samples in zip(windows, cut(blocks, windows), strict=True)
    ]
    return torch.cat(latents, dim=1)


def _batch_of_one(samples: np.ndarray, codec: Codec) -> Tensor:
    return torch.from_numpy(samples)[None].to(codec.device)


def _kept(frames: Tensor, window: Window) -> Tensor:
    """What a window gives of its frames `[1, K or D, T]`."""
    return frames[0, :, window.drop_frames : window.drop_frames + window.keep_frames].cpu()


def decode_long(
    codec: Codec, codes: Tensor, num_samples: int, window_frames: int, gains: Tensor | None = None
) -> Iterator[np.ndarray]:
    """Audio `[C, n]` of codes `[K, T]`, piece after piece, `num_samples` in all.

    Where `codec.chunking.exact`, the pieces together are the decoded whole, to the rounding of float32.

    Args:
        gains: `[S]`, one a segment, for codecs that scale their segments; see `Codec.decode`.
    """
    yield from codec.decode_windows(codes, num_samples, window_frames, gains)


def decode_latents_long(
    codec: Codec, latents: Tensor, num_samples: int, window_frames: int
) -> Iterator[np.ndarray]:
    """Audio `[C, n]` of latents `[D, T]`; otherwise as `decode_long`.

    Raises `ValueError` for latents of more than one of the segments that EnCodec 48 kHz encodes.
    """
    yield from decode_pieces(codec, codec.decode_latents, latents, num_samples, window_frames)


def decode_pieces(
    codec: Codec,
    decode: Callable[[Tensor], Tensor],
    frames: Tensor,
    num_samples: int,
    window_frames: int,
) -> Iterator[np.ndarray]:
    """Audio `[C, n]` of `frames` `[K or D, T]`, which `decode` takes as a batch of one.

    The pieces are `num_samples` long together; raises `ValueError` if these do not end in the last frame.
    """
    if math.ceil(num_samples / codec.hop_length) != frames.shape[1]:
        raise ValueError(f"{num_samples} samples are not {frames.shape[1]} frames of {codec.hop_length}")
    return decode_growing(
        codec, decode, lambda start, stop: frames[:, start:stop], num_samples, window_frames
    )


def decode_growing(
    codec: Codec,
    decode: Callable[[Tensor], Tensor],
    read: Callable[[int, int], Tensor],
    num_samples: int,
    window_frames: int,
) -> Iterator[np.ndarray]:
    """As `decode_pieces`, of frames that need not be there yet.

    `read(start, stop)` gives the frames `[K or D, stop - start]` from `start` on. It is called once a window;
    neither number is ever lower than before.
    """
    hop_length, chunking = codec.hop_length, codec.chunking
    for window in plan_windows(
        num_samples, hop_length, window_frames, chunking.decoder_context, chunking.warm_up
    ):
        start = window.start // hop_length
        taken = read(start, start + window.num_samples // hop_length)
        samples = decode(taken[None].to(codec.device))[0]
        # Where a decoder comes out short, `decode` fills the window's end: context, or the clip's real end.
        begin = window.drop_frames * hop_length
        end = min(begin + window.keep_frames * hop_length, window.num_samples - window.pad_samples)
        yield samples[:, begin:end].cpu().numpy()
