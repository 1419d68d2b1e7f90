"""EnCodec (arXiv:2210.13438) in its `transformers` port.

Shapes: B batch, C channels, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from ...core.errors import UserError
from ...core.saved_model import CONFIG_NAME, read_config
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..fast_codec import FastNetwork
from ..receptive_field import Reach, conv_context, conv_reach
from ..segments import SegmentedCodec, Segments
from ..streaming import Parts, in_windows, through_lstm

LSTM_WARM_UP_S = 2.0
"""Audio before a window's first kept frame from which the LSTM's state is made anew.

`tests/benchmarks/lstm_warm_up.py` shows how many codes differ from the whole clip's in the second after it:
with random weights none, already after 0.25 s; where the LSTM remembers for up to half a second 0.5% (11.3%
without a warm-up), for up to a second 3.6%. The same is granted on the other side, where nothing needs it, so
that a context is one number.
"""


def choose_bandwidth(id: str, known: list[float], wanted: float | None) -> float:
    """`wanted`, or the only one there is; raises `UserError` for one that the model was not trained with."""
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted is None or wanted not in known:
        raise UserError(f"codec {id}: bandwidth_kbps must be one of {known}, not {wanted}")
    return wanted


@dataclass(frozen=True)
class DecoderParts:
    """An EnCodec decoder, cut at its LSTM, which runs at the rate of the frames."""

    before: nn.Module
    reach_before: Reach
    lstm: nn.LSTM
    behind: nn.Module
    reach_behind: Reach
    hop_length: int
    mirrors: bool
    """Whether convolutions pad by reflection, as the published models do."""

    @classmethod
    def of(
        cls, before: nn.Module, lstm: nn.LSTM, behind: nn.Module, hop_length: int, pad_mode: str
    ) -> DecoderParts:
        """Of the layers before and behind the LSTM, measured."""
        return cls(
            before,
            conv_reach(before, 1),
            lstm,
            behind,
            conv_reach(behind, hop_length),
            hop_length,
            mirrors=pad_mode == "reflect",
        )

    def stream(self, latents: Parts, num_frames: int) -> Iterator[Tensor]:
        """Latents in parts `[B, D, t]` to audio in parts: the LSTM goes on from where it was."""
        states = in_windows(latents, self.before, 1, self.reach_before, num_frames, mirrors=self.mirrors)
        return in_windows(
            through_lstm(states, self.lstm),
            self.behind,
            self.hop_length,
            self.reach_behind,
            num_frames,
            mirrors=self.mirrors,
        )


def known_bandwidths(folder: Path) -> list[float]:
    """The bitrates in kbit/s that the codec in `folder` can be loaded at; empty if it has but one.

    Raises `UserError` if the folder has no readable `config.json`.
    """
    return list(read_config(folder / CONFIG_NAME).get("target_bandwidths") or [])


class HubEncodec(Codec):
    """`transformers.EncodecModel` behind the codec interface, one whole clip at a time."""

    def __init__(self, info: CodecInfo, model: EncodecModel, bandwidth_kbps: float) -> None:
        super().__init__(info)
        self.model = model
        self.bandwidth_kbps = bandwidth_kbps

    @classmethod
    def load(cls, id: str, source: str, revision: str | None, bandwidth_kbps: float | None) -> Codec:
        """Load from a folder; a model that encodes in segments comes as a `SegmentedCodec`."""
        model = load_strictly(EncodecModel, id, source, revision)
        config = model.config
        if config.chunk_length_s is not None and config.overlap is None:
            raise UserError(f"codec {id}: config.json has chunk_length_s, but not the overlap of the chunks")
        bandwidth_kbps = choose_bandwidth(id, list(config.target_bandwidths), bandwidth_kbps)
        hop_length = math.prod(config.upsampling_ratios)
        frame_rate = config.sampling_rate / hop_length
        info = CodecInfo(
            id=id,
            revision=revision,
            sample_rate=config.sampling_rate,
            channels=config.audio_channels,
            hop_length=hop_length,
            frame_rate=frame_rate,
            num_codebooks=model.quantizer.get_num_quantizers_for_bandwidth(bandwidth_kbps),
            codebook_size=config.codebook_size,
            latent_dim=config.hidden_size,
            versions=library_versions(),
            bandwidth_kbps=bandwidth_kbps,
        )
        codec = cls(info, model, bandwidth_kbps)
        if not config.normalize and config.chunk_length_s is None:
            return codec
        segments = Segments(hop_length, config.chunk_length, config.chunk_stride)
        return SegmentedCodec(codec, segments, normalize=config.normalize)

    @functools.cached_property
    def chunking(self) -> Chunking:
        """What the convolutions see, and `LSTM_WARM_UP_S` for the LSTM, whose state has no bound."""
        hop_length = self.info.hop_length
        return Chunking(
            exact=False,
            encoder_context=conv_context(self.model.encoder, hop_length, without=(EncodecLSTM,)),
            decoder_context=conv_context(self.model.decoder, hop_length, without=(EncodecLSTM,)),
            warm_up=math.ceil(LSTM_WARM_UP_S * self.info.frame_rate),
        )

    def _encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self.model.quantizer.encode(self.model.encoder(audio), self.bandwidth_kbps)
        return codes.transpose(0, 1)  # [K, B, T] → [B, K, T]

    def _decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(self.model.quantizer.decode(codes.transpose(0, 1)))
        return audio

    def _decode_stream(self, codes: Parts, num_frames: int) -> Iterator[Tensor]:
        """Exact, unlike `decode_windows`: the LSTM keeps its state."""
        latents = (self.model.quantizer.decode(part.transpose(0, 1)) for part in codes)
        return self._decoder_parts.stream(latents, num_frames)

    @functools.cached_property
    def _decoder_parts(self) -> DecoderParts:
        decoder = self.model.decoder
        plain: Any = decoder.plain if isinstance(decoder, FastNetwork) else decoder
        layers = list(plain.layers)
        (at,) = (i for i, layer in enumerate(layers) if isinstance(layer, EncodecLSTM))
        before, behind = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :])
        parts = DecoderParts.of(
            before, layers[at].lstm, behind, self.info.hop_length, self.model.config.pad_mode
        )
        if not isinstance(decoder, FastNetwork):
            return parts
        fast_before, fast_behind = decoder.around_lstm(before, behind)
        return dataclasses.replace(parts, before=fast_before, behind=fast_behind)

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio
