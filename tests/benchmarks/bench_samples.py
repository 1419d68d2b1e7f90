"""How fast models of single samples generate, beside slower ways to do the same with the same weights.

    make bench                                             (all of it, three minutes)
    python tests/benchmarks/bench_samples.py --quick       (a third of that)
    python tests/benchmarks/bench_samples.py --device cuda

Models of the published sizes and the CPU-sized ones get random weights; nothing is downloaded. Contenders:

    full forward   the whole network over its receptive field for every sample (WaveNet without a cache)
    eager          the same cache and operations, one PyTorch call each; the fastest of the loops below
    ours           what `generate` runs: blocks of samples in the compiled kernel, weights in fp32 or bf16; on
                   a GPU graphs of some steps that are replayed, weights in fp32

Every contender does a block of samples before any of them does the next, so that what else the machine does
hits them alike. Printed are medians of the rounds, and medians of the ratios within a round; samples/s are
those of all clips of a batch, and `a clip` those of each.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from tokkata.core.schema_models import WAVENET_PRESETS
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.step_decoder import prepare_program
from tokkata.lm.decoders.step_program import Program
from tokkata.lm.decoders.step_program_torch import GRAPH_STEPS, TorchExecutor
from tokkata.lm.sampling import Sampling
from tokkata.lm.step_models.samplernn import SampleRNN, SampleRNNConfig
from tokkata.lm.step_models.step_model import StepModel
from tokkata.lm.step_models.wavenet import Layer, WaveNet, WaveNetConfig

RATE = 16000
CODEC = {"num_codebooks": 1, "codebook_size": 256, "frame_rate": float(RATE)}
BATCHES = (1, 16)
MORE_BATCHES = (64, 256)
"""On a GPU, for ours alone: a loop of PyTorch calls takes as long for any batch."""
GPU_STEPS = 16384
"""On a GPU, the most steps of a contender in all rounds: preparing one takes too long to do it twice."""
CONSOLE = Console(width=130)


def wavenet(**shape: int) -> WaveNet:
    return WaveNet(WaveNetConfig.for_codec(CODEC, **shape)).eval()


def samplernn(**shape: int) -> SampleRNN:
    return SampleRNN(SampleRNNConfig.for_codec(CODEC, **shape)).eval()


MODELS: dict[str, Callable[[], StepModel]] = {
    "WaveNet small": lambda: wavenet(**WAVENET_PRESETS["small"]),
    "WaveNet large": lambda: wavenet(**WAVENET_PRESETS["large"]),
    "WaveNet, CPU-sized": wavenet,
    "SampleRNN, 3 tiers of 1024": samplernn,
    "SampleRNN, 3 tiers of 256": lambda: samplernn(dim=256, embedding_dim=64),
}


def draft_of(batch_size: int, num_steps: int, device: torch.device) -> Draft:
    """Clips of which nothing is known."""
    return Draft(
        tokens=torch.full((batch_size, 1, num_steps + 1), 256, device=device),
        to_sample=torch.ones(batch_size, 1, num_steps, dtype=torch.bool, device=device),
        noise=1 - torch.rand(batch_size, 1, num_steps, device=device),
        sampling=Sampling(),
    )


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Ours:
    """Blocks of samples in the compiled kernel, or as graphs."""

    def __init__(self, lm: StepModel, batch_size: int, weights: str, num_steps: int) -> None:
        prepared = prepare_program(lm, weights)  # type: ignore[arg-type]
        self.decoder = prepared.decoder({}, batch_size, num_steps)
        self.draft = draft_of(batch_size, num_steps, lm.device)

    def __call__(self, num_steps: int) -> None:
        start = self.decoder.num_seen
        self.decoder.run(self.draft, start, start + num_steps)


class EagerProgram:
    """The program's operations, one PyTorch call after another."""

    def __init__(self, program: Program, lm: StepModel, batch_size: int, num_steps: int) -> None:
        self.executor = TorchExecutor(program, batch_size, lm.initial_state({}, batch_size), lm.device)
        self.draft = draft_of(batch_size, num_steps, lm.device)
        self.step = 0

    def __call__(self, num_steps: int) -> None:
        self.executor.run(self.draft.tokens, self.step, self.step + num_steps, self.step, self.draft)
        self.step += num_steps


