"""Stage `train` of a codec's run: a residual-vector-quantised autoencoder in the shared loop.

    python -m tokkata.tokenize.training.train_codec RECIPE

The codec's loss is made of distances of the decoded audio (`reconstruction_terms.py`), what discriminators
make of it (`adversarial.py`), and the terms of the codebooks (arXiv:2306.06546, sec. 3.4). Without
discriminators, spectral terms alone leave the phase free: the waveform's error binds it.

Shapes: B batch, N samples, K codebooks, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ...core.checkpoint import list_checkpoints
from ...core.errors import UserError
from ...core.files import atomic_folder
from ...core.job import Batch, Job, Loss, Phase, num_rows
from ...core.loop import train
from ...core.run import is_main_process, stage_main
from ...core.sampler import Crop, CropSampler
from ...core.schema import DacModel, EncodecModel, Recipe
from ...core.schema_trained_codecs import RvqModel
from ..fidelity import MelDistance, codebook_efficiency, si_sdr
from .adversarial import DECODED, DISCRIMINATOR, Adversary
from .audio_store import AudioStore
from .balancer import NORMS, LossBalancer
from .card import write_card
from .codebook_upkeep import ASKED, CODES, CodebookUpkeep
from .kmeans import LEAST_USE
from .reconstruction_terms import LEVEL, ReconstructionTerms
from .rvq import RvqCodec, RvqOutput
from .rvq_dac import build_dac
from .rvq_encodec import build_encodec

# Validation looks at the same few seconds each time.
_VALID_CROPS = 32
_VALID_S = 2

_EXAMPLE_SAMPLES = 32000

# At 50 frames a second 60,000 frames, some 60 for each of 1024 entries.
_REFIT_S = 1200


class CodecLoss:
    """All terms of the codec's phase, weighted or balanced as the recipe says."""

    def __init__(
        self, recipe: Recipe, codec: RvqCodec, adversary: Adversary | None, examples: Tensor
    ) -> None:
        """`examples` `[B, 1, N]` of the corpus say what its amplitude is."""
        config = recipe.model
        assert isinstance(config, RvqModel)
        self._config = config
        self._codebook_weight = codec.codebook_weight
        self._adversary = adversary
        self._terms = ReconstructionTerms(config, recipe.train.steps, examples)
        self._weights = dict(self._terms.weights)
        if adversary is not None:
            self._weights |= {
                "adversarial": adversary.config.weight,
                "features": adversary.config.feature_weight,
            }
        self.balancer = (
            LossBalancer(config.balancer, list(self._weights), codec) if config.balancer is not None else None
        )

    def __call__(self, modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """`batch["audio"]` is `[B, 1, N]`, `batch["num_used"]` `[B]` codebooks, `batch["step"]` a scalar."""
        out: RvqOutput = modules["codec"](batch["audio"], batch["num_used"])
        decoded = out.audio.float()
        audio = batch["audio"][..., : decoded.shape[-1]]
        terms = self._terms(decoded, audio, int(batch["step"]))
        if self._adversary is not None and self._adversary.is_active(batch):
            said = self._adversary.generator_terms(modules, decoded, audio)
            terms |= {"adversarial": said.adversarial, "features": said.features}
        made = {DECODED: decoded, CODES: out.codes, ASKED: out.asked}
        if self.balancer is None:
            total = torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()
        else:
            balanced = self.balancer(terms, self._weights, decoded)
            total, made[NORMS] = balanced.mean, balanced.norms
        total = total + self._codebook_weight * out.codebook + self._config.commitment_weight * out.commitment
        level = self._terms.level(decoded)
        metrics = {**terms, "codebook": out.codebook, "commitment": out.commitment, LEVEL: level}
        return Loss(total, num_rows(audio), metrics, made=made)


def train_codec(recipe: Recipe) -> None:
    """Write `checkpoints/`, `logs/` and `model/`."""
    config = recipe.model
    assert isinstance(config, RvqModel)
    store = AudioStore(recipe.folder / "audio")
    clips = store.split("train")
    if not clips:
        raise UserError("the corpus has no clips in its split 'train'")
    crop = round(recipe.train.crop_s * config.sample_rate_hz)
    batch_size, seed = recipe.train.batch_size, recipe.train.seed % 2**64  # NumPy takes no negative seeds
    sampler = CropSampler([clip.num_samples for clip in clips], crop, recipe.train.seed)

    def crops_of(drawn: list[Crop]) -> np.ndarray:
        return np.stack([store.crop(clips[c.clip], c.start, crop) for c in drawn])

    def batch(step: int, rows: range) -> Batch:
        audio = crops_of(sampler.draw(step, batch_size, rows))
        # For the global batch, so that it does not matter who has which rows.
        used = codec.draw_used(np.random.default_rng([seed, step]), batch_size)[rows.start : rows.stop]
        return {
            "audio": torch.from_numpy(audio)[:, None],
            "num_used": torch.from_numpy(used),
            "step": torch.tensor(step),
        }

    torch.manual_seed(recipe.train.seed)
    heard = examples(store)
    codec = build_codec(config, heard)
    # A run that goes on has its codebooks in its checkpoint.
    if config.refit_codebooks and not list_checkpoints(recipe.folder / "checkpoints"):
        num_samples = min(_REFIT_S * config.sample_rate_hz, sum(clip.num_samples for clip in clips))
        num_crops = max(1, num_samples // crop)
        drawn = crops_of(sampler.draw(0, num_crops, range(num_crops)))
        codec.find_codebooks(torch.from_numpy(drawn)[:, None], LEAST_USE)
    modules: dict[str, nn.Module] = {"codec": codec}
    adversary = None
    if config.adversarial is not None:
        adversary = Adversary(config.adversarial, config.sample_rate_hz, recipe.train)
        modules[DISCRIMINATOR] = adversary.module
    loss = CodecLoss(recipe, codec, adversary, heard)
    # The waveform's error tells best: a loud noise has no mel distance beyond bounds.
    watched = next(name for name in ("waveform", "mel", "stft") if getattr(config, f"{name}_weight"))
    phases = [Phase("codec", "codec", codec.optimizer(recipe.train), loss, watched=watched, level=LEVEL)]
    upkeep = CodebookUpkeep(codec, config.dead_codes, recipe.train.seed)

    def after_step(step: int, batches: list[Batch]) -> Mapping[str, Tensor]:
        if loss.balancer is not None:
            loss.balancer.after_step(batches)
        return upkeep(step, batches)

    train(
        Job(
            modules=modules,
            phases=phases if adversary is None else [*phases, adversary.phase],
            averaged="codec",
            batch=batch,
            validate=_Validation(store, config),
            save=lambda module, scores: _save(module, recipe, scores),
            unit="clips",
            after_step=after_step,
        ),
        recipe.train,
        recipe.folder,
    )


def build_codec(config: RvqModel, examples: Tensor) -> RvqCodec:
    """The codec that training begins from; `examples` are `[B, 1, N]` of its training clips."""
    if isinstance(config, EncodecModel):
        return build_encodec(config, examples)
    assert isinstance(config, DacModel)
    return build_dac(config, examples)


def examples(store: AudioStore) -> Tensor:
    """Audio `[B, 1, N]` from all over the training clips, by which a fresh codec is scaled."""
    longest = max(clip.num_samples for clip in store.split("train"))
    return torch.from_numpy(store.examples(min(_EXAMPLE_SAMPLES, longest)))


class _Validation:
    """Mel distance, SI-SDR and codebook use on fixed crops of the split `valid`; nothing if it is empty."""

    def __init__(self, store: AudioStore, config: RvqModel) -> None:
        clips = store.split("valid")
        if not clips and is_main_process():
            print("train: the split 'valid' has no clips, so there is no validation", file=sys.stderr)
        chosen = np.random.default_rng(0).permutation(len(clips))[:_VALID_CROPS]
        num_samples = _VALID_S * config.sample_rate_hz
        crops = np.zeros((len(chosen), 1, num_samples), dtype=np.float32)
        for row, clip in enumerate(chosen):
            crops[row, 0] = store.crop(clips[clip], 0, num_samples)
        self._audio = torch.from_numpy(crops)
        # As evaluation measures it, whatever the loss looks at.
        self._mel = MelDistance(config.sample_rate_hz)

    def __call__(self, codec: nn.Module) -> dict[str, float]:
        if not len(self._audio):
            return {}
        mels, ratios, codes = [], [], []
        for first in range(0, len(self._audio), 8):
            audio = self._audio[first : first + 8].to(next(codec.parameters()).device)
            out: RvqOutput = codec(audio)
            decoded = out.audio
            target = audio[..., : decoded.shape[-1]]
            mels.append(float(self._mel(decoded, target)))
            ratios.append(si_sdr(decoded[:, 0], target[:, 0]).cpu())
            codes.append(out.codes.cpu())
        assert isinstance(codec, RvqCodec)
        use = codebook_efficiency(torch.cat(codes), codec.codebook_size)
        return {
            "loss": float(np.mean(mels)),
            "si_sdr_db": float(torch.cat(ratios).median()),
            "codebook_efficiency": use.efficiency,
            "unused_codes": float(codec.num_codebooks * codec.codebook_size - sum(use.used)),
        }


def _save(codec: nn.Module, recipe: Recipe, scores: dict[str, float]) -> None:
    assert isinstance(codec, RvqCodec)
    assert isinstance(recipe.model, RvqModel)
    with atomic_folder(recipe.folder / "model") as partial:
        codec.save(partial, recipe.model.store)
        write_card(
            partial,
            recipe,
            scores,
            base=recipe.model.source,
            bandwidth_kbps=codec.largest_bandwidth_kbps,
        )


if __name__ == "__main__":
    stage_main("train", train_codec)
