"""A tiny pipeline of Stable Audio with random weights, made by `diffusers` and saved in the hub's layout."""

import json
import warnings

import torch
from diffusers import AutoencoderOobleck, StableAudioDiTModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

from tokkata.tests.made_networks import save_t5

TEXT_DIM, MAX_TOKENS, MAX_SECONDS = 16, 6, 512
SAMPLE_RATE, HOP = 800, 8

SCHEDULER = {
    "_class_name": "CosineDPMSolverMultistepScheduler",
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
}
"""As published; `diffusers` has that class only beside torchsde, so that it is written by hand."""

INDEX = {
    "_class_name": "StableAudioPipeline",
    "projection_model": ["stable_audio", "StableAudioProjectionModel"],
    "scheduler": ["diffusers", "CosineDPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "StableAudioDiTModel"],
    "vae": ["diffusers", "AutoencoderOobleck"],
}

SHAPES = {
    "two heads": {},
    "three heads, one for keys": {"num_attention_heads": 3, "num_key_value_attention_heads": 1},
    "five wide heads": {
        "num_attention_heads": 5,
        "num_key_value_attention_heads": 5,
        "attention_head_dim": 12,
        "num_layers": 1,
    },
    "projected text": {"cross_attention_input_dim": 20, "global_states_input_dim": 40},
    "other channels": {"in_channels": 9, "cross_attention_dim": 28, "time_proj_dim": 10},
}
"""Settings of `StableAudioDiTModel` that differ from the first."""


def shaken(model, seed=0):
    """Random weights everywhere, large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.ndim > 1 else 0.1))
    return model.eval()


def made_transformer(**shape):
    torch.manual_seed(0)
    shape = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "num_key_value_attention_heads": 2,
        "cross_attention_dim": 24,
        "cross_attention_input_dim": TEXT_DIM,
        "global_states_input_dim": 2 * TEXT_DIM,
        "time_proj_dim": 12,
    } | shape
    return shaken(StableAudioDiTModel(**shape))


def made_projection(dim=TEXT_DIM):
    torch.manual_seed(1)
    return shaken(StableAudioProjectionModel(TEXT_DIM, dim, 0, MAX_SECONDS), seed=1)


def made_vae(latent_dim=4):
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return AutoencoderOobleck(
            encoder_hidden_size=2 * latent_dim,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=latent_dim,
            audio_channels=2,
            sampling_rate=SAMPLE_RATE,
        ).eval()


def save_stable_audio_pipeline(folder, **shape):
    """The whole pipeline; returns its transformer and its projection."""
    transformer = made_transformer(**shape)
    projection = made_projection(transformer.config.cross_attention_input_dim)
    transformer.save_pretrained(folder / "transformer")
    projection.save_pretrained(folder / "projection_model")
    made_vae(transformer.config.out_channels).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    save_t5(folder / "text_encoder", dim=TEXT_DIM)
    (folder / "tokenizer").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "text_encoder" / file).rename(folder / "tokenizer" / file)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": MAX_TOKENS}))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return transformer, projection
