"""EnCodec (arXiv:2210.13438) in its `transformers` port.

Shapes: B batch, C channels, N samples, K codebooks, T frames, D latent width.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from ...core.errors import UserError
from ..codec import Chunking, Codec, CodecInfo, library_versions, load_strictly
from ..receptive_field import conv_context
from ..segments import SegmentedCodec, Segments

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

    def _encode_latents(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model.encoder(audio)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.model.decoder(latents)
        return audio
