"""How long a frame takes on a GPU with each of the ways to make a step, by the number of rows.

    python tests/benchmarks/bench_steps.py

A Transformer of the shape of MusicGen small (24 layers of 1024, text of 20 states of 768), in MusicGen's form
and in the modern default's, random weights in bfloat16: one kernel for the step (`resident_step.py`), and
some Triton kernels a layer (`triton_step.py`). Printed are milliseconds a frame, sampling included, over
frames 40 to 168 and 1375 to 1500, and in brackets how often that is the least that they could take: the bytes
of the weights and of the filled cache over the bandwidth that `torch.sum` reads memory with. PyTorch's own
kernels stand in `bench_generation.py`.
"""

from __future__ import annotations

import time

import torch

from tokkata.core.conditions import Condition, Conditions
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.gpu.fused_step import FusedStep
from tokkata.lm.decoders.gpu.graph_decoder import GraphDecoder
from tokkata.lm.decoders.gpu.resident_step import ResidentStep
from tokkata.lm.decoders.gpu.triton_step import TritonStep
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.benchmarks.bench_generation import bandwidth, bytes_a_step

MUSICGEN = {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False}
NUM_STEPS = 1503
SPANS = (40, 168), (1375, 1500)


def model(style: dict[str, object]) -> TransformerLM:
    """With random weights."""
    text = Condition("text", "sequence", "cross", width=768)
    config = TransformerConfig(
        num_codebooks=4,
        codebook_size=2048,
        frame_rate=50.0,
        conditions=Conditions((text,)),
        dim=1024,
        num_layers=24,
        num_heads=16,
        **style,  # type: ignore[arg-type]
    )
    with torch.device("cuda"):
        return TransformerLM(config).to(torch.bfloat16).eval()


def milliseconds(lm: TransformerLM, kind: type[FusedStep], num_rows: int) -> list[float]:
    """A frame, in each of the spans."""
    given = lm.config.conditions.encode({"text": [torch.randn(20, 768)] * num_rows})
    decoder = GraphDecoder(lm, num_rows, NUM_STEPS, kind, lambda decoder: None)
    decoder.start({name: one.to(lm.device) for name, one in given.items()})
    tokens = torch.randint(0, 2048, (num_rows, 4, NUM_STEPS + 1), device=lm.device)
    noise = torch.ones(num_rows, 4, NUM_STEPS, device=lm.device)
    draft = Draft(tokens, torch.zeros_like(noise, dtype=torch.bool), noise, Sampling(0.0))
    decoder.run(draft, 0, 10)
    found = []
    for start, stop in SPANS:
        decoder.run(draft, start - 5, start)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        decoder.run(draft, start, stop)
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begin) / (stop - start) * 1e3)
    return found


@torch.inference_mode()
def main() -> None:
    """Run all."""
    numbers = torch.ones(2**28, device="cuda")
    rate = max(bandwidth(numbers) for _ in range(10))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rate / 1e9:.0f} GB/s")
    for name, style in (("MusicGen", MUSICGEN), ("modern default", {})):
        lm = model(style)
        for num_rows in (1, 2, 4, 8):
            for kind in (ResidentStep, TritonStep):
                if kind.can_run(lm, num_rows):
                    found = []
                    for ms, span in zip(milliseconds(lm, kind, num_rows), SPANS, strict=True):
                        least = bytes_a_step(lm, "bf16", sum(span) // 2, num_rows) / rate * 1e3
                        found.append(f"{ms:.3f} ({ms / least:.2f}×)")
                    print(f"{name}, {num_rows} rows, {kind.__name__}:", *found, flush=True)


if __name__ == "__main__":
    main()
