"""What a CUDA graph asks of the code that is captured in it, without a GPU.

`NothingOfTheHost` refuses what cannot be captured; `as_on_a_gpu` has code believe that it runs on a GPU, and
records and replays operations as CUDA does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NothingOfTheHost(TorchDispatchMode):
    """Refuses what cannot be captured, as far as it shows without a GPU.

    On the CPU numbers that become tensors, and tensors that become numbers, show; on `meta` tensors that are
    made on the CPU and moved.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        assert name not in {"lift_fresh", "_local_scalar_dense", "nonzero"}, f"{name} needs the host"
        if name in ("index", "index_put_"):
            is_mask = any(one is not None and one.dtype == torch.bool for one in args[1])
            assert not is_mask, f"{name} by a mask needs the host"
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            at_home = not isinstance(one, Tensor) or one.device.type == self._device
            assert at_home, f"{name} needs the host"
        return found


class RecordedGraph(TorchDispatchMode):
    """A `torch.cuda.CUDAGraph` on the CPU: operations on the tensors that were there at the capture.

    What the capture itself has written is undone, because a capture does not run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs[argument.name]
                self._before.append((written, written.clone()))
        found = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, found))
        return found

    def undo(self) -> None:
        """What was before the capture."""
        for written, before in reversed(self._before):
            written.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        """See `torch.cuda.CUDAGraph.replay`."""
        for func, args, kwargs, found in self._calls:
            for old, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                is_elsewhere = isinstance(old, Tensor) and old.data_ptr() != new.data_ptr()
                if is_elsewhere:
                    old.copy_(new)


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        """There is nothing to wait for."""


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors say that they are on a GPU, and graphs are recorded."""

    @contextlib.contextmanager
    def graph(captured: RecordedGraph, capture_error_mode: str) -> Iterator[None]:
        with captured:
            yield
        captured.undo()

    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