class EagerWaveNet:
    """A loop written by hand: ring buffers, no new tensors, two products for the taps of a kernel of 2."""

    def __init__(self, lm: WaveNet, batch_size: int, num_steps: int) -> None:
        config, device = lm.config, lm.device
        self.draft = draft_of(batch_size, num_steps, device)
        self.step = 0
        self.table = lm.table[:, 0]
        channels, gate = config.residual_channels, config.gate_channels
        self.num_taps, self.gate = config.kernel_size, gate
        self.layers = []
        for layer, dilation in zip(lm.blocks, config.dilations, strict=True):
            assert isinstance(layer, Layer)
            num_slots = (config.kernel_size - 1) * dilation + 1
            ring = torch.zeros(num_slots, batch_size, channels, device=device)
            taps = [one.T.contiguous() for one in layer.taps.weight.split(channels, dim=1)]
            residual = layer.residual
            self.layers.append(
                (
                    ring,
                    dilation,
                    taps,
                    layer.taps.bias,
                    None if residual is None else residual.weight.T.contiguous(),
                    None if residual is None else residual.bias,
                )
            )
        self.y = torch.zeros(batch_size, 2 * gate, device=device)
        self.z = torch.zeros(batch_size, len(self.layers) * gate, device=device)
        self.skip = torch.cat([layer.skip.weight for layer in lm.blocks], dim=1).T.contiguous()  # type: ignore[union-attr]
        self.skip_bias = torch.stack([layer.skip.bias for layer in lm.blocks]).sum(0)  # type: ignore[union-attr]
        self.head = [(one.weight.T.contiguous(), one.bias) for one in lm.head]  # type: ignore[union-attr]

    def __call__(self, num_steps: int) -> None:
        tokens, gate = self.draft.tokens[:, 0], self.gate
        for step in range(self.step, self.step + num_steps):
            x = self.table[0][tokens[:, step]]
            for j in range(1, self.num_taps):
                x = x + self.table[j][tokens[:, step - j] if step >= j else tokens[:, 0]]
            for i, (ring, dilation, taps, bias, residual, residual_bias) in enumerate(self.layers):
                slots = len(ring)
                ring[step % slots] = x
                torch.addmm(bias, x, taps[-1], out=self.y)
                for j in range(1, self.num_taps):
                    self.y.addmm_(ring[(step - j * dilation) % slots], taps[-1 - j])
                z = self.z[:, i * gate : (i + 1) * gate]
                torch.mul(self.y[:, :gate].tanh_(), self.y[:, gate:].sigmoid_(), out=z)
                if residual is not None:
                    x = torch.addmm(residual_bias, z, residual).add_(x)
            hidden = torch.addmm(self.skip_bias, self.z, self.skip).relu_()
            (first, first_bias), (last, last_bias) = self.head
            logits = torch.addmm(last_bias, torch.addmm(first_bias, hidden, first).relu_(), last)
            tokens[:, step + 1] = self.draft.sampling(logits, self.draft.noise[:, 0, step])
        self.step += num_steps


class FullForward:
    """The network over its receptive field, for one sample each time."""

    def __init__(self, lm: WaveNet) -> None:
        self.lm = lm
        self.tokens = torch.randint(0, 256, (1, 1, lm.config.receptive_field), device=lm.device)

    def __call__(self, num_steps: int) -> None:
        for _ in range(num_steps):
            logits = self.lm.logits(self.tokens)[:, 0, -1]
            Sampling()(logits, torch.rand(1, device=logits.device))


@dataclass
class Contender:
    """One way to generate."""

    name: str
    run: Callable[[int], None]
    batch_size: int
    block: int
    """Steps in a round."""
    speeds: list[float]
    """Samples a second, of each round."""


