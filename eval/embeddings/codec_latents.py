"""Latents of a neural codec's encoder: EnCodec, DAC, the pocket codec, and any other that `load_codec` loads.

Shapes: B clips, C channels, N samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.errors import UserError
from ...tokenize.chunking import window_frames
from ...tokenize.codec import Codec, load_codec
from ...tokenize.fast_codec import fast
from ...tokenize.segments import SegmentedCodec
from ..embedding import Embedding, EmbeddingInfo, check_mono

WINDOW_S = 20.0
"""Longer clips go through the encoder in overlapping windows of this length, in bounded memory."""

# The bandwidth decides how many codebooks are used, which latents before quantisation do not depend on.
_CODECS: dict[str, tuple[str, float | None]] = {
    "pocket": ("pocket", None),
    "encodec": ("facebook/encodec_24khz", 6.0),
    "encodec-32khz": ("facebook/encodec_32khz", None),
    "encodec-48khz": ("facebook/encodec_48khz", 6.0),
    "dac": ("descript/dac_44khz", None),
    "dac-24khz": ("descript/dac_24khz", None),
    "dac-16khz": ("descript/dac_16khz", None),
}
_PAPERS = {"encodec": "arXiv:2210.13438", "dac": "arXiv:2306.06546"}


class CodecLatents(Embedding):
    """The output of a codec's encoder before quantisation, one frame a hop.

    Audio at the codec's rate, as loud as it is; given to both channels of a stereo codec; filled up with
    silence to a whole number of hops. A clip longer than 20 s goes through in windows that hold the context
    that a frame depends on: the frames are those of the whole clip for convolutional encoders (DAC, pocket),
    and nearly so for EnCodec, whose LSTM has 2 s to warm up. EnCodec's 48 kHz model encodes a second at a
    time, divided by its loudness, so it does not hear loudness.

    Sources: EnCodec, Défossez et al., arXiv:2210.13438, weights facebook/encodec_24khz (`encodec`),
    …_32khz and …_48khz; DAC, Kumar et al., arXiv:2306.06546, weights descript/dac_44khz (`dac`), …_24khz and
    …_16khz; `pocket` is part of Tokkata. All were trained to reconstruct sound, not to hear like people, and
    no claim is made that these distances follow listeners' judgement: those of `pocket` are ruled by loud
    clips, and faint noise hardly counts (docs/scores.md has figures). A model over a codec's tokens can
    produce nothing but what the codec's decoder can, which is why the scores have a row for real audio sent
    through the codec. `pocket` is there without a download.
    """

    def __init__(self, name: str, codec: Codec, paper: str) -> None:
        info = codec.info
        hop_s = 1.0 / info.frame_rate
        super().__init__(
            EmbeddingInfo(
                name=name,
                version=info.revision or "1",  # codecs of single samples have no weights
                sample_rate=info.sample_rate,
                width=info.latent_dim,
                frame_s=_frame_s(codec),
                hop_s=hop_s,
                preprocessing=f"{'given to both channels; ' if info.channels == 2 else ''}encoder's output"
                " before quantisation",
                source=f"{paper}{info.id}",
            )
        )
        self._codec = codec
        self._window_frames = window_frames(codec.chunking, info.frame_rate, WINDOW_S)

    def frames(self, num_samples: int) -> int:
        """One for each hop begun."""
        return self._codec.num_frames(num_samples)

    @torch.inference_mode(False)  # which threads of the fast encoders would not share
    @torch.no_grad()
    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[B, 1, N]` to `[B, T, D]`."""
        check_mono(audio)
        audio = audio.to(self._codec.device, torch.float32).expand(-1, self._codec.channels, -1)
        return in_windows(self._codec, self._codec.encode_latents, audio, self._window_frames).mT


def in_windows(codec: Codec, encode: Callable[[Tensor], Tensor], audio: Tensor, window_frames: int) -> Tensor:
    """What `encode`, of codes or latents, makes of audio `[B, C, N]`, window after window: `[B, …, T]`."""
    if isinstance(codec, SegmentedCodec):
        return encode(audio)  # a segment at a time by itself
    kept = []
    for window in codec.plan(audio.shape[-1], window_frames):
        samples = audio[..., window.start : window.start + window.num_samples]
        frames = encode(F.pad(samples, (0, window.pad_samples)))
        kept.append(frames[..., window.drop_frames : window.drop_frames + window.keep_frames])
    return torch.cat(kept, dim=-1)


def _frame_s(codec: Codec) -> float:
    """Seconds that a frame depends on: its context on both sides, or the segment it lies in."""
    if isinstance(codec, SegmentedCodec) and codec.segments.length:
        return codec.segments.length / codec.info.sample_rate
    return (2 * codec.chunking.encoder_context + 1) / codec.info.frame_rate


def load_codec_latents(name: str, weights: Path | None, device: torch.device) -> CodecLatents:
    """A codec by one of the names in `_CODECS`, or as `codec:ID` or `codec:ID@KBPS`.

    Raises `UserError` as `load_codec` does.
    """
    if name == "pocket" and weights is not None:
        raise UserError(f"embedding pocket has its weights in Tokkata: leave out {weights}")
    id, bandwidth = _CODECS.get(name) or _parse(name)
    codec = fast(load_codec(str(weights or id), bandwidth_kbps=bandwidth, device=device))
    paper = next((f"{paper}, " for family, paper in _PAPERS.items() if family in id), "")
    return CodecLatents(name, codec, paper)


def _parse(name: str) -> tuple[str, float | None]:
    id, at, kbps = name.partition(":")[2].rpartition("@")
    if not at:
        return kbps, None
    try:
        return id, float(kbps)
    except ValueError:
        raise UserError(
            f"embedding {name}: behind '@' stands a bandwidth in kbit/s such as 6.0, not '{kbps}'"
        ) from None
