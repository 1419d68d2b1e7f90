"""The network's pass in a step of a sampler as one CUDA graph, so that a step is one launch.

A pass of a small network over a short clip is hundreds of kernels, each done sooner than the CPU launches the
next one. All steps of a clip have the same shapes, so they are captured once and replayed.

Without CUDA the same pass runs uncaptured over the same buffers, which is how its tests compare it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FEWEST_CALLS = 8
"""Capturing costs about two passes, so fewer calls are better done one by one."""


class Replayed:
    """A function of tensors whose shapes stay the same from call to call.

    It must neither read from the device nor bring anything to it, and all that it uses besides its arguments
    must stay where it is.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.num_replays = 0
        """Calls that were replayed and not launched one kernel after another."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function returns for `inputs`; a tensor of the caller's own."""
        if not self._inputs:
            self._inputs = [torch.empty_like(one) for one in inputs]
        for mine, new in zip(self._inputs, inputs, strict=True):
            if mine.shape != new.shape:
                raise ValueError(f"the shape was {list(mine.shape)} and is {list(new.shape)}")
            mine.copy_(new)
        if not inputs[0].is_cuda:
            return self._function(*self._inputs)
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()
        self.num_replays += 1
        assert self._output is not None
        return self._output.clone()

    def _capture(self) -> torch.cuda.CUDAGraph:
        # A trial run outside the graph, which libraries use to set themselves up.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A training's other threads may ask the device something meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._output = self._function(*self._inputs)
        return graph
