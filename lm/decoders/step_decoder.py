"""Generation with a model that is a program: blocks of steps, on whatever runs them fastest.

Shapes: B clips, R rows, K codebooks, S steps, V codebook size.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from ...core.conditions import GivenConditions
from ...core.errors import UserError
from .decoder import Decoder, Draft, Prepared, Weights
from .native import load_kernel
from .step_program import Initial, Program
from .step_program_native import NativeProgram
from .step_program_torch import GraphExecutor, TorchExecutor

BLOCK_STEPS = 4096
"""Steps of one call of an executor: about a second, so that a user's interrupt is heard."""


class ProgramModel(Protocol):
    """What a model says of its step."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def step_program(self) -> Program:
        """The step."""

    def initial_state(self, conditions: GivenConditions, num_rows: int) -> Initial:
        """What its buffers hold before step 0, for `num_rows` rows under `conditions`."""


class Executor(Protocol):
    """The state of a program, and what moves it on."""

    def run(
        self,
        tokens: Tensor,
        start: int,
        stop: int,
        predict_from: int,
        draft: Draft | None = None,
        all_logits: Tensor | None = None,
    ) -> None:
        """See `NativeExecutor.run`."""


def prepare_program(model: ProgramModel, weights: Weights) -> Prepared:
    """`model` for generation; raises `UserError` for weights in int8, and in bf16 without the kernel."""
    is_native = model.device.type == "cpu" and load_kernel("program") is not None
    if weights == "int8" or (weights == "bf16" and not is_native):
        raise UserError(
            f"this kind of model cannot generate with weights in {weights} on {model.device.type}"
            f"{'' if is_native else ' without its compiled kernel'}: choose fp32"
        )
    return PreparedProgram(model, weights if is_native else None)


class PreparedProgram(Prepared):
    """A model whose program's weights are packed."""

    def __init__(self, model: ProgramModel, native: Literal["fp32", "bf16"] | None) -> None:
        """`native`: the number format of the weights that the kernel reads; None: not to use it."""
        self._model = model
        with torch.no_grad():
            self.program = model.step_program()
        self.native = None if native is None else NativeProgram(self.program, native)

    def decoder(self, conditions: GivenConditions, num_rows: int, max_steps: int) -> ProgramDecoder:
        """A decoder for `num_rows` rows under `conditions`, for at most `max_steps` steps of input."""
        with torch.no_grad():
            initial = self._model.initial_state(conditions, num_rows)
        return ProgramDecoder(self._executor(num_rows, initial), self.program, num_rows)

    def _executor(self, num_rows: int, initial: Initial) -> Executor:
        if self.native is not None:
            return self.native.executor(num_rows, initial)
        kind = TorchExecutor if self._model.device.type == "cpu" else GraphExecutor
        return kind(self.program, num_rows, initial, self._model.device)


class ProgramDecoder(Decoder):
    """A program's state for a fixed number of rows."""

    def __init__(self, executor: Executor, program: Program, num_rows: int) -> None:
        self._executor = executor
        self._program = program
        self._num_rows = num_rows
        self._seen: Tensor | None = None  # [R, K, n]: what `predict` was given last, for the next call's taps

    def run(self, draft: Draft, start: int, stop: int) -> None:
        """Sample the pattern's steps `start` to `stop` - 1; steps before `start` are known.

        Of a long prompt a model with a receptive field reads no more than that.
        """
        context = self._program.context
        step = self.num_seen
        if context is not None and step == 0:
            step = max(step, start - context + 1)
        while step < stop:
            end = min(stop, step + BLOCK_STEPS)
            self._executor.run(draft.tokens, step, end, start, draft)
            step = end
        self.num_seen = stop

    def predict(self, tokens: Tensor) -> Tensor:
        """The next steps of the input [R, K, S], to the logits after each of them [R, K, S, V]."""
        whole = tokens if self._seen is None else torch.cat([self._seen, tokens], dim=2)
        self._seen = whole
        num_steps, num_codebooks = tokens.shape[2], self._program.num_codebooks
        width = num_codebooks * self._program.codebook_size
        logits = torch.zeros(self._num_rows, num_steps, width, device=tokens.device)
        start, stop = self.num_seen, self.num_seen + num_steps
        self._executor.run(whole.contiguous(), start, stop, start, None, logits)
        self.num_seen = stop
        return torch.unflatten(logits, -1, (num_codebooks, -1)).transpose(1, 2)

    def feed(self, tokens: Tensor) -> Tensor:
        """[R, K, S] to [R, K, V]."""
        return self.predict(tokens)[:, :, -1]
