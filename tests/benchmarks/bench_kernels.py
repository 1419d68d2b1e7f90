"""How fast the kernels of a decoding step read memory, beside PyTorch's operations and a plain sum.

    python tests/benchmarks/bench_kernels.py [--rows 1 2 4 8 16] [--lengths 100 700 1400] [--rounds 7]

Products are those of 48 matrices of 4096 × 1024, one after another as in a step; attention is that of 24
layers of 16 heads of 64. Printed are the best time of some rounds and the bytes of weights, or of filled
cache, that this makes a second. A sum over 800 MB, taken before and after, says what the machine gives.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokkata.lm.decoders.transformer_kernel import Attend, KVBuffers, Linear, Panels, Step

NUM_MATRICES, OUTPUTS, INPUTS = 48, 4096, 1024
NUM_LAYERS, HEADS, HEAD_DIM = 24, 16, 64
FORMATS = ("fp32", "bf16", "int8")


def best_s(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def told(name: str, seconds: float, num_bytes: float) -> None:
    """Print a line of the table."""
    print(f"{name:44} {seconds * 1e3:8.2f} ms {num_bytes / seconds / 1e9:7.1f} GB/s", flush=True)


def bench_sum(rounds: int) -> None:
    """What a plain read gives."""
    numbers = torch.ones(200_000_000)
    told("sum", best_s(numbers.sum, rounds), numbers.nbytes)


def bench_products(rows: list[int], rounds: int) -> None:
    """Ours, and `F.linear` with weights and activations of the same format."""
    matrices = [torch.randn(OUTPUTS, INPUTS) / INPUTS**0.5 for _ in range(NUM_MATRICES)]
    for weights in FORMATS:
        stored = [Panels.pack(matrix, weights) for matrix in matrices]
        num_bytes = sum(one.num_bytes for one in stored)
        for num_rows in rows:
            x, out = torch.randn(num_rows, INPUTS), torch.empty(num_rows, OUTPUTS)
            step = Step([Linear(x, out, one) for one in stored], num_rows)
            told(f"product, {weights}, {num_rows} rows", best_s(step.run, rounds), num_bytes)
            if weights == "int8":
                continue
            data = [one.rows().data for one in stored]
            inputs = x.to(data[0].dtype)
            seconds = best_s(lambda data=data, inputs=inputs: [F.linear(inputs, w) for w in data], rounds)
            told(f"    F.linear, {weights}, {num_rows} rows", seconds, num_bytes)


def bench_attention(rows: list[int], lengths: list[int], rounds: int) -> None:
    """Ours, and `scaled_dot_product_attention` over the same filled part of an fp32 cache."""
    for weights in FORMATS:
        for num_rows in rows:
            counts = torch.zeros(num_rows, dtype=torch.int64)
            shape = num_rows, HEADS, max(lengths) + 1, HEAD_DIM
            caches = [KVBuffers(*shape, weights, counts) for _ in range(NUM_LAYERS)]
            for cache in caches:
                cache.fill(*torch.randn(2, *shape))
            x, out = torch.randn(num_rows, 3 * HEADS * HEAD_DIM), torch.empty(num_rows, HEADS * HEAD_DIM)
            step = Step([Attend(x, out, cache, HEADS, append=True) for cache in caches], num_rows)
            for length in lengths:
                counts.fill_(length)
                per_cache = caches[0].keys.num_bytes + caches[0].values.num_bytes
                num_bytes = NUM_LAYERS * per_cache * length / shape[2]
                told(f"attention, {weights}, {num_rows} rows, {length}", best_s(step.run, rounds), num_bytes)
                if weights != "fp32":
                    continue
                pairs = [(c.keys.data[:, :, :length], c.values.data[:, :, :length]) for c in caches]
                q = x[:, : HEADS * HEAD_DIM].view(num_rows, HEADS, 1, HEAD_DIM)
                seconds = best_s(
                    lambda q=q, pairs=pairs: [F.scaled_dot_product_attention(q, k, v) for k, v in pairs],
                    rounds,
                )
                told(f"    SDPA, {weights}, {num_rows} rows, {length}", seconds, num_bytes)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 700, 1400])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads")
    with torch.inference_mode():
        bench_sum(options.rounds)
        bench_products(options.rows, options.rounds)
        bench_attention([rows for rows in options.rows if rows <= 2], options.lengths, options.rounds)
        bench_sum(options.rounds)


if __name__ == "__main__":
    main()
