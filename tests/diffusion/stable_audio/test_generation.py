"""A whole pipeline in the hub's layout generates what `diffusers.StableAudioPipeline` does.

Shapes: B batch, C channels, D latent width, T frames, N samples.
"""

import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderOobleck, EDMDPMSolverMultistepScheduler, StableAudioPipeline
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from tokkata.core.errors import UserError
from tokkata.diffusion.generate import From, Settings, generate
from tokkata.diffusion.load import codec_of, load_diffusion
from tokkata.diffusion.sampler import clip_generators, draw_noise
from tokkata.diffusion.stable_audio.model import stable_audio_model
from tokkata.tests.diffusion.stable_audio.test_stable_audio import edit
from tokkata.tests.made_stable_audio import HOP, SAMPLE_RATE, save_stable_audio_pipeline
from tokkata.tokenize.features.feature import FeatureInfo, load_feature_from_info

PROMPTS = ["a slow piano", "loud drum and bass"]


class CosineTimes(EDMDPMSolverMultistepScheduler):
    """The published scheduler without its noise, for which diffusers needs torchsde."""

    def precondition_noise(self, sigma: Tensor) -> Tensor:
        return sigma.atan() / math.pi * 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Its folder, and diffusers' pipeline of the same parts."""
    folder = tmp_path_factory.mktemp("pipeline")
    transformer, projection = save_stable_audio_pipeline(folder)
    theirs = StableAudioPipeline(
        AutoencoderOobleck.from_pretrained(folder / "vae"),
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        projection,
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer,
        CosineTimes(
            sigma_min=0.3,
            sigma_max=500,
            sigma_data=1.0,
            sigma_schedule="exponential",
            prediction_type="v_prediction",
        ),
    )
    theirs.set_progress_bar_config(disable=True)
    return folder, theirs


def prompts_as_states(model, prompts):
    feature = model.config.conditions["text"].feature
    encoder = load_feature_from_info(FeatureInfo.from_json(feature, "the model"))
    return encoder.encode([encoder.token_ids(prompt) for prompt in prompts])


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.0])
@pytest.mark.parametrize("steps", [6, 20])
def test_the_audio_is_that_of_diffusers(pipeline, guidance: float, steps: int) -> None:
    folder, theirs = pipeline
    model = stable_audio_model(folder)
    num_frames, seconds = 11, 11 * HOP / SAMPLE_RATE
    conditions = {
        "text": prompts_as_states(model, PROMPTS),
        "seconds_start": [0.0, 0.0],
        "seconds_total": [seconds, seconds],
    }
    latents = generate(
        model,
        num_frames,
        conditions=conditions,
        settings=Settings(steps, "dpm++2m", guidance),
        seed=5,
    )
    noise = draw_noise(clip_generators(5, 0, 2), 4, 16)
    found = {}
    for kind in ("latent", "pt"):
        found[kind] = theirs(
            PROMPTS,
            audio_end_in_s=seconds,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise,
            output_type=kind,
        ).audios
    assert latents.shape == (2, 4, num_frames)
    torch.testing.assert_close(latents, found["latent"][:, :, :num_frames], atol=1e-4, rtol=1e-4)
    codec = codec_of(model)
    whole = generate(model, 16, conditions=conditions, settings=Settings(steps, "dpm++2m", guidance), seed=5)
    audio = codec.decode_latents(whole)[:, :, : num_frames * HOP]
    torch.testing.assert_close(audio, found["pt"], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_short_clips_keep_and_show_what_they_are_asked(pipeline) -> None:
    model = stable_audio_model(pipeline[0])
    kept = torch.randn(4, 9)
    known = torch.arange(9) < 5
    shown = []
    latents = generate(
        model,
        9,
        settings=Settings(3, "dpm++2m"),
        begin=From(kept, known=known),
        callback=lambda step, x0: shown.append((step, x0.shape)),
    )
    assert torch.equal(latents[0, :, :5], kept[:, :5])
    assert (latents[0, :, 5:] - kept[:, 5:]).abs().max() > 0.1
    assert shown == [(step, (1, 4, 9)) for step in range(3)]


def test_it_is_loaded_by_its_name_and_saved_as_ours(pipeline, tmp_path: Path) -> None:
    model = load_diffusion(pipeline[0])
    model.save_pretrained(tmp_path / "ours")
    again = load_diffusion(tmp_path / "ours")
    assert again.config == model.config
    settings = Settings(2, "dpm++2m")
    assert torch.equal(generate(again, 5, settings=settings), generate(model, 5, settings=settings))


def test_a_scheduler_of_another_kind_is_told(tmp_path: Path) -> None:
    save_stable_audio_pipeline(tmp_path)
    edit(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(
        UserError, match="its scheduler has prediction_type 'epsilon', but only 'v_prediction'"
    ):
        stable_audio_model(tmp_path)
