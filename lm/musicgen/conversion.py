"""MusicGen (arXiv:2306.05284) in and out: from the weights of its `transformers` port, and back to them.

    lm = TransformerLM.from_musicgen("facebook/musicgen-small")
    to_musicgen(lm).save_pretrained("mine")

A MusicGen is a `TransformerLM` with layernorm, gelu, sinusoidal positions and delays. The text's states are
attended to; in melody models chroma and text stand before the first step, with their padding. Both ways are
renaming and stacking: no number changes.

Shapes: K codebooks, V codebook size, D model width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.conditions import Condition, Conditions
from ...core.errors import UserError
from ...tokenize.codec import CodecInfo, library_versions
from ...tokenize.features.feature import FeatureInfo
from ...tokenize.features.melody import NUM_CHROMA, Melody
from ..transformer import TransformerConfig, TransformerLM, sinusoids
from .source import MusicgenSource, musicgen_source

WINDOW_S = 30.0
"""Length of the clips that MusicGen was trained on (sec. 3.1), which it does not go beyond."""
FRAME_RATE_HZ = 50.0
"""Frame rate of its codec, EnCodec at 32 kHz (sec. 3.1): a bare decoder does not say."""
T5_MAX_TOKENS = 512
"""Longer texts are cut to this, which is what T5 was trained on; MusicGen itself names no limit."""

_POSITIONS = "model.decoder.embed_positions.weights"


def load_musicgen(
    source: str | Path | nn.Module,
    *,
    revision: str | None = None,
    codec: str | None = None,
    text_encoder: str | None = None,
) -> TransformerLM:
    """What `TransformerLM.from_musicgen` does, which see."""
    found = musicgen_source(source, revision)
    config = _config(found, codec, text_encoder)
    lm = TransformerLM(config)
    tensors = dict(found.tensors)
    _check_positions(found, tensors)
    expected = lm.state_dict()
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    reshaped: list[str] = []
    for name, parts in tensor_parts(config, found.is_melody, found.is_bare):
        pieces = {part: tensors.pop(part) for part in parts if part in tensors}
        shape = expected[name].shape[0] // len(parts), *expected[name].shape[1:]
        wrong = [part for part, piece in pieces.items() if piece.shape != shape]
        missing += [part for part in parts if part not in pieces]
        reshaped += wrong
        if len(pieces) == len(parts) and not wrong:
            state[name] = torch.cat(list(pieces.values()))
    faults = {"missing": missing, "unexpected": list(tensors), "of another shape": reshaped}
    told = [f"{kind}: {', '.join(sorted(names)[:5])}" for kind, names in faults.items() if names]
    if told:
        raise UserError(f"the weights of {found.name} do not fit its config.json; tensors {'; '.join(told)}")
    lm.load_state_dict(state, strict=True)
    return lm.eval()


def _check_positions(found: MusicgenSource, tensors: dict[str, Tensor]) -> None:
    """Take away the table of positions that older files hold, after a look whether it is the formula's."""
    table = tensors.pop(_POSITIONS if found.is_bare else f"decoder.{_POSITIONS}", None)
    if table is not None:
        made = sinusoids(torch.arange(table.shape[0]), table.shape[1])
        if made.shape != table.shape or not torch.allclose(made, table, atol=1e-2):  # may be stored in fp16
            raise UserError(f"{found.name}: its table of positions does not hold MusicGen's sinusoids")


# ------------------------------------------------------------------------------------------------- names