def contenders_of(lm: StepModel, num_rounds: int, seconds: float) -> list[Contender]:
    """All that can be asked of a model, with blocks that take about `seconds` each."""
    on_gpu = lm.device.type == "cuda"
    program = lm.step_program()
    # What is left over after the last whole graph would run step by step.
    multiple = -(-GRAPH_STEPS // program.period) * program.period if on_gpu else 1
    limit = ((GPU_STEPS if on_gpu else 4_000_000) // (num_rounds + 2)) // multiple * multiple

    def made(name: str, make: Callable[[int], Callable[[int], None]], batch_size: int) -> Contender:
        unit = multiple if name.startswith("ours") else 1
        warm_up, num_tried = (3, 2 if name == "full forward" else 20) if unit == 1 else (unit, 2 * unit)
        trial = make(GPU_STEPS if on_gpu else 400)
        trial(warm_up)
        synchronise(lm.device)
        start = time.perf_counter()
        trial(num_tried)
        synchronise(lm.device)
        each = (time.perf_counter() - start) / num_tried
        block = unit * max(1 if unit > 1 else 2, min(limit // unit, round(seconds / each / unit)))
        # One that took its trial's steps is no other on a GPU, and has space for the rounds' still.
        run = trial if on_gpu else make((num_rounds + 1) * block)
        return Contender(name, run, batch_size, block, [])

    found = []
    if isinstance(lm, WaveNet):
        found.append(made("full forward", lambda _: FullForward(lm), 1))
    for batch_size in BATCHES + (MORE_BATCHES if on_gpu else ()):
        if batch_size in BATCHES:
            found.append(
                made("eager", lambda n, b=batch_size: EagerProgram(program, lm, b, n), batch_size)  # type: ignore[misc]
            )
        if isinstance(lm, WaveNet) and batch_size in BATCHES:
            found.append(
                made("eager by hand", lambda n, b=batch_size: EagerWaveNet(lm, b, n), batch_size)  # type: ignore[misc]
            )
        for weights in ("fp32",) if on_gpu else ("fp32", "bf16"):
            found.append(
                made(
                    f"ours, {weights}",
                    lambda n, b=batch_size, w=weights: Ours(lm, b, w, n),  # type: ignore[misc]
                    batch_size,
                )
            )
    return found


def ratio(one: list[float], other: list[float]) -> str:
    """The median of the rounds' ratios."""
    return f"{statistics.median(a / b for a, b in zip(one, other, strict=True)):,.1f} ×"


def bench(name: str, lm: StepModel, num_rounds: int, seconds: float) -> None:
    """Print a model's table."""
    contenders = contenders_of(lm, num_rounds, seconds)
    for one in contenders:
        one.run(one.block)
    synchronise(lm.device)
    for _ in range(num_rounds):
        for one in contenders:
            start = time.perf_counter()
            one.run(one.block)
            synchronise(lm.device)
            one.speeds.append(one.batch_size * one.block / (time.perf_counter() - start))
    table = Table(title=f"{name}: {sum(p.numel() for p in lm.parameters()) / 1e6:.2f} M parameters")
    for heading in (
        "",
        "batch",
        "samples/s",
        "× real time",
        "a clip",
        "full forward",
        "fastest eager",
        "batch of 1",
    ):
        table.add_column(heading, justify="left" if heading == "" else "right")
    by_key = {(one.name, one.batch_size): one.speeds for one in contenders}
    for one in contenders:
        speed = statistics.median(one.speeds)
        eager = [speeds for (n, b), speeds in by_key.items() if b == one.batch_size and n.startswith("eager")]
        fastest = [max(of_round) for of_round in zip(*eager, strict=True)]
        is_ours = one.name.startswith("ours")
        full = by_key.get(("full forward", 1))
        table.add_row(
            one.name,
            str(one.batch_size),
            f"{speed:,.0f}",
            f"{speed / RATE:.3g}",
            f"{speed / one.batch_size:,.0f}",
            ratio(one.speeds, full) if is_ours and full else "",
            ratio(one.speeds, fastest) if is_ours and fastest else "",
            ratio(one.speeds, by_key[(one.name, 1)]) if is_ours and one.batch_size > 1 else "",
        )
    CONSOLE.print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="*", choices=[*MODELS], default=[*MODELS])
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    num_rounds, seconds = (3, 0.15) if options.quick else (5, 0.4)
    if on_gpu:
        num_rounds, seconds = 3, 0.04 if options.quick else 0.08
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    CONSOLE.print(
        f"{where}; real time is {RATE:,} samples/s; the last columns are how many times as fast as these"
    )
    torch.manual_seed(0)
    for name in options.models:
        lm = MODELS[name]().to(options.device)
        with torch.inference_mode():
            bench(name, lm, num_rounds, seconds)


if __name__ == "__main__":
    main()
