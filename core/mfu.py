"""Model FLOPs utilisation: the share of a device's peak arithmetic that a model's own operations use.

PaLM, arXiv:2204.02311, appendix B: what activation checkpointing computes twice counts once.
"""

from __future__ import annotations

import re
import sys
import time

import torch
from accelerate import Accelerator

# Dense peak in TFLOP/s of (bf16 and fp16, float32) by the makers' data sheets, and which names it is for. For
# float32 it is that of the plain units, because torch does not use TF32 unless it is told to.
_PEAK_TFLOPS = {
    r"H100 PCIe": (756.0, 51.0),
    r"H100 NVL": (835.0, 60.0),
    r"\bH100 80GB HBM3": (989.0, 67.0),
    r"\bH200$": (989.0, 67.0),
    r"\bA100\b": (312.0, 19.5),
    r"\bL40S$": (362.0, 91.6),
    r"\bL4$": (121.0, 30.3),
    r"\bV100\b": (125.0, 15.7),
    r"\bT4$": (65.0, 8.1),
    r"\bRTX 4090$": (165.2, 82.6),
    r"\bRTX 3090$": (71.0, 35.6),
}


def transformer_flops(
    num_parameters: int, num_layers: int, dim: int, num_steps: int, *, causal: bool = True
) -> float:
    """Floating-point operations of the forward and backward pass of one step of a sequence of `num_steps`.

    6 N + 12 L D S (PaLM, arXiv:2204.02311, appendix B), or half the second term where attention is causal and
    a kernel skips the masked half. `num_parameters` counts those that multiply: not the embeddings.
    """
    return 6.0 * num_parameters + 12.0 * num_layers * dim * num_steps * (0.5 if causal else 1.0)


def mfu_per_speed(accelerator: Accelerator, precision: str, flops_per_unit: float | None) -> float | None:
    """The utilisation at a speed of one unit a second; None where it cannot be told. See `peak_flops`."""
    peak = peak_flops(accelerator, precision) if flops_per_unit else None
    return flops_per_unit / peak if flops_per_unit and peak else None


def peak_flops(accelerator: Accelerator, precision: str) -> float | None:
    """Peak FLOP/s of all processes together, or None where one runs on a device of unknown peak.

    All processes call this together. On a CPU the peak is measured: a matrix product in `precision`, by all
    at once. The first process says what it found.
    """
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        own: float | None = _measure_cpu(torch.float32 if precision == "no" else torch.bfloat16)
    else:
        own = known_peak(name, precision)
    peaks = accelerator.gather(torch.tensor([own or 0.0], dtype=torch.float32, device=device))
    if not bool((peaks > 0).all()):
        _say(accelerator, f"no MFU in the log, because the peak of '{name}' is not known")
        return None
    total = float(peaks.sum())
    how = "measured with a matrix product" if device.type == "cpu" else "by the maker's data sheet"
    _say(accelerator, f"MFU is of {total / 1e12:,.3g} TFLOP/s, the peak of {len(peaks)} x {name} ({how})")
    return total


def known_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU by the name that the driver gives it; None if it is not in the table."""
    for pattern, (half, single) in _PEAK_TFLOPS.items():
        if re.search(pattern, name):
            return 1e12 * (single if precision == "no" else half)
    return None


def _say(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        print(f"train: {text}", file=sys.stderr, flush=True)


def _measure_cpu(dtype: torch.dtype, size: int = 1024) -> float:
    """The best of some products of square matrices."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)
