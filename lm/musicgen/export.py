"""A `TransformerLM` as one of `transformers`' MusicGens, where it can be said in their terms.

Shapes: K codebooks, V codebook size, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForCausalLM,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)
from transformers.models.musicgen_melody.configuration_musicgen_melody import MusicgenMelodyDecoderConfig

from ...core.conditions import Condition
from ...core.errors import UserError
from ...core.hub_model import find_hub_model, load_hub_model
from ...tokenize.codec import CodecInfo, load_codec_from_info
from ...tokenize.families.codec_encodec import HubEncodec
from ...tokenize.families.codec_stereo import Stereo
from ...tokenize.features.feature import FeatureInfo
from ..transformer import TransformerConfig, TransformerLM
from .conversion import musicgen_delays, tensor_parts

_GUIDANCE_SCALE = 3.0


def export(lm: TransformerLM, text_encoder: Any, audio_encoder: Any) -> Any:
    """What `to_musicgen` does, which see."""
    config = lm.config
    _check_options(config)
    audio_channels = _audio_channels(config)
    text, melody = _find_conditions(config)
    is_melody = text is None or text.fuse == "prepend"
    decoder_config = (MusicgenMelodyDecoderConfig if is_melody else MusicgenDecoderConfig)(
        vocab_size=config.codebook_size,
        pad_token_id=config.special,
        bos_token_id=config.special,
        num_codebooks=config.num_codebooks,
        audio_channels=audio_channels,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.hidden_dim,
        dropout=config.dropout,
    )
    has_encoder = text_encoder is not None or audio_encoder is not None
    is_prefix = text is not None and text.fuse == "prepend" and melody is None
    is_bare = (
        text is None
        or is_prefix
        or (not text.project and melody is None and text.feature is None and not has_encoder)
    )
    if is_bare:
        if has_encoder:
            raise UserError("this model becomes a bare decoder, which has no encoders: give none")
        network = (MusicgenMelodyForCausalLM if is_melody else MusicgenForCausalLM)(decoder_config)
    else:
        assert text is not None
        decoder_config.is_decoder = decoder_config.add_cross_attention = True
        text_encoder = text_encoder or _text_encoder(text)
        audio_encoder = audio_encoder or _audio_encoder(config)
        if text_encoder.config.hidden_size != text.width:
            raise UserError(
                f"text_encoder has width {text_encoder.config.hidden_size}, but condition {text.name!r} of"
                f" this model has {text.width}"
            )
        if audio_encoder.config.codebook_size != config.codebook_size:
            raise UserError(
                f"audio_encoder has codebooks of {audio_encoder.config.codebook_size}, this model of"
                f" {config.codebook_size}"
            )
        parts = {
            "text_encoder": text_encoder.config,
            "audio_encoder": audio_encoder.config,
            "decoder": decoder_config,
        }
        models = {"text_encoder": text_encoder, "audio_encoder": audio_encoder}
        if melody is None:
            network = MusicgenForConditionalGeneration(MusicgenConfig(**parts), **models)
        else:
            whole = MusicgenMelodyConfig(num_chroma=melody.width, chroma_length=melody.length, **parts)
            network = MusicgenMelodyForConditionalGeneration(whole, **models)
    _fill(network, lm, is_melody, is_bare)
    settings = network.generation_config
    settings.decoder_start_token_id = settings.pad_token_id = settings.bos_token_id = config.special
    settings.do_sample = True
    settings.guidance_scale = None if is_bare else _GUIDANCE_SCALE
    settings.max_length = config.window_frames
    return network.eval()


def _fill(network: Any, lm: TransformerLM, is_melody: bool, is_bare: bool) -> None:
    """Give `network` the weights of `lm`, cut into its tensors."""
    tensors = network.state_dict()
    ours = lm.state_dict()
    for name, parts in tensor_parts(lm.config, is_melody, is_bare):
        pieces = ours.pop(name).split([tensors[part].shape[0] for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            tensors[part] = piece.detach().cpu().float().clone()
    assert not ours, f"tensors without a place in MusicGen: {list(ours)}"
    with torch.no_grad():
        network.load_state_dict(tensors, strict=True)


def _check_options(config: TransformerConfig) -> None:
    """Raise `UserError` for the first option that MusicGen does not have."""
    wanted: dict[str, Any] = {
        "pattern": "delay",
        "norm": "layernorm",
        "activation": "gelu",
        "positions": "sinusoidal",
        "qk_norm": False,
        "kv_heads": config.num_heads,
    }
    for name, value in wanted.items():
        found = getattr(config, name)
        if found != value:
            shown = {"kv_heads": "num_kv_heads"}.get(name, name)
            raise UserError(f"MusicGen has no {shown} {found!r}, only {value!r}: this model cannot be one")


def _audio_channels(config: TransformerConfig) -> int:
    delays = tuple(range(config.num_codebooks)) if config.delays is None else config.delays
    for channels in (1, 2):
        if delays == musicgen_delays(config.num_codebooks, channels) and config.num_codebooks % channels == 0:
            return channels
    raise UserError(
        f"MusicGen has no delays {list(delays)}, only 0, 1, 2, … or 0, 0, 1, 1, …: this model cannot be one"
    )


def _find_conditions(config: TransformerConfig) -> tuple[Condition | None, Condition | None]:
    """The condition of text and that of melody; raises `UserError` for any that MusicGen does not have."""
    conditions = list(config.conditions)
    melodies = [condition for condition in conditions if condition.null == "first"]
    others = [condition for condition in conditions if condition.null != "first"]
    for condition in others:
        if condition.kind != "sequence" or condition.fuse == "sum":
            what = "sequence that is summed" if condition.kind == "sequence" else condition.kind
            raise UserError(f"MusicGen has no condition like {condition.name!r}, a {what}")
    if melodies:
        melody = melodies[0]
        fits = len(melodies) == len(others) == 1 and conditions[0] is melody and melody.repeat
        text = others[0] if others else None
        if not fits or text is None or text.fuse != "prepend" or not text.attend_padding or text.length:
            raise UserError(
                f"MusicGen has no conditions like {config.conditions.names}: a melody model has a repeated"
                " melody, then text of any length, both prepended with padding that is attended to"
            )
        _check_projection(melody, config.dim)
        _check_projection(text, config.dim)
        return text, melody
    if not others:
        return None, None
    text = others[0]
    if len(others) > 1 or text.repeat or text.length:
        raise UserError(
            f"MusicGen has no conditions like {config.conditions.names}: it has one text of any length"
        )
    if text.fuse == "prepend":
        if text.project or text.attend_padding:
            raise UserError(
                f"MusicGen has no condition like {text.name!r}, a sequence that is prepended without a melody"
            )
        return text, None
    if text.attend_padding:
        raise UserError(f"MusicGen has no condition like {text.name!r}, attended to with its padding")
    _check_projection(text, config.dim)
    return text, None


def _check_projection(condition: Condition, dim: int) -> None:
    if condition.project and condition.width == dim:
        raise UserError(
            f"MusicGen has no condition like {condition.name!r}: it projects no sequence that has the model's"
            f" width {dim} already"
        )


def _text_encoder(condition: Condition) -> Any:
    if condition.feature is None:
        raise UserError(f"this model does not say what encodes {condition.name!r}: give text_encoder")
    info = FeatureInfo.from_json(condition.feature, f"condition {condition.name!r}")
    assert info.encoder is not None
    # The hash of a folder's weights is no revision that could be asked for.
    revision = None if Path(info.encoder).exists() else info.revision
    found = find_hub_model("text encoder", info.encoder, info.encoder, None, (), revision)
    if found.config.get("model_type") != "t5":
        raise UserError(f"text encoder {info.encoder} is no T5, which MusicGen needs: give text_encoder")
    network = load_hub_model(
        "text encoder", info.encoder, T5EncoderModel, T5Config.from_dict(found.config), found
    )
    network.config._name_or_path = info.encoder
    return network


def _audio_encoder(config: TransformerConfig) -> EncodecModel:
    if not config.codec:
        raise UserError("this model does not say which codec its tokens are of: give audio_encoder")
    codec = load_codec_from_info(CodecInfo.from_json(config.codec, "the model's codec"))
    mono = codec.codec if isinstance(codec, Stereo) else codec
    if not isinstance(mono, HubEncodec):
        raise UserError(f"codec {codec.info.id} is no EnCodec of the Hub: give audio_encoder")
    mono.model.config._name_or_path = codec.info.id
    return mono.model
