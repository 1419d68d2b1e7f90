"""Whether training steps make a CPU wait for its GPU, found out without one, and with one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tokkata.core.loop import train

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]

# What they return, or its size, depends on numbers that the device may not have computed yet.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Within it, counts the operations that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.on_the_cpu: dict[int, torch.Tensor] = {}
        """Scalars that have never left it, by their identity."""
        self._is_paused = False

    def add(self) -> None:
        """One more."""
        self.count += not self._is_paused

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()
        by_mask = isinstance(indices, list | tuple) and any(
            torch.is_tensor(index) and index.dtype == torch.bool for index in indices
        )
        if (name in WAITING or by_mask) and id(args[0]) not in self.on_the_cpu:
            self.add()
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What concerns the CPU alone."""
        self._is_paused = True
        yield
        self._is_paused = False


class Constants(TorchFunctionMode):
    """Within it, counts tensors that are made of Python's numbers on a device: their copies would wait."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None:
            self._waits.add()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_by_cuda() -> Iterator[Callable[[], int]]:
    """Within it, the result tells how often CUDA has said that the CPU waited for it; at its end, where."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: len(waits_among(said))
        finally:
            torch.cuda.set_sync_debug_mode("default")
            print("\n".join(sorted({f"{one.filename}:{one.lineno} waits" for one in waits_among(said)})))


def waits_among(said: list[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    """Those that tell of a wait."""
    return [one for one in said if "synchronizing CUDA operation" in str(one.message)]


def waits_of_steps(job, config, folder, device, monkeypatch) -> list[int]:
    """How often each of five steps waits where no line of the log is due: on a GPU, or as judged on one.

    The step before them fills what is kept on a device.
    """
    quiet = {"steps": 7, "log_every": 100, "validate_every": 100, "save_every": 100}
    counts, waits, batch = [], Waits(), job.batch
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            count = stack.enter_context(counted_by_cuda())
        else:
            monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
            monkeypatch.setattr("tokkata.core.readback.steps_late", lambda device: 1)
            stack.enter_context(waits)
            stack.enter_context(Constants(waits))
            count = lambda: waits.count  # noqa: E731

        def counted(step, rows):
            counts.append(count())
            with waits.paused():
                made = batch(step, rows)
            waits.on_the_cpu |= {id(t): t for t in made.values() if t.ndim == 0}
            return made

        job.batch = counted
        train(job, config.model_copy(update=quiet), folder)
        assert count() > counts[-1], "the end, where a line of the log is due, waits"
    return [after - before for before, after in pairwise(counts[1:])]
