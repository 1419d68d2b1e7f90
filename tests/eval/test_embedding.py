from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.eval import embedding as module
from tokkata.eval.embedding import EMBEDDINGS, Embedding, embed_clips, load_embedding


def test_clips_of_all_lengths_come_back_in_order(quick_embedding: Embedding, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BATCH_SAMPLES", 2000)
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(1, length)).astype(np.float32) for length in (640, 960, 640, 6400, 960, 640)]
    together = embed_clips("pocket", clips, 16000)
    assert [len(frames) for frames in together] == [2, 3, 2, 20, 3, 2]
    for clip, frames in zip(clips, together, strict=True):
        assert frames.shape[1] == quick_embedding.width
        np.testing.assert_allclose(frames, embed_clips("pocket", [clip], 16000)[0], atol=1e-5)


def test_only_equal_lengths_share_a_batch(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []

    def embed(audio: torch.Tensor) -> torch.Tensor:
        seen.append(list(audio.shape))
        return audio.unflatten(-1, (-1, 160)).mean(-1)

    monkeypatch.setitem(EMBEDDINGS, "pocket", lambda: Embedding("probe", 16000, 1, embed))
    embed_clips("pocket", [np.ones((1, n), np.float32) for n in (320, 480, 320)], 16000)
    assert sorted(seen) == [[1, 1, 480], [2, 1, 320]]


def test_other_rates_and_stereo_are_brought_to_the_networks(quick_embedding: Embedding):
    time = np.arange(32000) / 32000
    stereo = np.stack([np.sin(2 * np.pi * 500 * time), np.zeros_like(time)]).astype(np.float32)
    mono = 0.5 * np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)[None].astype(np.float32)
    np.testing.assert_allclose(
        embed_clips("pocket", [stereo], 32000)[0][5:-5],
        embed_clips("pocket", [mono], 16000)[0][5:-5],
        atol=0.05,
    )


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no embedding 'vggish'; there is: pocket"):
        load_embedding("vggish")


def test_pocket_gives_50_frames_a_second_of_any_audio(tone: SimpleNamespace):
    stereo_32k = np.repeat(np.repeat(tone.at(60, 0.5), 2, axis=0), 2, axis=1)
    frames, shorter = embed_clips("pocket", [stereo_32k, stereo_32k[:, :3200]], 32000)
    assert frames.shape == (25, load_embedding("pocket").width)
    assert len(shorter) == 5
    assert frames.dtype == np.float32
    assert np.isfinite(frames).all()
    assert frames.std() > 0.0
