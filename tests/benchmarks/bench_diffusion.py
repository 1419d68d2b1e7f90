"""How fast Stable Audio's network is, beside `diffusers`' on the same weights, and guidance in one batch.

    python tests/benchmarks/bench_diffusion.py [--quick] [--device cuda]

On a CPU it uses two threads; everything that is compared runs in turn in every round, in float32. Printed are
medians of milliseconds, and the median over rounds of the ratio:

- a step of a sampler: `StableAudioDiTModel` with its conditions ready, ours with those and the memory's keys
  ready, and (on a CPU) with packed weights. The difference is the largest between the two outputs.
- guidance: two passes of one clip beside one pass of a batch of two, with ours.
- a training step: forward, backward and AdamW as `diffusers`' training scripts make it, and as our loop does
  (fused); ours computes its conditions anew.
- products: on a CPU, the matrix products and attentions of our step, and of our training step without the
  optimizer, and nothing else (`products.py`): with PyTorch's products no implementation takes less.
- sampling (on a GPU): a whole clip of 50 guided steps, one pass after another beside one graph of the pass
  that is captured anew for the clip and replayed. The difference is the largest between the two clips.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, Given, GivenConditions, join
from tokkata.diffusion import generate as sampling
from tokkata.diffusion.diffusion_model import DiffusionConfig, DiffusionModel
from tokkata.diffusion.networks.dit import DiTConfig
from tokkata.diffusion.networks.network import NetworkConfig
from tokkata.diffusion.networks.packed_linears import packed_linears
from tokkata.diffusion.objective import Flow, Objective, Velocity
from tokkata.diffusion.stable_audio.layout import from_diffusers
from tokkata.diffusion.stable_audio.network import TIMINGS, StableAudio, StableAudioConfig
from tokkata.tests.benchmarks.products import products_of
from tokkata.tokenize.codec import CodecInfo

WIDTH, TEXT_LENGTH, LATENT_DIM = 768, 128, 64
HOP_LENGTH = 320
"""Samples a frame; only a clip's length in seconds depends on it."""

Run = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """A shape; heads are 64 wide."""

    num_layers: int
    num_heads: int
    num_frames: int

    def __str__(self) -> str:
        """As a row's name."""
        return f"{self.num_layers} layers, {64 * self.num_heads} wide, {self.num_frames} frames"


SIZES = (
    Size(6, 4, 16),
    Size(6, 4, 64),
    Size(6, 4, 256),
    Size(12, 8, 216),
    Size(2, 24, 216),
    Size(2, 24, 1024),
)
"""The last two are as wide as Stable Audio Open, with 2 of its 24 layers; 1024 frames are its 47 s."""


@dataclass
class Pair:
    """Both networks with the same weights, and one clip for them."""

    theirs: StableAudioDiTModel
    ours: StableAudio
    x: Tensor
    time: Tensor
    given: GivenConditions
    inputs: dict[str, Tensor]
    """What their network takes beside latents and time."""

    def of_theirs(self) -> Tensor:
        """Their prediction."""
        found: Tensor = self.theirs(self.x, self.time, **self.inputs, return_dict=False)[0]
        return found


@torch.no_grad()
def make(size: Size, device: str) -> Pair:
    """With random weights and conditions."""
    torch.manual_seed(0)
    theirs = StableAudioDiTModel(
        sample_size=size.num_frames,
        num_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_attention_heads=size.num_heads // 2,
    )
    projection = StableAudioProjectionModel(WIDTH, WIDTH, 0, 512)
    numbers = (Condition(name, "number", "cross", width=256, maximum=512.0) for name in TIMINGS)
    text = Condition(
        "text", "sequence", "cross", width=WIDTH, length=TEXT_LENGTH, attend_padding=True, project=False
    )
    config = StableAudioConfig(
        latent_dim=LATENT_DIM,
        in_dim=LATENT_DIM,
        max_frames=size.num_frames,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        num_memory_heads=size.num_heads // 2,
        conditions=Conditions((text, *numbers)),
    )
    ours = StableAudio(config)
    ours.load_state_dict(from_diffusers(theirs.state_dict(), projection.state_dict(), config))
    states, seconds = torch.randn(1, TEXT_LENGTH, WIDTH), torch.tensor([[0.0], [47.0]])
    given = {"text": Given(states, torch.ones(1, TEXT_LENGTH, dtype=torch.bool))}
    for name, value in zip(TIMINGS, seconds, strict=True):
        given[name] = Given(value[None], torch.ones(1, 1, dtype=torch.bool))
    projected = projection(states, *seconds)
    timings = [projected.seconds_start_hidden_states, projected.seconds_end_hidden_states]
    cos, sin = get_1d_rotary_pos_embed(32, size.num_frames + 1, use_real=True, repeat_interleave_real=False)
    inputs = {
        "encoder_hidden_states": torch.cat([states, *timings], dim=1).to(device),
        "global_hidden_states": torch.cat(timings, dim=2).to(device),
        "rotary_embedding": (cos.to(device), sin.to(device)),
    }
    return Pair(
        theirs.to(device).eval(),
        ours.to(device).eval(),
        torch.randn(1, LATENT_DIM, size.num_frames, device=device),
        torch.rand(1, device=device),
        {name: one.to(torch.device(device)) for name, one in given.items()},
        inputs,
    )


def training_step(network: torch.nn.Module, predict: Run, fused: bool | None) -> Run:
    """A step of AdamW on the mean square of what it predicts."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=fused)

    def step() -> None:
        predict().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(runs: Sequence[Run], rounds: int, device: str) -> list[list[float]]:
    """Milliseconds of each of the runs, in turn in each round: [runs][rounds]."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, times, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                found.append(1e3 * (time.perf_counter() - start))
    return times


