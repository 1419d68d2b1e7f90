"""Codecs on the same clips: distances, bitrates, use of codebooks, speed, and the Fréchet distance.

Every codec is measured at its own sample rate and channels: the original is brought to these. The Fréchet
distance is that of what it decodes to the clips as they are, so that what a low rate leaves out counts there.

Shapes: C channels, N samples, K codebooks, V codebook size, D latent width.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...core.audio import AudioError, AudioSource
from ...core.audio_stream import AS_IT_IS, AudioStream, open_audio
from ...core.errors import UserError
from ...core.progress import progress_bar
from ...core.schema import Audio
from ...tokenize.codec import Codec
from ...tokenize.fidelity import CodebookUse, codebook_use
from ...tokenize.latent_stats import LatentStats
from ..embedding import Embedding, embed_clips
from ..frechet import frechet_distance
from ..gaussian_stats import GaussianStats
from .clip_meter import PIECE_S, ClipMeter, ClipScores, in_pieces
from .coders import CodecCoder, Coder, coder_of, why_no_opus, with_opus

EXCERPT_S = 10
"""Of clips to listen to, so much is kept."""


@dataclass(frozen=True)
class Item:
    """A clip to measure on."""

    name: str
    source: Callable[[], AudioSource]
    """May raise `AudioError`."""
    settings: Audio = AS_IT_IS


@dataclass(frozen=True)
class LatentUse:
    """Statistics of latents over all frames, each dimension alone."""

    numbers_per_s: float
    mean: list[float]  # [D]
    std: list[float]  # [D]


@dataclass(frozen=True)
class CoderScores:
    """One way of coding; distances are means over clips."""

    name: str
    codec: str | None
    """What `load_codec` takes; None for Opus."""
    sample_rate: int
    channels: int
    bitrate_kbps: float | None
    """Of the codes; for Opus as measured, with its container; None for latents, which have none."""
    effective_kbps: float | None
    """What is left of it where entries are coded by how often they occur: entropy of all codebooks."""
    mel_distance: float
    stft_distance: float
    si_sdr_db: float
    """Median over clips."""
    fad: float | None
    """Fréchet distance of what was decoded to the originals; None where too few frames were embedded."""
    encode_speed: float
    """Seconds of audio encoded in a second."""
    decode_speed: float
    codebooks: CodebookUse | None
    unused: list[int] | None
    """Entries of each codebook that never occurred in these clips."""
    sounding_efficiency: float | None
    """The codebooks' efficiency over frames that are not silent: silence is always coded alike."""
    sounding_share: float | None
    """The share of such frames."""
    latents: LatentUse | None
    clips: dict[str, ClipScores]
    """By the name of the clip."""


@dataclass(frozen=True)
class Rejected:
    """A clip that could not be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Fidelity:
    """What `scores.json` holds."""

    data: str
    """What was coded, in words."""
    num_clips: int
    duration_s: float
    embedding: str
    """What the Fréchet distance compares."""
    floor: float | None
    """Fréchet distance of half of the originals to the other half; None where there are too few."""
    rows: list[CoderScores]
    rejected: list[Rejected]
    notes: list[str]
    """What to know of the scores."""
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a clip, as it is and coded."""

    clip: str
    original: np.ndarray  # [C, N], as the first codec takes it
    original_rate: int
    decoded: dict[str, np.ndarray]  # [C, N] by the name of the coder, at its rate


@dataclass(frozen=True)
class Measured:
    """The scores, and what the page lets people hear."""

    fidelity: Fidelity
    excerpts: list[Excerpt]


