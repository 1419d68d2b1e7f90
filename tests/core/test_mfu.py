"""Model FLOPs utilisation: counted like torch counts, divided by the right peak."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokkata.core import mfu
from tokkata.core.files import read_jsonl
from tokkata.core.mfu import known_peak, peak_flops, transformer_flops
from tokkata.tests.core.toy_training import Toy, settings, train_toy

pytestmark = pytest.mark.usefixtures("on_the_cpu")


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)


def test_transformer_flops_are_those_that_torch_counts():
    dim, num_steps, num_layers, batch_size = 16, 24, 3, 2
    net = nn.Sequential(*(Attention(dim) for _ in range(num_layers)))
    x = torch.ones(batch_size, num_steps, dim, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    num_parameters = sum(p.numel() for p in net.parameters())
    whole = transformer_flops(num_parameters, num_layers, dim, num_steps, causal=False)
    assert counter.get_total_flops() == batch_size * num_steps * whole
    half = transformer_flops(num_parameters, num_layers, dim, num_steps)
    assert whole - half == 6 * num_layers * dim * num_steps


def test_known_peaks():
    """By the names that drivers give; a part of another name is no match."""
    assert known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert known_peak("NVIDIA H100 PCIe", "bf16") == 756e12
    assert known_peak("NVIDIA A100-SXM4-80GB", "no") == 19.5e12
    assert known_peak("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert known_peak("NVIDIA L4", "bf16") == 121e12
    for name in ("NVIDIA L40", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A10", "NVIDIA GH200 480GB"):
        assert known_peak(name, "bf16") is None


def test_a_device_of_unknown_peak_is_told(monkeypatch, capsys):
    monkeypatch.setattr(mfu, "_measure_cpu", lambda dtype: 0.0)
    assert peak_flops(Accelerator(), "no") is None
    assert capsys.readouterr().err == "train: no MFU in the log, because the peak of 'cpu' is not known\n"


def test_mfu_is_in_the_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mfu, "_measure_cpu", lambda dtype: {torch.bfloat16: 4e6}[dtype])

    def change(job):
        job.flops_per_unit = 100.0

    train_toy(tmp_path, settings(precision="bf16"), Toy(), change=change)
    rows = [row for row in read_jsonl(tmp_path / "logs" / "train.jsonl") if "loss" in row]
    assert len(rows) == 10
    for row in rows:
        assert row["mfu"] == pytest.approx(row["values_per_s"] * 100 / 4e6, rel=1e-2, abs=1e-4)
    assert (
        "train: MFU is of 4e-06 TFLOP/s, the peak of 1 x cpu (measured with a matrix product)\n"
        in capsys.readouterr().err
    )
