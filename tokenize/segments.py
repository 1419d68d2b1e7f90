"""EnCodec's segments (arXiv:2210.13438, sec. 3.1): clips as overlapping stretches, each encoded by itself.

The 48 kHz model divides each segment of a second by its loudness, and joins what it decodes by fades over
the 10 ms that neighbours share. Its layers normalise over time, so a segment is as much context as there is.

Shapes: B batch, C channels, N samples, K codebooks, D latent width, T frames, S segments.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .chunking import Window
from .codec import Chunking, Codec, Encoded
from .streaming import Parts, regrouped


@dataclass(frozen=True)
class Segments:
    """Where the segments of a clip lie. There is one at each multiple of `stride` within the clip."""

    hop_length: int
    length: int | None
    """Samples of a segment; those at the clip's end are shorter. None: the clip is one segment."""
    stride: int | None
    """Samples from the start of one to the start of the next."""

    def spans(self, num_samples: int) -> list[tuple[int, int]]:
        """The start and the length in samples of each segment of a clip."""
        if self.length is None or self.stride is None:
            return [(0, num_samples)]
        return [
            (start, min(self.length, num_samples - start)) for start in range(0, num_samples, self.stride)
        ]

    def frames(self, num_samples: int) -> list[int]:
        """The number of frames of each segment of a clip."""
        return [math.ceil(length / self.hop_length) for _, length in self.spans(num_samples)]

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip, of all segments together."""
        return sum(self.frames(num_samples))

    def num_samples(self, num_frames: int) -> int:
        """Samples of the longest clip of up to `num_frames` frames."""
        # Segments overlap, so a clip has at least a frame for each hop.
        candidates = range(num_frames * self.hop_length + 1)
        return bisect.bisect_right(candidates, num_frames, key=self.num_frames) - 1

    def split(self, num_frames: int) -> list[int]:
        """The number of frames of each segment of a clip that has `num_frames` in all.

        It is the same for all such clips, because no segment of a longer clip is shorter. Raises `ValueError`
        if there are none: where the stride is a whole number of hops, two segments can grow at once.
        """
        frames = self.frames(self.num_samples(num_frames))
        if sum(frames) != num_frames:
            raise ValueError(f"no clip has {num_frames} frames: {sum(frames)} is the nearest number below")
        return frames


def overlap_add(pieces: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Join overlapping pieces `[..., n]`, one at each multiple of `stride`, by a weighted mean.

    A sample's weight falls from the middle of its piece to both ends in a straight line. Yields what no later
    piece can change, piece after piece.
    """
    total = weights = triangle = torch.empty(0)
    for number, piece in enumerate(pieces):
        length = piece.shape[-1]
        if number == 0:
            rising = torch.arange(1, length + 1, dtype=piece.dtype, device=piece.device)
            triangle = torch.minimum(rising, rising.flip(0))
            total, weights = piece.new_zeros(*piece.shape[:-1], 0), piece.new_zeros(0)
        longer = max(0, length - total.shape[-1])
        total, weights = F.pad(total, (0, longer)), F.pad(weights, (0, longer))
        total[..., :length] += triangle[:length] * piece
        weights[:length] += triangle[:length]
        yield total[..., :stride] / weights[:stride]
        total, weights = total[..., stride:], weights[stride:]
    yield total / weights


