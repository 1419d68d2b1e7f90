"""Stage `train` of a codec's run: a residual-vector-quantised autoencoder in the shared loop.

    python -m tokkata.tokenize.training.train_codec RECIPE

The architecture is the original package's DAC (arXiv:2306.06546). The loss is its multi-scale log-mel
distance and its codebook and commitment terms (sec. 3.4), plus the waveform's relative absolute error:
without a discriminator, spectral terms alone leave the phase free. For the waveform to be learnt in few
steps, the codec starts as a lapped transform (`lapped_start.py`).

Shapes: B batch, N samples, K codebooks, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import dac
import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.files import atomic_folder
from ...core.loop import Batch, Job, Loss, Phase, train
from ...core.optimizer import adamw
from ...core.run import is_main_process, stage_main
from ...core.sampler import CropSampler
from ...core.schema import DacModel, Recipe
from ..families.codec_dac import build_original, save_dac
from ..fidelity import MelDistance, codebook_efficiency, si_sdr
from .audio_store import AudioStore
from .lapped_start import start_as_lapped_transform

# Validation looks at the same few seconds each time.
_VALID_CROPS = 32

_NUM_EXAMPLES = 64
_EXAMPLE_SAMPLES = 32000


class CodecLoss:
    """Reconstruction, codebook and commitment terms, weighted as the recipe says."""

    def __init__(self, config: DacModel) -> None:
        self._config = config
        self._mel = MelDistance(config.sample_rate_hz, config.mel_floor)

    def __call__(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """`batch["audio"]` is `[B, 1, N]`."""
        config, audio = self._config, batch["audio"]
        out = modules["codec"](audio, config.sample_rate_hz)
        decoded: Tensor = out["audio"]
        target = audio[..., : decoded.shape[-1]]
        mel = self._mel(decoded, target)
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
    try:
        start_as_lapped_transform(codec, examples(store))
    except ValueError as error:
        raise UserError(f"model.encoder_rates: {error}") from error
    train(
        Job(
            modules={"codec": codec},
            phases=[Phase("codec", "codec", _optimizer(codec, recipe), CodecLoss(config))],
            averaged="codec",
            batch=batch,
            validate=_Validation(store, config),
            save=lambda module, scores: _save(module, recipe.folder / "model", config),
            unit="clips",
        ),
        recipe.train,
        recipe.folder,
    )


def _optimizer(codec: dac.DAC, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, with faster codebooks."""
    assert isinstance(recipe.model, DacModel)
    optimizer = adamw(codec, recipe.train)
    codebooks = [quantizer.codebook.weight for quantizer in codec.quantizer.quantizers]
    theirs = {id(p) for p in codebooks}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    optimizer.add_param_group(
        {"params": codebooks, "weight_decay": 0.0, "lr_scale": recipe.model.codebook_lr_scale}
    )
    return optimizer


def examples(store: AudioStore) -> Tensor:
    """Audio `[B, 1, N]` from all over the training clips, by which a fresh codec is scaled."""
    clips = store.split("train")
    length = min(_EXAMPLE_SAMPLES, max(clip.num_samples for clip in clips))
    chosen = np.linspace(0, len(clips) - 1, min(len(clips), _NUM_EXAMPLES)).astype(int)
    return torch.from_numpy(np.stack([store.crop(clips[i], 0, length) for i in chosen]))[:, None]


class _Validation:
    """Mel distance, SI-SDR and codebook use on fixed crops of the split `valid`; nothing if it is empty."""

    def __init__(self, store: AudioStore, config: DacModel) -> None:
        clips = store.split("valid")
        if not clips and is_main_process():
            print("train: the split 'valid' has no clips, so there is no validation", file=sys.stderr)
        chosen = np.random.default_rng(0).permutation(len(clips))[:_VALID_CROPS]
        num_samples = 2 * config.sample_rate_hz
        crops = np.zeros((len(chosen), 1, num_samples), dtype=np.float32)
        for row, clip in enumerate(chosen):
            crops[row, 0] = store.crop(clips[clip], 0, num_samples)
        self._audio = torch.from_numpy(crops)
        self._config = config
        self._mel = MelDistance(config.sample_rate_hz, config.mel_floor)

    def __call__(self, codec: nn.Module) -> dict[str, float]:
        if not len(self._audio):
            return {}
        rate = self._config.sample_rate_hz
        mels, ratios, codes = [], [], []
        for first in range(0, len(self._audio), 8):
            audio = self._audio[first : first + 8].to(next(codec.parameters()).device)
            out = codec(audio, rate)
            decoded = out["audio"]
            target = audio[..., : decoded.shape[-1]]
            mels.append(float(self._mel(decoded, target)))
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
