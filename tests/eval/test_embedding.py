"""The registry, and clips of all shapes through any embedding."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.core.schema import EMBEDDING_PATTERN, Eval
from tokkata.eval import embedding as module
from tokkata.eval.embedding import EMBEDDINGS, FAMILIES, Embedding, EmbeddingInfo, embed_clips, load_embedding


def test_clips_of_all_lengths_come_back_in_order(quick_embedding: Embedding, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH_SAMPLES", 2000)
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(1, length)).astype(np.float32) for length in (640, 960, 640, 6400, 960, 640)]
    together = embed_clips(quick_embedding, clips, 16000)
    assert [len(frames) for frames in together] == [2, 3, 2, 20, 3, 2]
    for clip, frames in zip(clips, together, strict=True):
        assert frames.shape[1] == quick_embedding.info.width
        np.testing.assert_allclose(frames, embed_clips(quick_embedding, [clip], 16000)[0], atol=1e-5)


def test_only_equal_lengths_share_a_batch():
    seen: list[list[int]] = []

    class Probe(Embedding):
        def frames(self, num_samples: int) -> int:
            return num_samples // 160

        def embed(self, audio: torch.Tensor) -> torch.Tensor:
            seen.append(list(audio.shape))
            return audio.unflatten(-1, (-1, 160)).mean(-1).transpose(1, 2)

    probe = Probe(EmbeddingInfo("probe", "1", 16000, 1, 0.01, 0.01, "", ""))
    embed_clips(probe, [np.ones((1, n), np.float32) for n in (320, 480, 320)], 16000)
    assert sorted(seen) == [[1, 1, 480], [2, 1, 320]]


def test_other_rates_and_stereo_are_brought_to_the_networks(quick_embedding: Embedding):
    time = np.arange(32000) / 32000
    stereo = np.stack([np.sin(2 * np.pi * 500 * time), np.zeros_like(time)]).astype(np.float32)
    mono = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)[None].astype(np.float32)
    np.testing.assert_allclose(
        embed_clips(quick_embedding, [stereo], 32000)[0][5:-5],
        embed_clips(quick_embedding, [mono], 16000)[0][5:-5],
        atol=0.05,
    )


@pytest.mark.parametrize("name", ["openl3", "vgish", "clap:", "hubert:facebook/hubert-base-ls960", ""])
def test_unknown_names_are_refused(name: str):
    told = f"there is no embedding '{name}'; there is: pocket, logmel, vggish, "
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        load_embedding(name)
    assert str(caught.value).endswith("dac-16khz, clap:ID, mert:ID, w2v2:ID, codec:ID")


def test_a_recipe_can_name_every_embedding_and_nothing_else():
    for name in [*EMBEDDINGS, *(f"{family}:owner/name" for family in FAMILIES), "w2v2:a/b#6"]:
        assert Eval(embedding=name).embedding == name
    for name in ("openl3", "pocket2", "clap:", "w2v2:a/b#six", "w2v2:#6", "panns:a"):
        assert re.match(EMBEDDING_PATTERN, name) is None


@pytest.mark.parametrize("name", ["pocket", "logmel"])
def test_embeddings_that_need_no_weights_take_none(name: str, tmp_path):
    with pytest.raises(UserError, match=f"embedding {name} has .*: leave out {tmp_path}"):
        load_embedding(name, weights=tmp_path)


def test_pocket_gives_50_frames_a_second_of_any_audio(tone: SimpleNamespace):
    embedding = load_embedding("pocket", device="cpu")
    stereo_32k = np.repeat(np.repeat(tone.at(60, 0.5), 2, axis=0), 2, axis=1)
    frames, shorter = embed_clips(embedding, [stereo_32k, stereo_32k[:, :3200]], 32000)
    assert frames.shape == (25, embedding.info.width)
    assert len(shorter) == 5
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()
    assert frames.std() > 0.0
    assert re.fullmatch("[0-9a-f]{12}", embedding.info.version), "part of every cache's key"


@pytest.fixture(scope="module", params=["pocket", "logmel"])
def shipped(request: pytest.FixtureRequest) -> Embedding:
    return load_embedding(request.param, device="cpu")


@settings(max_examples=12, deadline=None)
@given(num_samples=st.integers(1, 9000), batch=st.integers(1, 2))
def test_frames_are_as_many_as_told(shipped: Embedding, num_samples: int, batch: int):
    audio = torch.randn(batch, 1, num_samples, generator=torch.Generator().manual_seed(num_samples))
    frames = shipped.embed(0.1 * audio)
    assert frames.shape == (batch, shipped.frames(num_samples), shipped.info.width)
    assert frames.dtype == torch.float32
    assert torch.isfinite(frames).all()
    # Products of another batch size round otherwise; numbers go up to some 60.
    torch.testing.assert_close(frames[-1:], shipped.embed(0.1 * audio[-1:]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 16000), (1, 2, 16000), (1, 1, 0)])
def test_audio_of_other_shapes_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=re.escape(f"audio [B, 1, N] expected, not {list(shape)}")):
        load_embedding("logmel", device="cpu").embed(torch.zeros(shape))