def measure(
    codecs: Mapping[str, Codec],
    items: Sequence[Item],
    embedding: Embedding,
    *,
    data: str,
    seed: int = 0,
    num_players: int = 0,
) -> Measured:
    """Code all `items` with all `codecs`, by the names that they are to have, and with Opus beside them.

    Clips of any length are coded in constant memory. A clip that cannot be used is left out, with its reason.

    Args:
        codecs: on the devices that they are to be measured on.
        embedding: for the Fréchet distance.
        data: what the clips are, in words.
        seed: of the halves of the floor, and of the clips to listen to.
        num_players: of so many clips, excerpts are kept.

    Raises `UserError` if no clip can be used, and where Opus' programs fail.
    """
    coders = [coder_of(name, codec) for name, codec in codecs.items()]
    missing = why_no_opus()
    ways = coders if missing else with_opus(coders)
    order = np.random.default_rng(seed).permutation(len(items))
    second_half = {items[index].name for index in order[::2]}
    heard = {items[index].name for index in order[:num_players]}
    totals = {way.name: _Total(way) for way in ways}
    real = [GaussianStats.from_embeddings(np.zeros((0, embedding.info.width))) for _ in range(2)]
    rejected: list[Rejected] = []
    excerpts: list[Excerpt] = []
    with progress_bar() as bar:
        task = bar.add_task("codec eval", total=len(items) * len(ways))
        for number, item in enumerate(items, start=1):
            try:
                whole = open_audio(item.source(), coders[0].sample_rate, coders[0].channels, item.settings)
                stats = _embed_stream(embedding, whole)
                found = {}
                for way in ways:
                    bar.update(task, description=f"{way.name}: {item.name}")
                    found[way.name] = _one(way, whole, embedding, item.name in heard)
                    bar.advance(task)
            except AudioError as error:
                rejected.append(Rejected(item.name, str(error)))
                bar.update(task, completed=number * len(ways))
                continue
            for name, one in found.items():
                totals[name].add(item.name, one)
            half = item.name in second_half
            real[half] = real[half].merge(stats)
            if item.name in heard:
                excerpts.append(_excerpt(item.name, whole, found))
    rows = [total.scores(real[0].merge(real[1])) for total in totals.values() if total.clips]
    if not rows:
        raise UserError(
            f"{data}: none of the {len(items)} clips can be used, the first ({rejected[0].name}) because:"
            f" {rejected[0].reason}"
        )
    fidelity = Fidelity(
        data=data,
        num_clips=len(rows[0].clips),
        duration_s=totals[rows[0].name].duration_s,
        embedding=embedding.info.name,
        floor=_distance(real[0], real[1]),
        rows=rows,
        rejected=rejected,
        notes=[*([missing] if missing else []), *_notes(coders, embedding)],
        seed=seed,
        versions={name: importlib.metadata.version(name) for name in ("torch", "descript-audio-codec")},
    )
    return Measured(fidelity, excerpts)


def _notes(coders: Sequence[CodecCoder], embedding: Embedding) -> Iterator[str]:
    if len({(coder.sample_rate, coder.channels) for coder in coders}) > 1:
        yield (
            "Each codec is measured at its own sample rate and channels: mel and STFT distances of different"
            " rates do not compare, and what a rate leaves out counts in the Fréchet distance alone."
        )
    for coder in coders:
        if embedding.info.name in (coder.codec.info.id, f"codec:{coder.codec.info.id}"):
            yield (
                f"The embedding {embedding.info.name} is {coder.name}'s own encoder, whose distances favour"
                " it: choose another embedding."
            )
        if not coder.codec.num_codebooks:
            yield f"{coder.name} has latents and no bitrate: there is no Opus to set beside it."


# --- one clip


@dataclass(frozen=True)
class _One:
    """A clip, coded in one way."""

    scores: ClipScores
    duration_s: float
    encode_s: float
    decode_s: float
    num_bits: float | None
    counts: torch.Tensor | None
    sounding: torch.Tensor | None
    latents: LatentStats | None
    stats: GaussianStats
    excerpt: np.ndarray | None  # [C, N]


def _one(way: Coder, whole: AudioStream, embedding: Embedding, keep: bool) -> _One:
    clip = whole.at(way.sample_rate, way.channels)
    rate = way.sample_rate
    meter = ClipMeter(rate)
    stats = GaussianStats.from_embeddings(np.zeros((0, embedding.info.width)))
    excerpt = None
    with tempfile.TemporaryDirectory() as scratch:
        coded = way.code(clip, Path(scratch))
        originals = in_pieces(clip.blocks(), PIECE_S * rate, clip.num_samples)
        for piece in in_pieces(coded.decoded, PIECE_S * rate, clip.num_samples):
            if not np.isfinite(piece).all():
                raise UserError(f"{way.name} decodes to NaN or infinite samples: train or download it again")
            meter.add(piece, next(originals))
            stats = stats.merge(_embed(embedding, piece, rate))
            if keep and excerpt is None:
                excerpt = piece[:, : EXCERPT_S * rate].copy()
    return _One(
        scores=meter.scores(),
        duration_s=clip.num_samples / rate,
        encode_s=coded.encoding.seconds,
        decode_s=coded.decoding.seconds,
        num_bits=coded.num_bits,
        counts=coded.counts,
        sounding=coded.sounding,
        latents=coded.latents,
        stats=stats,
        excerpt=excerpt,
    )


