"""Which device a process takes."""

import pytest
import torch

from tokkata.core.device import best_device


@pytest.fixture
def accelerators(monkeypatch):
    def pretend(kind, count):
        device = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    ("kind", "count", "local_rank", "wanted"),
    [
        (None, 0, "3", "cpu"),
        ("mps", 1, None, "mps"),
        ("cuda", 1, "1", "cuda"),
        ("cuda", 4, None, "cuda:0"),
        ("cuda", 4, "3", "cuda:3"),
        ("cuda", 2, "3", "cuda:1"),
    ],
)
def test_each_process_takes_its_own(accelerators, monkeypatch, kind, count, local_rank, wanted):
    accelerators(kind, count)
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert best_device() == torch.device(wanted)
