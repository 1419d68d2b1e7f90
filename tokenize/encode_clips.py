"""Clips through a codec, for the store: windows of equal length in batches, and back to rows in order.

Which windows share a batch depends on the clips and their order alone. So a shard has the same bytes whoever
makes it, and whenever.

Shapes: B windows in a batch, C channels, N samples of a window, W width of what is stored (K codebooks or D
latents), T frames, S gains, L length and E width of a feature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.audio import AudioError
from ..core.audio_stream import AudioFacts, open_audio
from ..core.errors import UserError
from ..core.schema import Audio
from .chunking import Window, cut
from .codec import Codec
from .corpus import Clip, Corpus
from .families.codec_oobleck import Posterior
from .features.feature import AudioEncoder, stored
from .segments import SegmentedCodec
from .store_writer import MAX_VALUES, Reject, TokenRow

Store = Literal["codes", "latents", "projected_latents"]


@runtime_checkable
class _Variational(Protocol):
    """A codec whose encoder gives a distribution."""

    def encode_posterior(self, audio: Tensor) -> Posterior: ...


@runtime_checkable
class _Projecting(Protocol):
    """A codec that projects its latents into its codebooks' space."""

    def encode_projected_latents(self, audio: Tensor) -> Tensor: ...


# A window waits for others of its length until this many batches' worth of windows have come after it.
_PATIENCE_BATCHES = 4


@dataclass(frozen=True)
class OpenedClip:
    """What is known of a clip before its samples come."""

    num_samples: int
    sha256: str
    facts: AudioFacts
    windows: Sequence[Window]


@dataclass(frozen=True)
class FeatureWindow:
    """A window of a clip as the encoder of one of its features takes it."""

    feature: int
    """Which of the features of audio it is for."""
    window: Window
    samples: np.ndarray  # [C, N]


Part = OpenedClip | np.ndarray | FeatureWindow


def read_windows(
    corpus: Corpus,
    clip: Clip,
    codec: Codec,
    window_frames: int,
    settings: Audio,
    features: Sequence[AudioEncoder] = (),
) -> Iterator[Part]:
    """The `OpenedClip`, the samples `[C, N]` of each of its windows, then those of each of `features`.

    All in constant memory; each feature decodes the clip once more. Raises `AudioError`, also in the middle,
    if the clip is unusable.
    """
    stream = open_audio(corpus.audio(clip), codec.sample_rate, codec.channels, settings)
    windows = codec.plan(stream.num_samples, window_frames)
    yield OpenedClip(stream.num_samples, stream.sha256, stream.facts, windows)
    yield from cut(stream.blocks(), windows)
    for feature, encoder in enumerate(features):
        heard = stream.at(encoder.sample_rate, encoder.channels)
        plan = encoder.plan(heard.num_samples)
        for window, samples in zip(plan, cut(heard.blocks(), plan), strict=True):
            yield FeatureWindow(feature, window, samples)


# --- what is stored


@dataclass(frozen=True)
class Encoded:
    """What is stored of a batch of windows."""

    values: np.ndarray  # [B, W, T], uint16 codes or float32 latents
    scale: np.ndarray | None = None  # [B, W, T] float32
    gains: np.ndarray | None = None  # [B, S] float32


class StoreEncoder:
    """A codec, and which of its outputs is stored."""

    def __init__(self, codec: Codec, store: Store) -> None:
        """Raises `UserError` if the codec has nothing of that kind."""
        self.codec = codec
        self.store = store
        self.has_scale = store == "latents" and isinstance(codec, _Variational)
        self.has_gains = store == "codes" and codec.has_gains
        name = codec.info.id
        if store == "codes" and not codec.num_codebooks:
            raise UserError(f"codec {name} has no codebooks, so no codes: set tokenize.store to 'latents'")
        if store == "codes" and codec.codebook_size > 1 << 16:
            raise UserError(f"codec {name} has codebooks of {codec.codebook_size}, the store takes 65536")
        if store == "projected_latents" and not isinstance(codec, _Projecting):
            raise UserError(
                f"codec {name} has no projected latents, only a DAC has: set tokenize.store to 'latents'"
            )
        if store == "latents" and isinstance(codec, SegmentedCodec):
            raise UserError(
                f"codec {name} encodes overlapping segments, whose latents make no sequence:"
                " set tokenize.store to 'codes'"
            )

    def __call__(self, audio: Tensor) -> Encoded:
        """Audio `[B, C, N]` to what is stored of it."""
        if self.store == "codes":
            encoded = self.codec.encode_window(audio)
            gains = None if encoded.gains is None else encoded.gains.float().cpu().numpy()
            return Encoded(encoded.codes.cpu().numpy().astype(np.uint16), gains=gains)
        if self.store == "latents" and isinstance(self.codec, _Variational):
            posterior = self.codec.encode_posterior(audio)
            return Encoded(_float32(posterior.mean), scale=_float32(posterior.scale))
        if self.store == "projected_latents" and isinstance(self.codec, _Projecting):
            return Encoded(_float32(self.codec.encode_projected_latents(audio)))
        return Encoded(_float32(self.codec.encode_latents(audio)))


