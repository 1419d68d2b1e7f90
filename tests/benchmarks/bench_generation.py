"""How long a frame takes to generate, beside `transformers`, on the same weights.

    python tests/benchmarks/bench_generation.py [--quick] [--rounds 3] [--device cuda] [--weights fp32 bf16]

A MusicGen of the shape of `small` (24 layers of 1024, 16 heads, 4 codebooks of 2048, text of 768) with random
weights is run by `transformers` and, imported, by Tokkata: greedily, after texts of one length, contestants
in turn in every round. Printed are the medians of milliseconds a frame, and the ratios to `transformers` of
the same round. What is done once is left out: reading weights into another format, and the first frames. On a
GPU `transformers` runs in bfloat16 too, and ratios are to the same format; beside our kernels stands the same
graph of PyTorch's own ("plain").

Then, for each number format alone: frames at the end of 30 s beside some near the beginning, and how far they
are from the least that they could take, the bytes of the weights and of the filled cache over the bandwidth
that this process reads memory with.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from tokkata.lm.decoders.decoder import Weights
from tokkata.lm.decoders.gpu.graph_decoder import GraphTransformer
from tokkata.lm.generate import Generator
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerLM

TEXT_LENGTH = 20
NUM_STRETCHES = 7  # timed, of late frames and of early ones
SETTINGS = {  # batch size, guidance
    "batch 1, CFG 3": (1, 3.0),
    "batch 1, no CFG": (1, 1.0),
    "batch 8, CFG 3": (8, 3.0),
}


def musicgen(num_layers: int, dim: int) -> MusicgenForConditionalGeneration:
    """A MusicGen with random weights; its text encoder and codec are tiny, and take no part."""
    torch.manual_seed(0)
    config = MusicgenConfig(
        text_encoder=T5Config(
            d_model=768, num_layers=1, num_heads=1, d_ff=8, d_kv=8, vocab_size=16
        ).to_dict(),
        audio_encoder=EncodecConfig(
            sampling_rate=32000,
            target_bandwidths=[2.2],
            codebook_size=2048,
            num_filters=4,
            hidden_size=8,
            codebook_dim=8,
            num_lstm_layers=1,
            upsampling_ratios=[8, 5, 4, 4],
        ).to_dict(),
        decoder=MusicgenDecoderConfig(
            num_hidden_layers=num_layers,
            hidden_size=dim,
            ffn_dim=4 * dim,
            num_attention_heads=dim // 64,
            dropout=0.0,
        ).to_dict(),
    )
    return MusicgenForConditionalGeneration(config).eval()


def theirs(model: MusicgenForConditionalGeneration, batch_size: int, scale: float) -> Callable[[int], object]:
    """Generate some frames with `transformers`."""
    num_delays = model.config.decoder.num_codebooks
    text = torch.ones(batch_size, TEXT_LENGTH, dtype=torch.int64, device=model.device)

    def run(num_frames: int) -> None:
        model.generate(
            inputs=text,
            attention_mask=text,
            do_sample=False,
            guidance_scale=scale,
            max_new_tokens=num_frames + num_delays - 1,
        )

    return run


def ours(generator: Generator, batch_size: int, scale: float) -> Callable[[int], object]:
    """Generate some frames with Tokkata."""
    conditions = {"text": list(torch.randn(batch_size, TEXT_LENGTH, 768))}
    sampling = Sampling(temperature=0.0, cfg_scale=scale)
    return lambda num_frames: generator.generate(num_frames, conditions=conditions, sampling=sampling)


def ms_a_frame(run: Callable[[int], object], few: int, many: int) -> float:
    """Between two lengths, so that what is done once counts for nothing."""
    times = []
    for num_frames in (few, many):
        synchronise()
        begin = time.perf_counter()
        run(num_frames)
        synchronise()
        times.append(time.perf_counter() - begin)
    return (times[1] - times[0]) / (many - few) * 1e3


def synchronise() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bandwidth(x: torch.Tensor) -> float:
    """Bytes a second that a sum of `x` reads."""
    synchronise()
    begin = time.perf_counter()
    x.sum()
    synchronise()
    return x.nbytes / (time.perf_counter() - begin)


def compare(
    models: dict[Weights, MusicgenForConditionalGeneration],
    generators: dict[str, Generator],
    rounds: int,
    frames: tuple[int, int],
) -> None:
    """The table of ratios: to `transformers` in the same format, or in fp32 where it has no other."""
    few, many = frames
    print(
        f"milliseconds a frame over frames {few} to {many}, medians of {rounds} rounds; ratio to transformers"
    )
    titles = [f"transformers {weights}" for weights in models]
    print(f"| {'':<16} | " + " | ".join([*titles, *(f"{name:>14}" for name in generators)]) + " |")
    for name, (batch_size, scale) in SETTINGS.items():
        contestants: dict[str, Callable[[int], object]] = {
            title: theirs(model, batch_size, scale)
            for title, model in zip(titles, models.values(), strict=True)
        }
        contestants |= {w: ours(generator, batch_size, scale) for w, generator in generators.items()}
        for run in contestants.values():
            run(few)
            run(many)
        taken: dict[str, list[float]] = {contestant: [] for contestant in contestants}
        for number in range(rounds):
            order = list(contestants)
            for contestant in order[number % len(order) :] + order[: number % len(order)]:
                taken[contestant].append(ms_a_frame(contestants[contestant], few, many))
        cells = [f"{median(taken[title]):.1f}".rjust(len(title)) for title in titles]
        for contestant in generators:
            weights = contestant.split()[0]
            peer = f"transformers {weights if weights in models else 'fp32'}"
            ratios = [a / b for a, b in zip(taken[peer], taken[contestant], strict=True)]
            cells.append(f"{median(taken[contestant]):.2f} ({median(ratios):.2f}×)".rjust(14))
        print(f"| {name:<16} | " + " | ".join(cells) + " |", flush=True)


def alone(lm: TransformerLM, generators: dict[str, Generator], device: torch.device, num_frames: int) -> None:
    """The table of each number format's own figures, batch 1 with guidance.

    Early and late frames and a plain read take turns: what else the machine does changes within seconds.
    """
    print(f"\nbatch 1, CFG 3; medians of {NUM_STRETCHES} times {num_frames} frames")
    print(
        "| weights | ms at frame 100 | at frame 1400 | late / early | GB read late | GB/s | over the least |"
    )
    conditions = {"text": [torch.randn(TEXT_LENGTH, 768)]}
    numbers = torch.ones(2**28, device=device)
    for name, generator in generators.items():
        weights: Weights = name.split()[0]  # type: ignore[assignment]
        streams = [stretches(generator, at, conditions, num_frames) for at in (100, 1400)]
        for stream in streams:
            next(stream)
        early, late, read = [], [], []
        for _ in range(NUM_STRETCHES):
            for times, stream in zip((early, late), streams, strict=True):
                synchronise()
                begin = time.perf_counter()
                next(stream)
                synchronise()
                times.append((time.perf_counter() - begin) / num_frames * 1e3)
            read.append(max(bandwidth(numbers) for _ in range(3)))
        num_bytes = [bytes_a_step(lm, weights, at, 2) for at in (100, 1400)]
        over = [
            median(ms * rate / (size * 1e3) for ms, rate in zip(times, read, strict=True))
            for times, size in zip((early, late), num_bytes, strict=True)
        ]
        ratio = median(b / a for a, b in zip(early, late, strict=True))
        print(
            f"| {name} | {median(early):.2f} | {median(late):.2f} | {ratio:.2f} | {num_bytes[1] / 1e9:.2f} |"
            f" {median(read) / 1e9:.1f} | {over[0]:.2f} (100), {over[1]:.2f} (1400) |",
            flush=True,
        )


def stretches(
    generator: Generator, num_prompt: int, conditions: dict[str, list[torch.Tensor]], num_frames: int
) -> Iterator[torch.Tensor]:
    """Frames after a prompt, `num_frames` at a time; the first of these stretches includes the prompt."""
    config = generator.config
    prompt = torch.randint(0, config.codebook_size, (1, config.num_codebooks, num_prompt))
    return generator.stream(
        num_prompt + (1 + NUM_STRETCHES) * num_frames,
        chunk_frames=num_frames,
        prompt=prompt,
        conditions=conditions,
        sampling=Sampling(temperature=0.0, cfg_scale=3.0),
    )


def bytes_a_step(lm: TransformerLM, weights: Weights, length: int, num_rows: int) -> float:
    """What a step cannot avoid to read: the weights of all matrices, and the filled part of the cache."""
    size = {"fp32": 4, "bf16": 2, "int8": 1}[weights]
    config = lm.config
    # The memory's keys and values are computed once, so that matrix is not read.
    once = sum(p.numel() for name, p in lm.named_parameters() if "key_value" in name or "conditioner" in name)
    matrices = sum(p.numel() for name, p in lm.named_parameters() if p.ndim == 2) - once
    matrices -= lm.token_embedding.weight.numel()
    # Keys and values are kept in float32 or in int8 (on a GPU in the format of the weights).
    cached = size if weights == "fp32" or lm.device.type == "cuda" else 1
    cache = 2 * config.num_layers * config.kv_heads * config.head_dim * length * num_rows
    return float(size * matrices + cached * cache)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, few frames")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", nargs="+", choices=["fp32", "bf16", "int8"], help="these alone")
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device(args.device)
    print(f"{os.uname().machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    with device:  # where weights of this size are drawn in no time
        model = musicgen(args.layers, args.dim).to(device)
    lm = TransformerLM.from_musicgen(model).to(device)
    formats: list[Weights] = ["fp32", "bf16"] if device.type == "cuda" else ["fp32", "bf16", "int8"]
    formats = [weights for weights in formats if weights in (args.weights or formats)]
    generators: dict[str, Generator] = {}
    for weights in formats:
        begin = time.perf_counter()
        generators[weights] = Generator(lm, weights=weights)
        print(f"{weights}: weights ready in {time.perf_counter() - begin:.1f} s")
    for weights in formats if device.type == "cuda" else []:
        generators[f"{weights} plain"] = plain = copy.copy(generators[weights])
        prepared = plain._prepared
        assert isinstance(prepared, GraphTransformer)
        plain._prepared = GraphTransformer(prepared.lm, use_kernels=False)
    is_gpu = device.type == "cuda"
    models: dict[Weights, MusicgenForConditionalGeneration] = {}
    if "fp32" in formats or not is_gpu:
        models["fp32"] = model
    if is_gpu and "bf16" in formats:
        models["bf16"] = copy.deepcopy(model).to(torch.bfloat16)
    more = 64 if is_gpu else 16 if args.quick else 32
    compare(models, generators, 1 if args.quick else args.rounds, (4, 4 + more))
    del model, models
    alone(lm, generators, device, 48 if is_gpu else 4 if args.quick else 12)


if __name__ == "__main__":
    main()
