"""Stage `train` of a codec's run: a residual-vector-quantised autoencoder in the shared loop.

    python -m tokkata.tokenize.train_codec RECIPE

The architecture is the original package's DAC (arXiv:2306.06546). The loss is its multi-scale log-mel
distance and its codebook and commitment terms (sec. 3.4), plus the waveform's relative absolute error:
without a discriminator, spectral terms alone leave the phase free.

Shapes: B batch, N samples, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dac
import numpy as np
import torch
from audiotools import AudioSignal
from dac.nn.loss import MelSpectrogramLoss
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.files import atomic_folder
from ..core.loop import Batch, Job, Loss, Phase, adamw, train
from ..core.run import stage_main
from ..core.sampler import CropSampler
from ..core.schema import DacModel, Recipe
from .audio_store import AudioStore
from .codec_dac import build_original, save_dac
from .fidelity import codebook_efficiency, si_sdr

MEL_WINDOWS = (64, 128, 256, 512, 1024)  # samples
MEL_BINS = (10, 20, 40, 80, 160)

# Validation looks at the same few seconds each time.
_VALID_CROPS = 32


def mel_distance() -> nn.Module:
    """DAC's multi-scale distance of log10-mel spectrograms, summed over `MEL_WINDOWS`.

    Takes two `AudioSignal`s. Windows as in arXiv:2306.06546, sec. 3.4, without 32 and 2048.
    """
    return MelSpectrogramLoss(
        n_mels=list(MEL_BINS),
        window_lengths=list(MEL_WINDOWS),
        mel_fmin=[0.0] * len(MEL_BINS),
        mel_fmax=[None] * len(MEL_BINS),
        mag_weight=0.0,
        pow=1.0,
        clamp_eps=1e-5,
    )


class CodecLoss:
    """Reconstruction, codebook and commitment terms, weighted as the recipe says."""

    def __init__(self, config: DacModel) -> None:
        self._config = config
        self._mel = mel_distance()

    def __call__(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """`batch["audio"]` is `[B, 1, N]`."""
        config, audio = self._config, batch["audio"]
        out = modules["codec"](audio, config.sample_rate_hz)
        decoded: Tensor = out["audio"]
        target = audio[..., : decoded.shape[-1]]
        mel = self._mel(
            AudioSignal(decoded, config.sample_rate_hz), AudioSignal(target, config.sample_rate_hz)
        )
        waveform = (decoded - target).abs().mean() / target.abs().mean().clamp(min=1e-4)
        codebook, commitment = out["vq/codebook_loss"].mean(), out["vq/commitment_loss"].mean()
        total = (
            config.mel_weight * mel
            + config.waveform_weight * waveform
            + config.codebook_weight * codebook
            + config.commitment_weight * commitment
        )
        metrics = {"mel": mel, "waveform": waveform, "codebook": codebook, "commitment": commitment}
        return Loss(total, torch.tensor(float(len(audio)), device=audio.device), metrics)


def train_codec(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config = recipe.model
    assert isinstance(config, DacModel)
    store = AudioStore(recipe.folder / "audio")
    clips = store.split("train")
    if not clips:
        raise UserError("the corpus has no clips in its split 'train'")
    crop = round(recipe.train.crop_s * config.sample_rate_hz)
    sampler = CropSampler([clip.num_samples for clip in clips], crop, recipe.train.seed)

    def batch(step: int, rows: range) -> Batch:
        crops = sampler.draw(step, recipe.train.batch_size, rows)
        audio = np.stack([store.crop(clips[c.clip], c.start, crop) for c in crops])
        return {"audio": torch.from_numpy(audio)[:, None]}

    torch.manual_seed(recipe.train.seed)
    codec = build_original(config)
    train(
        Job(
            modules={"codec": codec},
            phases=[Phase("codec", "codec", adamw(codec, recipe.train), CodecLoss(config))],
            averaged="codec",
            batch=batch,
            validate=_Validation(store, config),
            save=lambda module, scores: _save(module, recipe.folder / "model", config),
            unit="clips",
        ),
        recipe.train,
        recipe.folder,
    )


class _Validation:
    """Mel distance, SI-SDR and codebook use on fixed crops of the split `valid`."""

    def __init__(self, store: AudioStore, config: DacModel) -> None:
        clips = store.split("valid") or store.split("train")
        chosen = np.random.default_rng(0).permutation(len(clips))[:_VALID_CROPS]
        crops = [store.crop(clips[i], 0, 2 * config.sample_rate_hz) for i in chosen]
        self._audio = torch.from_numpy(np.stack(crops))[:, None]
        self._config = config
        self._mel = mel_distance()

    def __call__(self, codec: nn.Module) -> dict[str, float]:
        rate = self._config.sample_rate_hz
        mels, ratios, codes = [], [], []
        for audio in self._audio.split(8):
            audio = audio.to(next(codec.parameters()).device)
            out = codec(audio, rate)
            decoded = out["audio"]
            target = audio[..., : decoded.shape[-1]]
            mels.append(float(self._mel(AudioSignal(decoded, rate), AudioSignal(target, rate))))
            ratios.append(si_sdr(decoded[:, 0], target[:, 0]).cpu())
            codes.append(out["codes"].cpu())
        return {
            "loss": float(np.mean(mels)),
            "si_sdr_db": float(torch.cat(ratios).median()),
            "codebook_efficiency": codebook_efficiency(
                torch.cat(codes), self._config.codebook_size
            ).efficiency,
        }


def _save(codec: nn.Module, folder: Path, config: DacModel) -> None:
    assert isinstance(codec, dac.DAC)
    with atomic_folder(folder) as partial:
        save_dac(codec, partial, config.store)


if __name__ == "__main__":
    stage_main("train", train_codec)