def tensor_parts(
    config: TransformerConfig, is_melody: bool, is_bare: bool
) -> Iterator[tuple[str, list[str]]]:
    """Each of our tensors, and those of a MusicGen that it consists of, one below another."""
    prefix = "" if is_bare else "decoder."
    decoder = f"{prefix}model.decoder"
    codebooks = range(config.num_codebooks)
    yield "token_embedding.weight", [f"{decoder}.embed_tokens.{k}.weight" for k in codebooks]
    yield "head.weight", [f"{prefix}lm_heads.{k}.weight" for k in codebooks]
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", [f"{decoder}.layer_norm.{kind}"]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"{decoder}.layers.{i}"
        norms = {"attention_norm": "self_attn_layer_norm", "feed_forward_norm": "final_layer_norm"}
        attention = f"{theirs}.self_attn"
        yield f"{ours}.attention.qkv.weight", [f"{attention}.{p}_proj.weight" for p in "qkv"]
        yield f"{ours}.attention.out.weight", [f"{attention}.out_proj.weight"]
        yield f"{ours}.feed_forward.up.weight", [f"{theirs}.fc1.weight"]
        yield f"{ours}.feed_forward.down.weight", [f"{theirs}.fc2.weight"]
        if not is_melody:
            norms["cross_norm"] = "encoder_attn_layer_norm"
            attention = f"{theirs}.encoder_attn"
            yield f"{ours}.cross_attention.query.weight", [f"{attention}.q_proj.weight"]
            yield f"{ours}.cross_attention.key_value.weight", [f"{attention}.{p}_proj.weight" for p in "kv"]
            yield f"{ours}.cross_attention.out.weight", [f"{attention}.out_proj.weight"]
        for mine, other in norms.items():
            for kind in ("weight", "bias"):
                yield f"{ours}.{mine}.{kind}", [f"{theirs}.{other}.{kind}"]
    for condition in config.conditions:
        if condition.project:
            name = "audio_enc_to_dec_proj" if condition.null == "first" else "enc_to_dec_proj"
            for kind in ("weight", "bias"):
                yield f"conditioner.projections.{condition.name}.{kind}", [f"{name}.{kind}"]


# ---------------------------------------------------------------------------------------------------- in


def _config(found: MusicgenSource, codec: str | None, text_encoder: str | None) -> TransformerConfig:
    """The same model as our configuration; raises `UserError` that names what has no equal."""
    decoder = found.decoder
    where = f"{found.name}: its decoder"
    if decoder.activation_function != "gelu":
        raise UserError(f"{where} has activation_function '{decoder.activation_function}', not 'gelu'")
    if decoder.pad_token_id != decoder.vocab_size:
        raise UserError(f"{where} has pad_token_id {decoder.pad_token_id}, not {decoder.vocab_size}")
    width = getattr(decoder, "cross_attention_hidden_size", None)
    if width not in (None, decoder.hidden_size):
        raise UserError(f"{where} has cross_attention_hidden_size {width}, not {decoder.hidden_size}")
    if decoder.audio_channels == 2 and decoder.num_codebooks % 2:
        raise UserError(f"{where} is stereo with an odd number of codebooks, {decoder.num_codebooks}")
    if found.is_bare:
        info, frame_rate = None, FRAME_RATE_HZ
        conditions = [_bare_condition(decoder.hidden_size, found.is_melody)]
    else:
        info = _codec_info(found, codec)
        frame_rate = info.frame_rate
        conditions = _conditions(found, text_encoder)
    return TransformerConfig(
        num_codebooks=decoder.num_codebooks,
        codebook_size=decoder.vocab_size,
        frame_rate=frame_rate,
        conditions=Conditions(tuple(conditions)),
        window_frames=round(WINDOW_S * frame_rate),
        codec={} if info is None or not info.id else dataclasses.asdict(info),
        pattern="delay",
        delays=musicgen_delays(decoder.num_codebooks, decoder.audio_channels),
        dim=decoder.hidden_size,
        num_layers=decoder.num_hidden_layers,
        num_heads=decoder.num_attention_heads,
        feed_forward_dim=decoder.ffn_dim,
        norm="layernorm",
        activation="gelu",
        positions="sinusoidal",
        qk_norm=False,
        dropout=float(decoder.dropout),
    )


