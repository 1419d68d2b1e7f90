"""Numbers of training steps on their way from the device that computes them to the CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def steps_late(device: torch.device) -> int:
    """How many steps later the CPU reads a number: on a CPU there is nothing to wait for."""
    return 1 if device.type == "cuda" else 0


class Readback:
    """Scalars that a device computes in each step, and that the CPU reads a step later.

    Who asks a GPU for a number waits until it has done all that it was given, and meanwhile gives it nothing
    to do next. So the GPU itself copies what a step has found when it gets there, and it is read when the
    next step has been given to it.
    """

    def __init__(self, device: torch.device) -> None:
        self._late = steps_late(device)
        self._is_gpu = device.type == "cuda"
        self._pending: deque[tuple[int, list[str], Tensor, torch.cuda.Event | None]] = deque()

    def send(self, step: int, scalars: Mapping[str, Tensor]) -> None:
        """Ask for what a step has found; returns at once."""
        found = torch.stack([one.detach().float() for one in scalars.values()])
        arrived = None
        if self._is_gpu:
            here = torch.empty(found.shape, pin_memory=True)  # else the copy would wait
            here.copy_(found, non_blocking=True)
            arrived = torch.cuda.current_stream(found.device).record_event()  # type: ignore[no-untyped-call]
            found = here
        self._pending.append((step, list(scalars), found, arrived))

    def read(self, *, up_to_now: bool) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps and their numbers, each once and in order.

        `up_to_now`: all that were sent, for which a GPU has to be waited for; else those that are late
        enough. Which these are is a matter of counting, not of time: alike in all processes.
        """
        while len(self._pending) > (0 if up_to_now else self._late):
            step, names, found, arrived = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            yield step, dict(zip(names, found.tolist(), strict=True))
