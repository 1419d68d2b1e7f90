"""A token store without audio, and a codec whose sound tells its codes.

Shapes: B batch, C channels, N samples, K codebooks, T frames, V codebook size.
"""

import numpy as np
import pytest
import torch

from tokkata.core.recipe import check_recipe
from tokkata.tokenize.codec import Chunking, Codec, CodecInfo
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter

K, V = 3, 16
HOP = 320

INFO = CodecInfo(
    id="made up",
    revision=None,
    sample_rate=16000,
    channels=1,
    hop_length=HOP,
    frame_rate=50.0,
    num_codebooks=K,
    codebook_size=V,
    latent_dim=1,
    versions={},
)


class ToldCodec(Codec):
    """The first K samples of a frame are its codes divided by 128; the rest is silence."""

    chunking = Chunking(exact=True, encoder_context=0, decoder_context=0)
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(INFO)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        audio = torch.zeros(codes.shape[0], codes.shape[2], HOP)
        audio[:, :, :K] = codes.transpose(1, 2) / 128
        return audio.flatten(1)[:, None]

    def _encode(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio[:, 0].unflatten(-1, (-1, HOP))
        return (frames[:, :, :K] * 128).round().long().clamp(0, V - 1).transpose(1, 2)

    def _encode_latents(self, audio: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def codes_of(self, samples: np.ndarray) -> np.ndarray:
        """[N] to [K, T]."""
        frames = np.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)
        return np.rint(frames[:, :K].T * 128).astype(np.int64)


@pytest.fixture
def told_codec(monkeypatch):
    codec = ToldCodec()
    for name in ("sample", "preview"):
        monkeypatch.setattr(f"tokkata.lm.{name}.load_codec_from_info", lambda *_: codec)
    return codec


@pytest.fixture
def lm_recipe(tmp_path):
    """`lm_recipe(train={…}, model={…}, generate={…})`: a small recipe, checked."""

    def make(**changes):
        values = {
            "name": changes.pop("name", "run"),
            "runs_dir": str(tmp_path),
            "data": {"kind": "synth"},
            "codec": {"kind": "pocket"},
            "model": {"kind": "transformer", "dim": 32, "num_layers": 1, "num_heads": 2},
            "train": {"steps": 3, "batch_size": 8, "crop_s": 0.16, "warmup_steps": 1, "lr": 5e-3},
            "generate": {"num_clips": 5, "duration_s": 0.2, "top_k": None},
        }
        return check_recipe({name: {**value, **changes.get(name, {})} if isinstance(value, dict) else value
                             for name, value in values.items()})  # fmt: skip

    return make


@pytest.fixture
def write_tokens():
    """`write_tokens(recipe, train=8, valid=4)`: clips of 5 to 14 frames of random codes with three labels.

    Of clip i of a split, `pitch` is 60 + i % 4, `player` is its number, and `place` is in no other split.
    """

    def write(recipe, **num_clips):
        rng = np.random.default_rng(0)
        rows = [
            TokenRow(
                id=f"{split}-{i:02d}",
                split=split,
                codes=rng.integers(V, size=(K, 5 + (7 * i) % 10)),
                num_samples=HOP * (5 + (7 * i) % 10),
                source=f"{split} {i}",
                sha256="",
                labels={"pitch": 60 + i % 4, "player": f"player {i}", "place": f"{split} {i}"},
                caption=None,
            )
            for split, number in num_clips.items()
            for i in range(number)
        ]
        writer = TokenWriter(recipe.folder / "tokens", INFO, {"pitch": int, "player": str, "place": str}, 1)
        writer.write(0, rows, [])
        writer.finish()
        return TokenStore(recipe.folder / "tokens")

    return write