def line(what: str, names: Sequence[str], times: Sequence[Sequence[float]]) -> str:
    """Medians, and the ratio of the first to each other one."""
    first, *others = times
    parts = [f"{names[0]} {median(first):.1f} ms"]
    for name, found in zip(names[1:], others, strict=True):
        ratio = median(a / b for a, b in zip(first, found, strict=True))
        parts.append(f"{name} {median(found):.1f} ms ({ratio:.2f}x)")
    return f"  {what:9} " + ", ".join(parts)


def diffusion_config(network: NetworkConfig, objective: Objective) -> DiffusionConfig:
    """With a codec that says how long a frame is, and no more."""
    info = CodecInfo(
        id="none",
        revision=None,
        sample_rate=16000,
        channels=1,
        hop_length=HOP_LENGTH,
        frame_rate=16000 / HOP_LENGTH,
        num_codebooks=0,
        codebook_size=0,
        latent_dim=network.latent_dim,
        versions={},
    )
    return DiffusionConfig(network=network, objective=objective, codec=dataclasses.asdict(info))


def bench_sampling(model: DiffusionModel, given: sampling.Inputs, device: str, rounds: int) -> None:
    """Print the line of a clip as long as the model's longest."""
    settings = sampling.Settings(steps=50, cfg_scale=3.0)
    clips: dict[str, Tensor] = {}

    def graph() -> None:
        clips["graph"] = sampling.generate(
            model, model.network.max_frames, conditions=given, settings=settings
        )

    def passes() -> None:
        before = sampling.FEWEST_CALLS
        sampling.FEWEST_CALLS = 1_000_000
        graph()
        sampling.FEWEST_CALLS = before
        clips["passes"] = clips["graph"]

    times = measure([passes, graph], rounds, device)
    difference = float((clips["passes"] - clips["graph"]).abs().max())
    print(line("sampling", ["passes", "graph"], times) + f", off by {difference:.0e}", flush=True)


def bench_small_sampling(device: str, rounds: int) -> None:
    """Print the same of the quickstart's network."""
    torch.manual_seed(0)
    labels = Conditions((Condition("pitch", "label", values=tuple(range(48, 61))),))
    shape = DiTConfig(
        latent_dim=32, in_dim=32, max_frames=100, dim=192, num_layers=4, num_heads=4, conditions=labels
    )
    model = DiffusionModel(diffusion_config(shape, Flow())).to(device)
    with torch.no_grad():
        for parameter in model.parameters():  # an untrained one predicts 0
            parameter.add_(0.02 * torch.randn_like(parameter))
    print(f"{shape.num_layers} layers, {shape.dim} wide, {shape.max_frames} frames, as in the quickstart")
    bench_sampling(model, {"pitch": [60]}, device, rounds)


def bench(size: Size, device: str, rounds: int) -> None:
    """Print the lines of one size."""
    pair = make(size, device)
    network, x, at = pair.ours, pair.x, pair.time
    print(f"{size}, {sum(p.numel() for p in network.parameters()) / 1e6:.0f} M parameters", flush=True)
    with torch.no_grad():
        kept = network.condition(pair.given, 1, keep_keys=True)
        twice = network.condition(join(pair.given, pair.given), 2, keep_keys=True)
        both = torch.cat([x, x]), torch.cat([at, at])

        def plain() -> Tensor:
            return network.predict(x, at, kept)

        difference = float((plain() - pair.of_theirs()).abs().max())
        runs: list[Run] = [pair.of_theirs, plain]
        names = ["diffusers", "ours"]
        if device == "cpu":
            runs.append(products_of(plain))
            names.append("products")
        guided: list[Run] = [lambda: (plain(), plain()), lambda: network.predict(*both, twice)]
        print(line("step", names, measure(runs, rounds, device)) + f", off by {difference:.0e}")
        if device == "cpu":
            packed = [pair.of_theirs, plain]
            with packed_linears(network):
                print(line("step", ["diffusers", "ours, packed"], measure(packed, rounds, device)))
        print(line("guidance", ["two passes", "one batch"], measure(guided, rounds, device)), flush=True)
    if device == "cuda":
        model = DiffusionModel(diffusion_config(network.config, Velocity(sigma_min=0.3, sigma_max=500.0)))
        model.network = network
        bench_sampling(model.to(device), pair.given, device, max(2, rounds // 2))
    pair.theirs.train()
    network.train()
    steps = [
        training_step(pair.theirs, pair.of_theirs, None),
        training_step(pair.theirs, pair.of_theirs, True),
        training_step(network, lambda: network(x, at, pair.given), True),
    ]
    names = ["diffusers", "diffusers, fused", "ours"]
    if device == "cpu":
        steps.append(products_of(lambda: network(x, at, pair.given), backward=True))
        names.append("products")
    print(line("training", names, measure(steps, max(2, rounds // 3), device)), flush=True)


def main() -> None:
    """Measure all sizes, or the small ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="the smaller sizes and few rounds")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    if not on_gpu:
        with contextlib.suppress(RuntimeError):
            torch.set_num_threads(2)
    few = args.quick or on_gpu
    for size in SIZES[:4] if args.quick else SIZES:
        large = size.num_heads * size.num_layers * size.num_frames > 20000
        bench(size, args.device, 4 if large else (10 if few else 20))
    if on_gpu:
        bench_small_sampling(args.device, 10)


if __name__ == "__main__":
    main()