class SegmentedCodec(Codec):
    """A codec that encodes a clip segment by segment, each divided by its loudness if `normalize`."""

    def __init__(self, codec: Codec, segments: Segments, *, normalize: bool) -> None:
        super().__init__(codec.info)
        self.codec = codec
        self.segments = segments
        self.normalize = normalize

    @property
    def has_gains(self) -> bool:
        """Whether segments are divided by their loudness."""
        return self.normalize

    @property
    def chunking(self) -> Chunking:
        """Segments are independent of each other, so nothing is needed around them."""
        return Chunking(exact=True, encoder_context=0, decoder_context=0)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of `num_samples`, of all its segments together."""
        return self.segments.num_frames(num_samples)

    def num_samples(self, num_frames: int) -> int:
        """Samples of the longest clip that has `num_frames` frames; `ValueError` if no clip has."""
        self.segments.split(num_frames)
        return self.segments.num_samples(num_frames)

    def plan(self, num_samples: int, window_frames: int) -> list[Window]:
        """One window a segment, whatever `window_frames`."""
        return [
            Window(start, length, drop_frames=0, keep_frames=math.ceil(length / self.info.hop_length))
            for start, length in self.segments.spans(num_samples)
        ]

    def gains(self, audio: Tensor) -> Tensor | None:
        """The loudness of each segment of audio `[B, C, N]`, `[B, S]`: RMS of the mean of the channels."""
        if not self.normalize:
            return None
        return torch.cat([_loudness(piece) for piece in self._cut(audio)], dim=1)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to codes `[B, K, T]`, int64, of all segments one after another."""
        return torch.cat([self._encode(self._scaled(piece)) for piece in self._cut(audio)], dim=-1)

    def encode_beginning(self, audio: Tensor) -> Tensor:
        """As the base class, of the segments up to the first that is not whole."""
        count = 0
        for _, length in self.segments.spans(audio.shape[-1]):
            count += length // self.info.hop_length
            if length != self.segments.length:
                break
        return self.encode(audio)[..., : max(1, count)]

    @torch.no_grad()
    def encode_segments(self, audio: Tensor) -> Encoded:
        """As `encode`, with the gain of each segment."""
        return Encoded(self.encode(audio), self.gains(audio))

    @torch.no_grad()
    def encode_window(self, audio: Tensor) -> Encoded:
        """The codes and the gain of the samples `[B, C, N]` of one segment."""
        self._check_audio(audio)
        audio = audio.float()
        return Encoded(self._encode(self._scaled(audio)), _loudness(audio) if self.normalize else None)

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio `[B, C, N]` to the encoder's output `[B, D, T]`, of all segments one after another."""
        return torch.cat([self._encode_latents(self._scaled(piece)) for piece in self._cut(audio)], dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor, num_samples: int | None = None, gains: Tensor | None = None) -> Tensor:
        """Codes `[B, K, T]` to audio `[B, C, num_samples]`; see `Codec.decode`."""
        self._check_codes(codes)
        return self._join(self._decode, codes, num_samples, gains)

    @torch.no_grad()
    def decode_latents(
        self, latents: Tensor, num_samples: int | None = None, gains: Tensor | None = None
    ) -> Tensor:
        """Latents `[B, D, T]` to audio `[B, C, num_samples]`, without quantisation; gains as in `decode`."""
        return self._join(self._decode_latents, latents, num_samples, gains)

    @torch.no_grad()
    def decode_windows(
        self, codes: Tensor, num_samples: int, window_frames: int, gains: Tensor | None = None
    ) -> Iterator[np.ndarray]:
        """Codes `[K, T]` to audio `[C, n]`, segment after segment, whatever `window_frames`.

        Raises `ValueError` if a clip of `num_samples` has another number of frames.
        """
        if self.num_frames(num_samples) != codes.shape[-1]:
            raise ValueError(
                f"{num_samples} samples are {self.num_frames(num_samples)} frames, not {codes.shape[-1]}"
            )
        codes = codes[None].to(self.device)
        gains = None if gains is None else gains[None]
        for piece in self._pieces(self._decode, [codes], codes.shape[-1], gains):
            yield piece[0, :, :num_samples].cpu().numpy()
            num_samples = max(0, num_samples - piece.shape[-1])

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """Segment after segment: a clip without segments is decoded when all of it has come."""
        return self._pieces(self._decode, codes, num_frames, None)

    def _cut(self, audio: Tensor) -> Iterator[Tensor]:
        self._check_audio(audio)
        for start, length in self.segments.spans(audio.shape[-1]):
            yield audio[..., start : start + length].float()

    def _scaled(self, piece: Tensor) -> Tensor:
        return piece / _loudness(piece)[..., None] if self.normalize else piece

    def _join(
        self,
        decode: Callable[[Tensor], Tensor],
        frames: Tensor,
        num_samples: int | None,
        gains: Tensor | None,
    ) -> Tensor:
        audio = torch.cat(list(self._pieces(decode, [frames], frames.shape[-1], gains)), dim=-1)
        # What the last frame holds beyond the longest clip of so many frames is not audio of any clip.
        longest = self.num_samples(frames.shape[-1])
        return self._fit(audio[..., :longest], frames.shape[-1], num_samples)

    def _pieces(
        self, decode: Callable[[Tensor], Tensor], parts: Parts, num_frames: int, gains: Tensor | None
    ) -> Iterator[Tensor]:
        """Audio `[B, C, n]`, piece after piece, of `num_frames` frames in parts `[B, K or D, t]`."""
        split = self.segments.split(num_frames)

        def decoded() -> Iterator[Tensor]:
            for i, frames in enumerate(regrouped(parts, split)):
                factors = self._factors(gains, frames.shape[0], len(split)).to(frames.device)  # [B, S]
                yield decode(frames) * factors[:, i, None, None]

        return overlap_add(decoded(), self.segments.stride or self.segments.num_samples(num_frames))

    def _factors(self, gains: Tensor | None, batch_size: int, num_segments: int) -> Tensor:
        if not self.normalize:
            self._refuse_gains(gains)
            return torch.ones(batch_size, num_segments)
        if gains is None:
            if self.info.median_gain is None:
                raise ValueError(f"codec {self.info.id} needs the gains of its segments, or info.median_gain")
            return torch.full((batch_size, num_segments), self.info.median_gain)
        if gains.shape != (batch_size, num_segments):
            raise ValueError(f"gains [{batch_size}, {num_segments}] expected, not {list(gains.shape)}")
        return gains

    def _encode(self, audio: Tensor) -> Tensor:
        return self.codec._encode(audio)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.codec._decode(codes)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        return self.codec._encode_latents(audio)

    def _decode_latents(self, latents: Tensor) -> Tensor:
        return self.codec._decode_latents(latents)


def _loudness(piece: Tensor) -> Tensor:
    """`[B, C, n]` to `[B, 1]`: RMS of the mean of the channels, and a floor that keeps silence finite."""
    return piece.mean(dim=1).pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8