def _float32(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array


# --- batches


@dataclass(frozen=True)
class _Piece:
    """A window that waits for its batch."""

    clip: _ClipUnderway
    index: int
    """Which of the clip's windows, or of the feature's, it is."""
    samples: np.ndarray  # [C, N]
    feature: int | None = None
    """Which of the features of audio it is for; None: the codec."""


class _Batches:
    """Collects windows of equal length."""

    def __init__(self, batch_size: Callable[[int], int]) -> None:
        """`batch_size` tells how many windows of N samples go together."""
        self._batch_size = batch_size
        self._waiting: dict[int, list[_Piece]] = {}
        self._last_call: dict[int, int] = {}  # number of the window with which each length goes at the latest
        self._count = 0

    def add(self, piece: _Piece) -> Iterator[list[_Piece]]:
        """Take one more window; gives the batches that are to go now."""
        length = piece.samples.shape[1]
        size = self._batch_size(length)
        self._count += 1
        self._last_call.setdefault(length, self._count + _PATIENCE_BATCHES * size)
        self._waiting.setdefault(length, []).append(piece)
        if len(self._waiting[length]) >= size:
            yield self._take(length)
        for late in [length for length, last in self._last_call.items() if last <= self._count]:
            yield self._take(late)

    def rest(self) -> Iterator[list[_Piece]]:
        """All that still waits."""
        for length in list(self._waiting):
            yield self._take(length)

    def _take(self, length: int) -> list[_Piece]:
        del self._last_call[length]
        return self._waiting.pop(length)


# --- clips


@dataclass
class _FeatureUnderway:
    """A feature of a clip between its first window and its last."""

    windows: list[Window] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    """What the encoder made of each window."""


@dataclass
class _ClipUnderway:
    """A clip between its opening and its row."""

    clip: Clip
    opened: OpenedClip | None = None
    offsets: list[int] = field(default_factory=list)
    """First frame of each window's share."""
    values: np.ndarray | None = None  # [T, W]
    scale: np.ndarray | None = None  # [T, W]
    gains: list[np.ndarray] = field(default_factory=list)
    features: dict[int, _FeatureUnderway] = field(default_factory=dict)
    num_missing: int = 0
    """Windows without a result, of the codec and of the features."""
    is_read: bool = False
    reason: str | None = None
    """Why it is rejected."""

    def open(self, opened: OpenedClip) -> None:
        self.opened = opened
        frames = [window.keep_frames for window in opened.windows]
        self.offsets = np.cumsum([0, *frames]).tolist()
        self.num_missing = len(frames)
        self.gains = [np.empty(0, np.float32)] * len(frames)

    def add(self, index: int, encoded: Encoded, row: int) -> None:
        """Take the result of window `index`, which is number `row` of its batch."""
        assert self.opened is not None
        window = self.opened.windows[index]
        kept = slice(window.drop_frames, window.drop_frames + window.keep_frames)
        place = slice(self.offsets[index], self.offsets[index + 1])
        if self.values is None:
            self.values = self._empty(encoded.values)
        self.values[place] = encoded.values[row, :, kept].T
        if encoded.scale is not None:
            if self.scale is None:
                self.scale = self._empty(encoded.scale)
            self.scale[place] = encoded.scale[row, :, kept].T
        if encoded.gains is not None:
            self.gains[index] = encoded.gains[row]
        self.num_missing -= 1

    def begin_feature_window(self, part: FeatureWindow) -> int:
        """Which of the feature's windows `part` is."""
        feature = self.features.setdefault(part.feature, _FeatureUnderway())
        feature.windows.append(part.window)
        feature.parts.append(torch.empty(0))
        self.num_missing += 1
        return len(feature.windows) - 1

    def add_to_feature(self, feature: int, index: int, made: Tensor) -> None:
        self.features[feature].parts[index] = made
        self.num_missing -= 1

    def _empty(self, like: np.ndarray) -> np.ndarray:
        return np.empty((self.offsets[-1], like.shape[1]), like.dtype)

    @property
    def is_done(self) -> bool:
        return self.reason is not None or (self.is_read and not self.num_missing)

    def row(self, encoder: StoreEncoder, features: Sequence[AudioEncoder]) -> TokenRow:
        assert self.opened is not None
        assert self.values is not None
        return TokenRow(
            id=self.clip.id,
            split=self.clip.split,
            codes=self.values.T if encoder.store == "codes" else None,
            latents=None if encoder.store == "codes" else self.values.T,
            latents_scale=None if self.scale is None else self.scale.T,
            gains=np.concatenate(self.gains) if encoder.has_gains else None,
            num_samples=self.opened.num_samples,
            source=self.clip.source,
            sha256=self.opened.sha256,
            labels=self.clip.labels,
            caption=self.clip.caption,
            facts=self.opened.facts,
            features={
                of.name: stored(of.info, of.rounded(of.join(found.parts, found.windows)))
                for of, found in ((features[number], found) for number, found in self.features.items())
            },
        )


Reading = tuple[Clip, Iterator[Part]]
"""A clip, and what `read_windows` gives of it."""


class ClipEncoder:
    """Turns clips into rows of the store."""

    def __init__(
        self,
        encoder: StoreEncoder,
        batch_size: Callable[[int], int],
        report: Callable[[float, float], None],
        features: Sequence[AudioEncoder] = (),
    ) -> None:
        """Args:
        batch_size: how many windows of N samples at the codec's rate are encoded at once.
        report: is told of progress, in clips and in seconds of audio.
        features: those that `read_windows` was given.
        """
        self._encoder = encoder
        self._batch_size = batch_size
        self._report = report
        self._features = features

    def rows(self, readings: Iterable[Reading], rejects: list[Reject]) -> Iterator[TokenRow]:
        """The rows of the usable clips, in order; the others are added to `rejects`, in order too."""
        underway: deque[_ClipUnderway] = deque()
        # Apart, so that the codes' batches are the same with features and without.
        batches: dict[int | None, _Batches] = {None: _Batches(self._batch_size)}
        batches |= {
            i: _Batches(partial(self._feature_batch_size, feature))
            for i, feature in enumerate(self._features)
        }
        for clip, parts in readings:
            job = _ClipUnderway(clip)
            underway.append(job)
            for piece in _pieces(job, parts):
                for batch in batches[piece.feature].add(piece):
                    self._encode(batch)
            yield from self._finished(underway, rejects)
        for waiting in batches.values():
            for batch in waiting.rest():
                self._encode(batch)
        yield from self._finished(underway, rejects)
        assert not underway

    def _feature_batch_size(self, feature: AudioEncoder, num_samples: int) -> int:
        """That of the codec, for as many seconds."""
        if not feature.in_batches:
            return 1
        return self._batch_size(round(num_samples * self._encoder.codec.sample_rate / feature.sample_rate))

    def _encode(self, batch: list[_Piece]) -> None:
        # The file of a waiting window may have turned out to be damaged.
        batch = [piece for piece in batch if piece.clip.reason is None]
        if not batch:
            return
        audio = torch.from_numpy(np.stack([piece.samples for piece in batch]))
        if batch[0].feature is not None:
            self._encode_feature(batch, batch[0].feature, audio)
            return
        codec = self._encoder.codec
        encoded = self._encoder(audio.to(codec.device))
        for row, piece in enumerate(batch):
            piece.clip.add(piece.index, encoded, row)
            opened = piece.clip.opened
            assert opened is not None
            share = opened.windows[piece.index].keep_frames / piece.clip.offsets[-1]
            self._report(share, share * opened.num_samples / codec.sample_rate)

    @torch.no_grad()
    def _encode_feature(self, batch: list[_Piece], number: int, audio: Tensor) -> None:
        windows = [piece.clip.features[number].windows[piece.index] for piece in batch]
        made = self._features[number].encode_windows(audio, windows)
        for piece, part in zip(batch, made, strict=True):
            piece.clip.add_to_feature(number, piece.index, part)

    def _finished(self, underway: deque[_ClipUnderway], rejects: list[Reject]) -> Iterator[TokenRow]:
        while underway and underway[0].is_done:
            job = underway.popleft()
            if job.values is not None and job.values.size > MAX_VALUES:
                job.reason = f"too long: a row of the store holds {MAX_VALUES} values, not {job.values.size}"
            if job.reason is None:
                yield job.row(self._encoder, self._features)
            else:
                rejects.append(Reject(job.clip.id, job.clip.source, job.reason))


def _pieces(job: _ClipUnderway, parts: Iterator[Part]) -> Iterator[_Piece]:
    """The windows of a clip as they come; an unusable clip is given its reason."""
    count = 0
    try:
        for part in parts:
            if isinstance(part, OpenedClip):
                job.open(part)
            elif isinstance(part, FeatureWindow):
                yield _Piece(job, job.begin_feature_window(part), part.samples, part.feature)
            else:
                yield _Piece(job, count, part)
                count += 1
    except AudioError as error:
        job.reason = str(error)
    job.is_read = True
