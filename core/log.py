"""What training tells people: a progress bar, `logs/train.jsonl`, and TensorBoard events beside it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from .files import write_jsonl
from .progress import progress_bar


class TrainingLog:
    """Collects metrics on the device, and fetches them only when a line is due.

    After a resume, lines of steps that are about to be repeated are dropped, so a curve never runs twice
    over the same step.

    A metric `codebook_k`, a cross-entropy in nats, is joined by its exponential, `perplexity_k`.
    """

    def __init__(
        self,
        folder: Path,
        num_steps: int,
        unit: str,
        first_step: int,
        *,
        mfu_per_speed: float | None = None,
        enabled: bool,
    ) -> None:
        """`mfu_per_speed`: model FLOPs utilisation at one `unit` a second; None: it is not known."""
        self._enabled = enabled
        self._unit = unit
        self._mfu_per_speed = mfu_per_speed
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._skipped: int | Tensor = 0
        self._validation = ""
        if not enabled:
            return
        self._lines = folder / "train.jsonl"
        kept = [row for row in self._read_lines() if row["step"] <= first_step]
        self._elapsed_before = max((row["time_s"] for row in kept), default=0.0)
        self._skipped = max((row.get("skipped_steps", 0) for row in kept), default=0)
        write_jsonl(self._lines, kept)
        self._events = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        self._start = self._last_time = time.perf_counter()
        self._progress = progress_bar()
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step)

    def _read_lines(self) -> list[dict[str, Any]]:
        if not self._lines.exists():
            return []
        # A kill can cut the last line short: it is dropped with the steps that are repeated anyway.
        text = self._lines.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines()]

    def __enter__(self) -> Self:
        if self._enabled:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._progress.stop()
            self._events.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the bar stands still, and others may show theirs."""
        if self._enabled:
            self._progress.stop()
        yield
        if self._enabled:
            self._progress.start()

    def add(self, prefix: str, sums: dict[str, Tensor], weight: Tensor, taken: Tensor | None = None) -> None:
        """Add one step's metrics: `sums` are weighted with `weight`.

        `taken` []: whether the step was one; else it is counted as skipped. None: it was.
        """
        if not self._enabled:
            return
        if taken is not None:
            self._skipped = self._skipped + (~taken).int()
            # What has not been taken may be NaN, which a product with 0 would stay.
            sums = {name: torch.where(taken, value, 0) for name, value in sums.items()}
            weight = torch.where(taken, weight, 0)
        for name, value in sums.items():
            key = prefix + name
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._weights[key] = self._weights[key] + weight if key in self._weights else weight

    def write(self, step: int, lr: float) -> None:
        """Write the averages since the last line, and move the bar."""
        if not self._enabled:
            return
        now = time.perf_counter()
        row: dict[str, Any] = {"step": step, "time_s": round(self._elapsed_before + now - self._start, 3)}
        weights = {name: float(weight) for name, weight in self._weights.items()}
        weights = {name: weight for name, weight in weights.items() if weight > 0}  # of steps that were taken
        row |= _with_perplexity({name: float(self._sums[name] / self._weights[name]) for name in weights})
        row["lr"] = lr
        row["skipped_steps"] = int(self._skipped)
        if weights:
            # Of phases that run in some steps only, the weights do not count what the steps have read.
            main = max(weights, key=lambda name: weights[name])
            weight = weights[main]
            row[f"{self._unit}_per_s"] = round(weight / (now - self._last_time), 1)
            if self._mfu_per_speed is not None:
                row["mfu"] = round(weight / (now - self._last_time) * self._mfu_per_speed, 4)
            speed = f"{row[f'{self._unit}_per_s']:,.0f} {self._unit}/s"
            text = f"train  loss {row[main]:.3f}{self._validation}  {speed}"
            self._progress.update(self._task, completed=step, description=text)
        self._write_row(row)
        self._sums, self._weights, self._last_time = {}, {}, now

    def write_validation(self, step: int, scores: dict[str, float]) -> None:
        """Write the scores of a validation, and show its loss on the bar."""
        if not self._enabled:
            return
        elapsed = self._elapsed_before + time.perf_counter() - self._start
        row = {"step": step, "time_s": round(elapsed, 3)}
        self._write_row(row | {f"valid/{n}": value for n, value in _with_perplexity(scores).items()})
        if "loss" in scores:
            self._validation = f"  valid {scores['loss']:.3f}"
        self._last_time = time.perf_counter()  # validation is not training time

    def _write_row(self, row: dict[str, Any]) -> None:
        # JSON has no NaN: a score that is not finite is written as null, and stays visible as such.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
        for name, value in row.items():
            if name not in ("step", "time_s"):
                self._events.add_scalar(name, value, row["step"])


def _with_perplexity(metrics: dict[str, float]) -> dict[str, float]:
    losses = {name: value for name, value in metrics.items() if re.search(r"(^|/)codebook_\d+$", name)}
    return metrics | {
        # Beyond e^700 a float is infinite, which a loss in nats never is in earnest.
        name.replace("codebook_", "perplexity_"): math.exp(min(value, 700.0))
        for name, value in losses.items()
    }
