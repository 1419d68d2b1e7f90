"""How long a training step of the 44 kHz DAC takes, beside the original package's own loop.

    python tests/benchmarks/bench_codec_training.py [--batch 1] [--crop-s 0.38] [--rounds 3] [--device cuda]

Both train a generator and its discriminators with the published settings (arXiv:2306.06546), those of
recipes/codec-dac-44khz.yaml, on the same crops, in float32, in turn in every round. Ours is `core.loop.train`
with the job of `tokkata codec train`, whose average of the weights comes on top.
Theirs does with the package's modules what its training script does in a step: the generator once, the
discriminators on what it made and on the real crop, their update; then the STFT, mel and waveform distances
(of which the mel distance has a weight), the discriminators again for the generator's terms, and its update.
Printed are the medians of seconds a step, the median over rounds of the ratio, and the mel distance of both
in the first step, which has to be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import dac
import torch
from audiotools import AudioSignal
from dac.model.discriminator import Discriminator
from dac.nn.loss import GANLoss, L1Loss, MelSpectrogramLoss, MultiScaleSTFTLoss
from torch import Tensor, nn

from tokkata.core.job import Batch, Job, Loss, Phase
from tokkata.core.loop import step_seed, train
from tokkata.core.recipe import load_recipe
from tokkata.core.schema import Recipe
from tokkata.tokenize.training.adversarial import DISCRIMINATOR, Adversary
from tokkata.tokenize.training.codebook_upkeep import CodebookUpkeep
from tokkata.tokenize.training.train_codec import CodecLoss, build_codec

RECIPE = Path(__file__).parents[2] / "recipes" / "codec-dac-44khz.yaml"


def our_recipe(folder: str, batch_size: int, crop_s: float) -> Recipe:
    """The published settings, on a batch of another size.

    Without the dropout of codebooks, which both would draw in their own way; all are computed in any case.
    """
    changed = ["model.quantizer_dropout=0", f"train.batch_size={batch_size}", f"train.crop_s={crop_s}"]
    return load_recipe(RECIPE, [*changed, f"runs_dir={folder}", "train.log_every=400000"])


class DoneError(Exception):
    """All rounds are over."""


class Theirs:
    """The package's modules, and a step as its training script takes it."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        torch.manual_seed(0)
        self.model, self.train = recipe.model, recipe.train
        self.rate = recipe.model.sample_rate_hz
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
            self.generator = dac.DAC(
                encoder_dim=self.model.encoder_dim,
                encoder_rates=self.model.encoder_rates,
                decoder_dim=self.model.decoder_dim,
                decoder_rates=self.model.encoder_rates[::-1],
                n_codebooks=self.model.num_codebooks,
                sample_rate=self.rate,
            )
            self.discriminator = Discriminator(
                periods=self.model.adversarial.periods,
                fft_sizes=self.model.adversarial.fft_sizes,
                sample_rate=self.rate,
            )
        self.generator.to(device)
        self.discriminator.to(device)
        self.gan = GANLoss(self.discriminator)
        self.mel = MelSpectrogramLoss(
            n_mels=self.model.mel_bins,
            window_lengths=self.model.mel_windows,
            mel_fmin=[0.0] * len(self.model.mel_bins),
            mel_fmax=[None] * len(self.model.mel_bins),
            mag_weight=0.0,
            pow=1.0,
            clamp_eps=self.model.mel_floor,
        )
        self.stft, self.waveform = MultiScaleSTFTLoss(), L1Loss()
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=self.train.lr, betas=self.train.betas)
            for module in (self.generator, self.discriminator)
        ]
        gamma = self.train.final_lr_fraction ** (1 / self.train.steps)
        self.schedulers = [
            torch.optim.lr_scheduler.ExponentialLR(one, gamma=gamma) for one in self.optimizers
        ]

    def step(self, audio: Tensor) -> float:
        """One update of both on `[B, 1, N]`; returns the mel distance."""
        signal = AudioSignal(audio, self.rate)
        out = self.generator(signal.audio_data, signal.sample_rate)
        decoded = AudioSignal(out["audio"], self.rate)
        self._update(
            1,
            self.discriminator,
            self.gan.discriminator_loss(decoded, signal),
            self.model.adversarial.clip_grad_norm,
        )
        self.stft(decoded, signal)
        self.waveform(decoded, signal)
        mel = self.mel(decoded, signal)
        adversarial, features = self.gan.generator_loss(decoded, signal)
        weights = self.model.adversarial
        total = self.model.mel_weight * mel + weights.weight * adversarial + weights.feature_weight * features
        total = total + self.model.commitment_weight * out["vq/commitment_loss"]
        total = total + self.model.codebook_weight * out["vq/codebook_loss"]
        self._update(0, self.generator, total, self.train.clip_grad_norm)
        return float(mel.detach())

    def _update(self, which: int, module: nn.Module, loss: Tensor, clip: float) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        self.optimizers[which].step()
        self.schedulers[which].step()