# Delay pattern: arXiv:2306.05284, sec. 2.2; in stereo, left and right of a codebook share a step.
def musicgen_delays(num_codebooks: int, audio_channels: int) -> tuple[int, ...]:
    """[K] steps: 0, 1, 2, …, or 0, 0, 1, 1, … for codebooks of left and right in turn."""
    return tuple(k // audio_channels for k in range(num_codebooks))


def _bare_condition(dim: int, is_melody: bool) -> Condition:
    """States of the decoder's own width, as they come out of whatever stood before it."""
    if is_melody:
        return Condition("prefix", "sequence", "prepend", width=dim, project=False)
    return Condition("text", "sequence", "cross", width=dim, project=False)


def _conditions(found: MusicgenSource, text_encoder: str | None) -> list[Condition]:
    config, dim = found.config, found.decoder.hidden_size
    width = config.text_encoder.hidden_size
    encoder = text_encoder or config.text_encoder._name_or_path
    if "/" not in encoder and encoder.startswith("t5-"):
        encoder = f"google-t5/{encoder}"  # where the Hub has moved what published files call t5-base
    feature = None
    if encoder and config.text_encoder.model_type == "t5":
        feature = FeatureInfo(
            name="text",
            kind="text",
            dim=width,
            frame_rate=None,
            store="float32",
            versions=library_versions(),
            encoder=encoder,
            column="caption",
            max_tokens=T5_MAX_TOKENS,
        ).to_json()
    text = Condition("text", "sequence", "cross", width=width, project=width != dim, feature=feature)
    if not found.is_melody:
        return [text]
    num_chroma = config.num_chroma
    melody = Condition(
        "melody",
        "sequence",
        "prepend",
        width=num_chroma,
        length=config.chroma_length,
        attend_padding=True,
        repeat=True,
        null="first",
        project=num_chroma != dim,
        feature=Melody("melody").info.to_json() if num_chroma == NUM_CHROMA else None,
    )
    return [melody, dataclasses.replace(text, fuse="prepend", attend_padding=True)]


def _codec_info(found: MusicgenSource, name: str | None) -> CodecInfo:
    """What the configuration tells of the codec; its `id` is empty where it does not tell a name."""
    audio, decoder = found.config.audio_encoder, found.decoder
    where = f"{found.name}: its audio encoder"
    if audio.model_type != "encodec":
        raise UserError(f"{where} is of type '{audio.model_type}', not 'encodec'")
    hop_length = math.prod(audio.upsampling_ratios)
    frame_rate = audio.sampling_rate / hop_length
    if audio.codebook_size != decoder.vocab_size:
        raise UserError(
            f"{where} has codebooks of {audio.codebook_size}, its decoder of {decoder.vocab_size}: they do"
            " not belong together"
        )
    num_codebooks = decoder.num_codebooks // decoder.audio_channels
    bits_a_second = frame_rate * math.log2(audio.codebook_size)
    # As EncodecResidualVectorQuantizer.get_num_quantizers_for_bandwidth counts them.
    counts = {
        bandwidth: max(1, math.floor(bandwidth * 1000 / bits_a_second))
        for bandwidth in audio.target_bandwidths
    }
    bandwidths = [bandwidth for bandwidth, count in counts.items() if count == num_codebooks]
    if not bandwidths:
        known = " or ".join(str(count) for count in sorted(set(counts.values())))
        raise UserError(f"{where} has {known} codebooks, but its decoder wants {num_codebooks}")
    stereo = decoder.audio_channels == 2
    return CodecInfo(
        id=name or audio._name_or_path,
        revision=None,
        sample_rate=audio.sampling_rate,
        channels=2 if stereo else audio.audio_channels,
        hop_length=hop_length,
        frame_rate=frame_rate,
        num_codebooks=decoder.num_codebooks,
        codebook_size=decoder.vocab_size,
        latent_dim=audio.hidden_size * decoder.audio_channels,
        versions=library_versions(),
        bandwidth_kbps=bandwidths[0],
        stereo=stereo,
    )


# --------------------------------------------------------------------------------------------------- out


def to_musicgen(lm: TransformerLM, text_encoder: Any = None, audio_encoder: Any = None) -> Any:
    """The same model as one of `transformers`, in evaluation mode; `save_pretrained` writes the hub's layout.

    It is a `MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration` with the text
    encoder and the codec that `lm` names, or with those given (models of `transformers`); a bare
    `MusicgenForCausalLM` or `MusicgenMelodyForCausalLM` if it names none and has no projections.

    Raises `UserError` that names the option or condition which MusicGen does not have, and if an encoder is
    missing or does not fit.
    """
    from .export import export

    return export(lm, text_encoder, audio_encoder)
