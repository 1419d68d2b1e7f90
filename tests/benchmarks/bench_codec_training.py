"""How long a training step of the 44 kHz DAC takes, beside the original package's own loop.

    python tests/benchmarks/bench_codec_training.py [--batch 1] [--crop-s 0.38] [--rounds 3]

Both train a generator and its discriminators of the published size (arXiv:2306.06546) on the same crops, in
float32, in turn in every round. Ours is `core.loop.train` with the job of `tokkata codec train`, whose
average of the weights comes on top.
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
from statistics import median

import dac
import torch
from audiotools import AudioSignal
from dac.model.discriminator import Discriminator
from dac.nn.loss import GANLoss, L1Loss, MelSpectrogramLoss, MultiScaleSTFTLoss
from torch import Tensor, nn

from tokkata.core.loop import Batch, Job, Loss, Phase, step_seed, train
from tokkata.core.recipe import check_recipe
from tokkata.core.schema import Recipe
from tokkata.tokenize.training.adversarial import DISCRIMINATOR, Adversary
from tokkata.tokenize.training.codebook_upkeep import CodebookUpkeep
from tokkata.tokenize.training.train_codec import CodecLoss, build_codec

RATE = 44100

MEL = {
    "n_mels": [5, 10, 20, 40, 80, 160, 320],
    "window_lengths": [32, 64, 128, 256, 512, 1024, 2048],
    "mel_fmin": [0.0] * 7,
    "mel_fmax": [None] * 7,
    "mag_weight": 0.0,
    "pow": 1.0,
    "clamp_eps": 1e-5,
}
WEIGHTS = {"mel": 15.0, "features": 2.0, "adversarial": 1.0, "commitment": 0.25, "codebook": 1.0}
LR, BETAS, GAMMA = 1e-4, (0.8, 0.99), 0.999996


def our_recipe(folder: str, batch_size: int, crop_s: float) -> Recipe:
    """The same settings, as a recipe says them."""
    model = {
        "kind": "dac",
        "sample_rate_hz": RATE,
        "encoder_dim": 64,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1536,
        "num_codebooks": 9,
        "start": "random",
        "quantizer_dropout": 0.5,
        "mel_windows": MEL["window_lengths"],
        "mel_bins": MEL["n_mels"],
        "mel_floor": MEL["clamp_eps"],
        "mel_weight": WEIGHTS["mel"],
        "waveform_weight": 0.0,
        "commitment_weight": WEIGHTS["commitment"],
        "codebook_weight": WEIGHTS["codebook"],
        "codebook_lr_scale": 1.0,
        "dead_codes": None,
        "adversarial": {"weight": WEIGHTS["adversarial"], "feature_weight": WEIGHTS["features"], "lr": LR},
    }
    train = {
        "steps": 400_000,
        "batch_size": batch_size,
        "crop_s": crop_s,
        "lr": LR,
        "betas": list(BETAS),
        "weight_decay": 0.01,
        "clip_grad_norm": 1e3,
        "warmup_steps": 0,
        "log_every": 400_000,
    }
    data = {"kind": "synth", "num_clips": 1, "duration_s": 1.0}
    return check_recipe(
        {"name": "codec-dac-44khz", "runs_dir": folder, "data": data, "model": model, "train": train}
    )


class DoneError(Exception):
    """All rounds are over."""


class Theirs:
    """The package's modules, and a step as its training script takes it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*weight_norm. is deprecated", category=FutureWarning)
            self.generator = dac.DAC(sample_rate=RATE, quantizer_dropout=0.5)
            self.discriminator = Discriminator(sample_rate=RATE)
        self.gan = GANLoss(self.discriminator)
        self.mel, self.stft, self.waveform = MelSpectrogramLoss(**MEL), MultiScaleSTFTLoss(), L1Loss()
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=LR, betas=BETAS)
            for module in (self.generator, self.discriminator)
        ]
        self.schedulers = [
            torch.optim.lr_scheduler.ExponentialLR(one, gamma=GAMMA) for one in self.optimizers
        ]

    def step(self, audio: Tensor) -> float:
        """One update of both on `[B, 1, N]`; returns the mel distance."""
        signal = AudioSignal(audio, RATE)
        out = self.generator(signal.audio_data, signal.sample_rate)
        decoded = AudioSignal(out["audio"], RATE)
        self._update(1, self.discriminator, self.gan.discriminator_loss(decoded, signal), 10.0)
        self.stft(decoded, signal)
        self.waveform(decoded, signal)
        mel = self.mel(decoded, signal)
        adversarial, features = self.gan.generator_loss(decoded, signal)
        terms = {
            "mel": mel,
            "features": features,
            "adversarial": adversarial,
            "commitment": out["vq/commitment_loss"],
            "codebook": out["vq/codebook_loss"],
        }
        total = torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()
        self._update(0, self.generator, total, 1e3)
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
    codec = build_codec(recipe.model, torch.zeros(1, 1, RATE))
    adversary = Adversary(recipe.model.adversarial, RATE, recipe.train)
    loss = CodecLoss(recipe, codec, adversary)
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


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--crop-s", type=float, default=0.38)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    generator = torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(args.batch, 1, round(args.crop_s * RATE), generator=generator)
    theirs = Theirs()
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    mels: dict[str, list[float]] = {"theirs": [], "ours": []}
    begin = 0.0

    def batch(step: int, rows: range) -> Batch:
        """Called where a step of ours begins, and so where the one before has ended."""
        nonlocal begin
        now = time.perf_counter()
        if step:
            seconds["ours"].append(now - begin)
        if step > rounds:  # the first step of both is a warm-up
            raise DoneError
        torch.manual_seed(step_seed(0, step, 0))  # as the loop has done: the same dropout of codebooks
        now = time.perf_counter()
        mels["theirs"].append(theirs.step(audio))
        seconds["theirs"].append(time.perf_counter() - now)
        torch.manual_seed(step_seed(0, step, 0))
        begin = time.perf_counter()
        return {"audio": audio, "step": torch.tensor(step)}

    with tempfile.TemporaryDirectory() as folder:
        recipe = our_recipe(folder, args.batch, args.crop_s)
        with contextlib.suppress(DoneError):
            train(our_job(recipe, batch, mels["ours"].append), recipe.train, recipe.folder)
    print(f"{os.uname().machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"batch of {args.batch} crops of {args.crop_s:g} s, {rounds} rounds after a warm-up")
    ratio = median(a / b for a, b in zip(seconds["theirs"][1:], seconds["ours"][1:], strict=True))
    print("| original loop | Tokkata | ratio | mel distance of the first step, theirs and ours |")
    print(
        f"| {median(seconds['theirs'][1:]):.2f} s | {median(seconds['ours'][1:]):.2f} s | {ratio:.2f}× |"
        f" {mels['theirs'][0]:.4f}, {mels['ours'][0]:.4f} |"
    )


if __name__ == "__main__":
    main()