def our_job(recipe: Recipe, batch: Callable[[int, range], Batch], see: Callable[[float], None]) -> Job:
    """The job of `train_codec`, on other batches; `see` is told the mel distance of each step."""
    torch.manual_seed(0)
    rate = recipe.model.sample_rate_hz
    heard = torch.ones(1, 1, rate)
    codec = build_codec(recipe.model, heard)
    adversary = Adversary(recipe.model.adversarial, rate, recipe.train)
    loss = CodecLoss(recipe, codec, adversary, heard)
    upkeep = CodebookUpkeep(codec, recipe.model.dead_codes, recipe.train.seed)

    def seen(modules: Mapping[str, nn.Module], batch: Batch) -> Loss:
        found = loss(modules, batch)
        see(float(found.metrics["mel"].detach()))
        return found

    return Job(
        modules={"codec": codec, DISCRIMINATOR: adversary.module},
        phases=[Phase("codec", "codec", codec.optimizer(recipe.train), seen), adversary.phase],
        averaged="codec",
        batch=batch,
        validate=lambda module: {},
        save=lambda module, scores: None,
        unit="clips",
        after_step=upkeep,
    )


def clock() -> float:
    """Seconds, once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--crop-s", type=float, default=0.38)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # which takes a GPU where it finds one
    rounds = 1 if args.quick else args.rounds
    generator = torch.Generator().manual_seed(0)
    folder = tempfile.TemporaryDirectory()
    recipe = our_recipe(folder.name, args.batch, args.crop_s)
    num_samples = round(args.crop_s * recipe.model.sample_rate_hz)
    audio = 0.1 * torch.randn(args.batch, 1, num_samples, generator=generator).to(args.device)
    num_used = torch.full((args.batch,), recipe.model.num_codebooks)
    theirs = Theirs(recipe, args.device)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    mels: dict[str, list[float]] = {"theirs": [], "ours": []}
    begin = 0.0

    def batch(step: int, rows: range) -> Batch:
        """Called where a step of ours begins, and so where the one before has ended."""
        nonlocal begin
        now = clock()
        if step:
            seconds["ours"].append(now - begin)
        if step > rounds:  # the first step of both is a warm-up
            raise DoneError
        torch.manual_seed(step_seed(0, step, 0))  # as the loop has done: the same dropout of codebooks
        now = clock()
        mels["theirs"].append(theirs.step(audio))
        seconds["theirs"].append(clock() - now)
        torch.manual_seed(step_seed(0, step, 0))
        begin = clock()
        return {"audio": audio, "num_used": num_used, "step": torch.tensor(step)}

    with folder, contextlib.suppress(DoneError):
        train(our_job(recipe, batch, mels["ours"].append), recipe.train, recipe.folder)
    print(
        f"{os.uname().machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}"
    )
    print(f"batch of {args.batch} crops of {args.crop_s:g} s, {rounds} rounds after a warm-up")
    ratio = median(a / b for a, b in zip(seconds["theirs"][1:], seconds["ours"][1:], strict=True))
    print("| original loop | Tokkata | ratio | mel distance of the first step, theirs and ours |")
    print(
        f"| {median(seconds['theirs'][1:]):.3f} s | {median(seconds['ours'][1:]):.3f} s | {ratio:.2f}× |"
        f" {mels['theirs'][0]:.4f}, {mels['ours'][0]:.4f} |"
    )


if __name__ == "__main__":
    main()
