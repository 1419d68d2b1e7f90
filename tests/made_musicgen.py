"""Tiny MusicGens of `transformers` with random weights that are large enough for every part to matter."""

from types import SimpleNamespace

import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)
from transformers.models.musicgen_melody.configuration_musicgen_melody import MusicgenMelodyDecoderConfig

V = 64
CHROMA_LENGTH = 20
TEXT_VOCAB = 50

KINDS = {
    "mono": {},
    "mono, text of the model's width": {"text_dim": 32},
    "mono, one head": {"num_heads": 1, "num_codebooks": 3},
    "stereo": {"audio_channels": 2, "num_codebooks": 8},
    "melody": {"melody": True},
    "melody, text of the model's width": {"melody": True, "text_dim": 32, "num_heads": 2},
    "melody, stereo": {"melody": True, "audio_channels": 2, "num_codebooks": 6},
}


def encodec_config(num_codebooks=4):
    """An EnCodec at 32 kHz and 50 frames/s with codebooks of 64, so 300 bit/s each and a little to spare."""
    return EncodecConfig(
        sampling_rate=32000,
        target_bandwidths=[0.3 * num_codebooks + 0.01],
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=4,
        hidden_size=8,
        codebook_dim=8,
        codebook_size=V,
        num_lstm_layers=1,
    )


def save_encodec(folder, num_codebooks=4):
    """The same with random weights, in the hub's layout."""
    torch.manual_seed(0)
    model = EncodecModel(encodec_config(num_codebooks))
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):  # zeros at first, so that all codes would be equal
            buffer.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def made_musicgen(
    *,
    text_dim=24,
    num_heads=4,
    num_codebooks=4,
    audio_channels=1,
    melody=False,
    dim=32,
    text_config=None,
    names=("", ""),
    seed=0,
):
    """A whole model in evaluation mode; `names` are those of its text encoder and its codec."""
    torch.manual_seed(seed)
    text = text_config or T5Config(
        vocab_size=TEXT_VOCAB, d_model=text_dim, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    audio = encodec_config(num_codebooks // audio_channels)
    decoder = (MusicgenMelodyDecoderConfig if melody else MusicgenDecoderConfig)(
        vocab_size=V,
        pad_token_id=V,
        bos_token_id=V,
        num_hidden_layers=2,
        ffn_dim=48,
        num_attention_heads=num_heads,
        hidden_size=dim,
        num_codebooks=num_codebooks,
        audio_channels=audio_channels,
    )
    parts = {"text_encoder": text, "audio_encoder": audio, "decoder": decoder}
    if melody:
        model = MusicgenMelodyForConditionalGeneration(
            MusicgenMelodyConfig(chroma_length=CHROMA_LENGTH, **parts)
        )
    else:
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    model.config.text_encoder._name_or_path, model.config.audio_encoder._name_or_path = names
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("audio_encoder."):
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))
    settings = model.generation_config
    settings.decoder_start_token_id = settings.pad_token_id = settings.bos_token_id = V
    return model.eval()


def greedy_codes(model, num_frames, guidance_scale, **inputs):
    """The codes [B, K, T] that `model.generate` takes as the likeliest, before it decodes them to audio."""
    decoder = model.config.decoder
    delay = decoder.num_codebooks // decoder.audio_channels
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **_: SimpleNamespace(audio_values=codes)
    try:
        found = model.generate(
            **inputs, do_sample=False, guidance_scale=guidance_scale, max_length=num_frames + delay
        )
    finally:
        model.audio_encoder.decode = decode
    if decoder.audio_channels == 1:
        return found[0]
    left, right = found[0].chunk(2)  # decoded one after the other, and joined along the first dimension left
    return torch.stack([left, right], dim=2).flatten(1, 2)
