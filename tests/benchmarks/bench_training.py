"""How long a training step takes, beside `transformers`, for a MusicGen of one shape.

    python tests/benchmarks/bench_training.py [--layers 8] [--dim 512] [--batch 2] [--frames 500]
    python tests/benchmarks/bench_training.py --device cuda --layers 24 --dim 1024 --batch 16 --frames 1500

Both take a step of AdamW on the same codes and text states, with a text encoder left out: the loss of
`MusicgenForCausalLM` under the delay pattern, and Tokkata's of the model imported from it, each in float32
and under bfloat16's autocast, in turn in every round. Printed are the medians of seconds a step, the median
over rounds of the ratio, and the difference between the two losses before the first step. Beside the imported
model, Tokkata's modern default of the same size; on a CPU in float32 also the step's products alone, which no
implementation with PyTorch's products is faster than (`products.py`). On a GPU in bfloat16 alone, also with
blocks compiled as `train.compile` does it, and with the model FLOPs utilisation (`core/mfu.py`) of each.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

from tokkata.core.blocks import prepare_blocks
from tokkata.core.conditions import GivenConditions
from tokkata.core.mfu import known_peak
from tokkata.core.schema import Train
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.benchmarks.products import products_of

TEXT_LENGTH = 20

Step = Callable[[], Tensor]

# Steps that are timed together on a GPU: neither training loop waits for it after each of them.
TOGETHER = 4


def musicgen(num_layers: int, dim: int) -> MusicgenForCausalLM:
    """A decoder with random weights, with cross-attention to states of its own width."""
    torch.manual_seed(0)
    config = MusicgenDecoderConfig(
        num_hidden_layers=num_layers,
        hidden_size=dim,
        ffn_dim=4 * dim,
        num_attention_heads=dim // 64,
        dropout=0.0,
    )
    return MusicgenForCausalLM(config)


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """The same optimizer for all, in the form that recipes and `transformers`' own trainer use."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bfloat16's, or none."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def theirs(model: MusicgenForCausalLM, codes: Tensor, states: Tensor, precision: str) -> Step:
    """A step with `transformers`; its labels are the delayed codes, and it shifts them itself."""
    optimizer = adamw(model)
    special = model.config.pad_token_id
    num_codebooks, num_frames = codes.shape[1:]
    labels = torch.full((codes.shape[0], num_frames + num_codebooks - 1, num_codebooks), special)
    for k in range(num_codebooks):
        labels[:, k : k + num_frames, k] = codes[:, k].cpu()
    inputs = torch.full_like(labels, special)
    inputs[:, 1:] = labels[:, :-1]
    inputs = inputs.transpose(1, 2).flatten(0, 1).contiguous().to(codes.device)  # [B · K, S]
    labels = labels.to(codes.device)

    def step() -> Tensor:
        with autocast(codes.device, precision):
            loss = model(input_ids=inputs, encoder_hidden_states=states, labels=labels, use_cache=False).loss
        return update(loss, optimizer)

    return step


def ours(lm: TransformerLM, codes: Tensor, given: GivenConditions, precision: str) -> Step:
    """A step with Tokkata."""
    optimizer = adamw(lm)

    def step() -> Tensor:
        with autocast(codes.device, precision):
            loss = lm(codes, given).mean
        return update(loss, optimizer)

    return step


def products(lm: TransformerLM, codes: Tensor, given: GivenConditions) -> Step:
    """The matrix products and attentions of a step, forward and backward, and nothing else."""
    replay = products_of(lambda: lm(codes, given), backward=True)

    def step() -> Tensor:
        replay()
        return torch.zeros(())

    return step


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Gradients and weights; returns the loss."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def seconds(step: Step, device: torch.device) -> float:
    """Of one step."""
    count = TOGETHER if device.type == "cuda" else 1
    begin = time.perf_counter()
    losses = [step() for _ in range(count)]
    losses[-1].item()  # waits for the device
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, short clips")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.frames = 2, 150
    device = torch.device(args.device)
    print(f"{os.uname().machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    with device:  # where weights of this size are drawn in no time
        model = musicgen(args.layers, args.dim).train()
        lm = TransformerLM.from_musicgen(model).to(device).train()
        modern = TransformerLM(
            TransformerConfig(
                num_codebooks=lm.config.num_codebooks,
                codebook_size=lm.config.codebook_size,
                frame_rate=lm.config.frame_rate,
                conditions=lm.config.conditions,
                dim=args.dim,
                num_layers=args.layers,
                num_heads=args.dim // 64,
            )
        ).train()
    codes = torch.randint(0, 2048, (args.batch, 4, args.frames), device=device)
    states = torch.randn(args.batch, TEXT_LENGTH, args.dim, device=device)
    given = lm.config.conditions.encode({"text": list(states.cpu())})
    given = {name: one.to(device) for name, one in given.items()}
    print(f"{args.layers} layers of {args.dim}, {args.batch} clips of {args.frames} frames, 4 codebooks")
    models = {"Tokkata": lm, "modern default": modern}
    is_gpu = device.type == "cuda"
    for precision in ("bf16",) if is_gpu else ("fp32", "bf16"):
        peer = theirs(model, codes, states, precision)
        steps = {name: ours(one, codes, given, precision) for name, one in models.items()}
        difference = float(abs(peer() - steps["Tokkata"]()))
        print(f"{precision}; |Δ loss| before the first step {difference:.1e}")
        if precision == "fp32" and not is_gpu:
            steps["products alone"] = products(lm, codes, given)
        compare(peer, steps, models, args)
    if is_gpu:  # apart, because it takes its time to compile
        models = {f"{name}, compiled": compiled(one) for name, one in models.items()}
        steps = {name: ours(one, codes, given, "bf16") for name, one in models.items()}
        compare(peer, steps, models, args)


def compare(
    peer: Step, steps: dict[str, Step], models: dict[str, TransformerLM], args: argparse.Namespace
) -> None:
    """Print the lines of these models, which take turns with `transformers`."""
    steps = {"transformers": peer, **steps}
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds):
        order = list(steps)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            taken[name].append(seconds(steps[name], torch.device(args.device)))
    print(f"  {'transformers':<24} {median(taken['transformers']):.3f} s", flush=True)
    for name in list(steps)[1:]:
        ratio = median(a / b for a, b in zip(taken["transformers"], taken[name], strict=True))
        used = utilisation(models[name], args, taken[name]) if name in models else ""
        print(f"  {name:<24} {median(taken[name]):.3f} s {ratio:.2f}×{used}", flush=True)


def compiled(lm: TransformerLM) -> TransformerLM:
    """A copy whose blocks are compiled."""
    lm = copy.deepcopy(lm)
    prepare_blocks([lm], Train(steps=1, batch_size=1, crop_s=1.0, lr=1e-4, compile=True))
    return lm


def utilisation(lm: TransformerLM, args: argparse.Namespace, taken: list[float]) -> str:
    """The share of a GPU's peak that a step's own operations use."""
    if lm.device.type != "cuda":
        return ""
    peak = known_peak(torch.cuda.get_device_name(), "bf16")
    if peak is None:
        return ", MFU unknown: so is the peak of this GPU"
    flops = args.batch * lm.clip_flops(args.frames, {"text": TEXT_LENGTH})
    return f", MFU {100 * flops / median(taken) / peak:.1f} %"


if __name__ == "__main__":
    main()
