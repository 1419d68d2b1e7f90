"""Programs by PyTorch's operations: one after another where there is no compiler, as CUDA graphs on a GPU.

Shapes: B clips, R rows, K codebooks, V codebook size, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Draft
from .step_program import (
    Clock,
    Embed,
    GruCell,
    Initial,
    Linear,
    LstmCell,
    Operation,
    Place,
    Program,
    places_of,
)

GRAPH_STEPS = 16
"""Steps in one CUDA graph, or the next multiple of the program's period: some thousand kernels, in which the
launch of the graph itself is lost, and no more, because a clip waits for them to be captured."""


class TorchExecutor:
    """Runs steps of a program one operation at a time; clocks are computed in Python."""

    def __init__(self, program: Program, num_rows: int, initial: Initial, device: torch.device) -> None:
        self._program = program
        self._num_rows = num_rows
        self._state = {
            buffer: initial[buffer.name].to(device).clone()
            if buffer.name in initial
            else torch.zeros(buffer.slots, num_rows, buffer.width, device=device)
            for buffer in program.buffers
        }

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
        for step in range(start, stop):
            self._one_step(tokens, step, step >= predict_from)
            if step < predict_from:
                continue
            logits = self._read(self._program.logits, step)
            if all_logits is not None:
                all_logits[:, step - start] = logits
            if draft is not None:
                shaped = torch.unflatten(logits, -1, (self._program.num_codebooks, -1))
                sampled = draft.sampling(shaped, draft.noise[:, :, step])
                known = tokens[:, :, step + 1]
                tokens[:, :, step + 1] = torch.where(draft.to_sample[:, :, step], sampled, known)

    def _one_step(self, tokens: Tensor, step: int, predicts: bool) -> None:
        """All operations that belong to `step`, but for the head's unless it predicts."""
        end = len(self._program.operations) if predicts else self._program.num_before_head
        for operation in self._program.operations[:end]:
            if step % operation.period == 0:
                self._do(operation, tokens, step)

    def _do(self, operation: Operation, tokens: Tensor, step: int) -> None:
        match operation:
            case Embed():
                rows = embed(operation, self._last_tokens(tokens, step, operation.table.shape[0]))
                rows = rows.repeat(self._num_rows // len(rows), 1)
                if operation.add is not None:
                    rows = rows + self._read(operation.add, step)
                self._write(operation.out, step, rows)
            case Linear():
                add = None if operation.add is None else self._read(operation.add, step)
                x = self._joined(operation.sources, step)
                self._write(operation.out, step, linear(operation, x, add))
            case GruCell():
                places = operation.hidden, operation.inputs, operation.recurrent
                self._write(operation.hidden, step, gru_cell(*(self._read(place, step) for place in places)))
            case LstmCell():
                hidden, cell = lstm_cell(self._read(operation.cell, step), self._read(operation.gates, step))
                self._write(operation.cell, step, cell)
                self._write(operation.hidden, step, hidden)

    def _last_tokens(self, tokens: Tensor, step: int, taps: int) -> Tensor:
        """[B, K, taps], the newest first, special ones before the beginning."""
        found = tokens[:, :, max(0, step - taps + 1) : step + 1].flip(2)
        return F.pad(found, (0, taps - found.shape[2]), value=self._program.codebook_size)

    def _joined(self, sources: tuple[Place, ...], step: int) -> Tensor:
        """[R, sum of the sources' widths]."""
        found = [self._read(source, step) for source in sources]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _read(self, place: Place, step: int) -> Tensor:
        state = self._state[place.buffer]
        return state[place.slot.at(step, len(state))].narrow(1, place.first_column(step), place.width)

    def _write(self, place: Place, step: int, values: Tensor) -> None:
        self._read(place, step).copy_(values)


class GraphExecutor(TorchExecutor):
    """The same with clocks on the device: steps can be captured in a CUDA graph and replayed.

    Blocks of `GRAPH_STEPS` steps that predict are replayed; what is left over runs as single steps. Without
    CUDA all steps are single ones, which is how tests compare them.
    """

    def __init__(self, program: Program, num_rows: int, initial: Initial, device: torch.device) -> None:
        super().__init__(program, num_rows, initial, device)
        self._device = device
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._block = -(-GRAPH_STEPS // program.period) * program.period
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: Draft | None = None
        places = dict.fromkeys(_moving_places(program))
        clocks = list(dict.fromkeys(clock for place in places for clock in (place.slot, place.part)))
        self._column = {clock: i for i, clock in enumerate(clocks)}
        counts = {place.slot: len(self._state[place.buffer]) for place in places}
        # The taps of a convolution stand in one buffer: clocks side by side select them all at once.
        self._taps: dict[tuple[Place, ...], int] = {}
        for operation in program.operations:
            if isinstance(operation, Linear) and _are_slots_of_one(operation.sources):
                self._taps[operation.sources] = len(clocks)
                clocks += [source.slot for source in operation.sources]
        numbers = [(c.mul, c.div, c.shift, c.count or counts[c], bool(c.count)) for c in clocks] or [
            (1, 1, 0, 1, True)
        ]
        self._mul, self._div, self._shift, self._count, self._wraps = (
            torch.tensor(column, device=device) for column in zip(*numbers, strict=True)
        )
        self._wraps = self._wraps.bool()
        self._now: Tensor | None = None  # [clocks] at the step that is run

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
        self._step.fill_(start)
        step = start
        while step < stop:
            fits = step >= predict_from and step % self._program.period == 0 and step + self._block <= stop
            if fits and draft is not None and all_logits is None and tokens.is_cuda:
                self._replay(draft, step)
                step += self._block
                continue
            predicts = step >= predict_from
            self._advance(tokens, step, draft if predicts else None, predicts)
            if all_logits is not None and predicts:
                all_logits[:, step - start] = self._read(self._program.logits, step)
            step += 1

    def _replay(self, draft: Draft, step: int) -> None:
        """A block of steps; the first time, and for other tensors, it is captured."""
        if self._captured is not draft:
            saved = {buffer: state.clone() for buffer, state in self._state.items()}
            first = self._step.clone()
            tokens = draft.tokens.clone()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries must have set themselves up before a capture
                self._steps(draft, step, self._program.period)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # A training's other threads may ask the device something meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._steps(draft, step, self._block)
            self._captured = draft
            for buffer, state in saved.items():
                self._state[buffer].copy_(state)
            draft.tokens.copy_(tokens)
            self._step.copy_(first)
        assert self._graph is not None
        self._graph.replay()

    def _steps(self, draft: Draft, first: int, num_steps: int) -> None:
        for step in range(first, first + num_steps):
            self._advance(draft.tokens, step, draft, predicts=True)

    def _advance(self, tokens: Tensor, step: int, draft: Draft | None, predicts: bool) -> None:
        """One step; `step` decides which operations belong to it, the device's number everything else."""
        number = self._step * self._mul // self._div + self._shift
        self._now = torch.where(self._wraps, number % self._count, torch.minimum(number, self._count - 1))
        self._one_step(tokens, step, predicts)
        if draft is not None:
            found = self._read(self._program.logits, step)
            logits = torch.unflatten(found, -1, (self._program.num_codebooks, -1))
            noise = draft.noise.index_select(2, self._step).squeeze(2)
            wanted = draft.to_sample.index_select(2, self._step).squeeze(2)
            known = tokens.index_select(2, self._step + 1).squeeze(2)
            sampled = torch.where(wanted, draft.sampling(logits, noise), known)
            tokens.index_copy_(2, self._step + 1, sampled[..., None])
        self._step += 1

    def _last_tokens(self, tokens: Tensor, step: int, taps: int) -> Tensor:
        positions = self._step - torch.arange(taps, device=self._device)
        found = tokens.index_select(2, positions.clamp(min=0))
        return torch.where(positions < 0, self._program.codebook_size, found)

    def _joined(self, sources: tuple[Place, ...], step: int) -> Tensor:
        if sources not in self._taps:
            return super()._joined(sources, step)
        assert self._now is not None
        first = self._taps[sources]
        slots = self._now[first : first + len(sources)]
        return self._state[sources[0].buffer].index_select(0, slots).transpose(0, 1).flatten(1)

    def _number(self, clock: Clock) -> Tensor:
        assert self._now is not None
        column = self._column[clock]
        return self._now[column : column + 1]

    def _read(self, place: Place, step: int) -> Tensor:
        state = self._state[place.buffer]
        if not _moves(place):
            return state[0].narrow(1, place.column, place.width)
        slot = state.index_select(0, self._number(place.slot))[0]
        if place.part.count == 1:
            return slot.narrow(1, place.column, place.width)
        parts = slot.narrow(1, place.column, place.part.count * place.width)
        return torch.unflatten(parts, 1, (-1, place.width)).index_select(1, self._number(place.part))[:, 0]

    def _write(self, place: Place, step: int, values: Tensor) -> None:
        state = self._state[place.buffer]
        if not _moves(place):
            state[0].narrow(1, place.column, place.width).copy_(values)
            return
        assert place.part.count == 1  # operations write whole vectors, and read parts of them
        state.narrow(2, place.column, place.width).index_copy_(0, self._number(place.slot), values[None])


def _moves(place: Place) -> bool:
    return place.slot.count != 1 or place.part.count != 1


def _are_slots_of_one(places: tuple[Place, ...]) -> bool:
    """Whether these are several whole slots of a buffer, at places that move."""
    buffers = {place.buffer for place in places}
    whole = all(place.width == place.buffer.width and place.part.count == 1 for place in places)
    return len(places) > 1 and len(buffers) == 1 and whole and all(map(_moves, places))


def _moving_places(program: Program) -> Iterator[Place]:
    for operation in program.operations:
        yield from (place for place in places_of(operation) if _moves(place))


# ---------------------------------------------------------------------------------------------- operations


def embed(operation: Embed, tokens: Tensor) -> Tensor:
    """Tokens [B, K, taps], the newest first, to [B, width]."""
    taps, num_codebooks, num_rows, width = operation.table.shape
    offsets = torch.arange(taps * num_codebooks, device=tokens.device).view(taps, num_codebooks) * num_rows
    rows = F.embedding(tokens + offsets.T, operation.table.reshape(-1, width)).sum(1)  # [B, taps, width]
    return rows.flip(1).flatten(1) if operation.joined else rows.sum(1)


def linear(operation: Linear, x: Tensor, add: Tensor | None) -> Tensor:
    """What the operation writes, of its sources [R, inputs]."""
    y = F.linear(x, operation.weight, operation.bias)
    if add is not None:
        y = y + add
    if operation.activation == "gated":
        y[:, : y.shape[1] // 2].tanh_()
        return F.glu(y, dim=1)
    activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}
    return activations[operation.activation](y) if operation.activation in activations else y


# Gated recurrent unit: arXiv:1406.1078, sec. 2.3, with the reset gate after the product as in PyTorch.
def gru_cell(hidden: Tensor, inputs: Tensor, recurrent: Tensor) -> Tensor:
    """The next hidden state [R, H] from [R, H] and twice [R, 3 H]."""
    reset_in, update_in, new_in = inputs.chunk(3, dim=1)
    reset_of, update_of, new_of = recurrent.chunk(3, dim=1)
    update = torch.sigmoid(update_in + update_of)
    new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_of) * new_of)
    return (1 - update) * new + update * hidden


def lstm_cell(cell: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell [R, H] from the cell before and [R, 4 H]."""
    entered, kept, new, shown = gates.chunk(4, dim=1)
    cell = torch.sigmoid(kept) * cell + torch.sigmoid(entered) * torch.tanh(new)
    return torch.sigmoid(shown) * torch.tanh(cell), cell