def _embed_stream(embedding: Embedding, whole: AudioStream) -> GaussianStats:
    """Of a clip as it is, at the embedding's rate."""
    rate = embedding.info.sample_rate
    clip = whole.at(rate, 1)
    stats = GaussianStats.from_embeddings(np.zeros((0, embedding.info.width)))
    for piece in in_pieces(clip.blocks(), PIECE_S * rate, clip.num_samples):
        stats = stats.merge(_embed(embedding, piece, rate))
    return stats


def _embed(embedding: Embedding, piece: np.ndarray, sample_rate: int) -> GaussianStats:
    return GaussianStats.from_embeddings(embed_clips(embedding, [piece], sample_rate)[0])


def _excerpt(name: str, whole: AudioStream, found: Mapping[str, _One]) -> Excerpt:
    pieces: Iterable[np.ndarray] = in_pieces(whole.blocks(), EXCERPT_S * whole.sample_rate, whole.num_samples)
    decoded = {way: one.excerpt for way, one in found.items() if one.excerpt is not None}
    return Excerpt(name, next(iter(pieces)), whole.sample_rate, decoded)


# --- all clips


@dataclass
class _Total:
    """All clips, coded in one way."""

    way: Coder
    clips: dict[str, ClipScores] = field(default_factory=dict)
    duration_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    num_bits: float | None = None
    counts: torch.Tensor | None = None
    sounding: torch.Tensor | None = None
    latents: LatentStats | None = None
    stats: GaussianStats | None = None

    def add(self, name: str, one: _One) -> None:
        """A clip."""
        self.clips[name] = one.scores
        self.duration_s += one.duration_s
        self.encode_s += one.encode_s
        self.decode_s += one.decode_s
        if one.num_bits is not None:
            self.num_bits = (self.num_bits or 0.0) + one.num_bits
        if one.counts is not None:
            self.counts = one.counts if self.counts is None else self.counts + one.counts
        if one.sounding is not None:
            self.sounding = one.sounding if self.sounding is None else self.sounding + one.sounding
        if one.latents is not None:
            self.latents = one.latents if self.latents is None else self.latents.merge(one.latents)
        self.stats = one.stats if self.stats is None else self.stats.merge(one.stats)

    def scores(self, real: GaussianStats) -> CoderScores:
        """Of all clips; `real` are the originals."""
        assert self.stats is not None
        way, codec = self.way, self.way.codec if isinstance(self.way, CodecCoder) else None
        use = None if self.counts is None else codebook_use(self.counts)
        efficiency = share = None
        if self.counts is not None and self.sounding is not None:
            share = float(self.sounding.sum() / self.counts.sum())
            efficiency = codebook_use(self.sounding).efficiency if share else None
        bitrate = self.num_bits / self.duration_s / 1000 if self.num_bits is not None else None
        effective = None
        if codec is not None and use is not None:
            bitrate = codec.info.bitrate_kbps
            effective = bitrate * use.efficiency
        of_all = list(self.clips.values())
        return CoderScores(
            name=way.name,
            codec=None if codec is None else codec.info.id,
            sample_rate=way.sample_rate,
            channels=way.channels,
            bitrate_kbps=bitrate,
            effective_kbps=effective,
            mel_distance=float(np.mean([one.mel_distance for one in of_all])),
            stft_distance=float(np.mean([one.stft_distance for one in of_all])),
            si_sdr_db=float(np.median([one.si_sdr_db for one in of_all])),
            fad=_distance(self.stats, real),
            encode_speed=self.duration_s / self.encode_s,
            decode_speed=self.duration_s / self.decode_s,
            codebooks=use,
            unused=None if use is None or codec is None else [codec.codebook_size - n for n in use.used],
            sounding_efficiency=efficiency,
            sounding_share=share,
            latents=None if self.latents is None or codec is None else _latent_use(codec, self.latents),
            clips=self.clips,
        )


def _latent_use(codec: Codec, stats: LatentStats) -> LatentUse:
    return LatentUse(codec.latent_dim * codec.frame_rate, stats.mean.tolist(), stats.std.tolist())


def _distance(a: GaussianStats, b: GaussianStats) -> float | None:
    return frechet_distance(a, b) if min(a.num, b.num) >= 2 else None
