"""Audio while it is generated is the audio of what is generated at once."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.lm.generate import Generator
from tokkata.lm.sampling import Sampling
from tokkata.lm.stream import CHUNK_S, stream_audio
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tokenize.codec import load_codec

PITCH = Conditions((Condition("pitch", "label", values=(60, 62)),))
WINDOW = 30


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return load_codec(str(tiny_codec), num_codebooks=4)


@pytest.fixture(scope="module")
def generator(codec):
    torch.manual_seed(0)
    shape = {"dim": 16, "num_layers": 1, "num_heads": 2, "window_frames": WINDOW}
    lm = TransformerLM(TransformerConfig.for_codec(dataclasses.asdict(codec.info), PITCH, **shape)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return Generator(lm)


@settings(max_examples=6, deadline=None)
@given(
    num_frames=st.integers(1, 70),
    chunk_frames=st.integers(1, 80),
    num_prompt=st.integers(0, 20),
    cfg_scale=st.sampled_from([1.0, 2.0]),
    cut=st.integers(0, 100),
)
def test_streamed_audio_is_the_decoded_whole(
    codec, generator, num_frames, chunk_frames, num_prompt, cfg_scale, cut
):
    num_prompt = min(num_prompt, num_frames - 1)
    prompt = torch.randint(64, (2, 4, num_prompt), generator=torch.Generator().manual_seed(1))
    settings_ = {
        "conditions": {"pitch": [60, 62]},
        "prompt": prompt if num_prompt else None,
        "sampling": Sampling(top_k=20, cfg_scale=cfg_scale),
        "seed": 3,
    }
    num_samples = max(1, codec.num_samples(num_frames) - cut)
    whole = codec.decode(generator.generate(num_frames, **settings_), num_samples)
    parts = stream_audio(
        generator, codec, num_frames, num_samples=num_samples, chunk_frames=chunk_frames, **settings_
    )
    streamed = torch.cat(list(parts), dim=2)
    assert streamed.shape == whole.shape
    torch.testing.assert_close(streamed, whole, rtol=0, atol=2e-5)


def test_the_first_audio_comes_before_the_last_token(codec, generator, monkeypatch):
    steps = []
    decoder = type(generator._prepared.decoder({}, 1, 2))
    monkeypatch.setattr(
        decoder,
        "run",
        lambda self, draft, start, stop, run=decoder.run: steps.append(stop) or run(self, draft, start, stop),
    )
    parts = stream_audio(generator, codec, 200)
    assert steps == []
    first = next(parts)
    assert first.shape[2] > 0
    asked_for = len(steps)
    list(parts)
    assert asked_for < len(steps) / 2
    assert CHUNK_S * codec.frame_rate == 25


def test_faults_are_told_before_anything_is_generated(codec, generator):
    with pytest.raises(UserError, match="num_frames 0 must be at least 1"):
        stream_audio(generator, codec, 0)
    other = load_codec("pocket")
    with pytest.raises(
        UserError, match="codec pocket does not match the model: its num_codebooks is 8, the model's is 4"
    ):
        stream_audio(generator, other, 10)
