"""How far a convolutional encoder or decoder looks to each side of a frame, found from the network itself.

The network is run once on input whose one half is NaN. A NaN passes through every convolution, activation
and sum that it enters, whatever the weights, and through nothing else: the outputs of the clean half that
come out as NaN are those that depend on the other half. So padding, dilation, residual paths, trimmed ends
and odd strides count as the network really has them, and no family of codecs needs a description of its own.
A walk over the layers would need one for each way to pad: DAC pads inside its layers, EnCodec outside.

Shapes: B batch, C channels, T frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FIRST_FRAMES = 12  # enough for DAC at any of its rates, so that one pass does
_LONGEST_SAMPLES = 1 << 16


@dataclass(frozen=True)
class Reach:
    """Frames around a frame that an output there depends on."""

    before: int
    after: int


def conv_context(module: nn.Module, hop_length: int, without: tuple[type[nn.Module], ...] = ()) -> int:
    """The larger side of `conv_reach`."""
    reach = conv_reach(module, hop_length, without)
    return max(reach.before, reach.after)


def conv_reach(module: nn.Module, hop_length: int, without: tuple[type[nn.Module], ...] = ()) -> Reach:
    """Frames on each side of a frame that the module's output there depends on.

    Args:
        module: an encoder, `[B, C, T * hop_length]` to `[B, …, T]`; or, where it holds a transposed
            convolution, a decoder, `[B, D, T]` to `[B, …, T * hop_length]` or a little less.
        hop_length: samples a frame; 1 for a module that keeps the rate.
        without: kinds of layers that are left out, such as an LSTM, which has no bounded context; their
            input must have the shape of their output.

    Raises `ValueError` if the context has no bound, as behind an LSTM, attention or a norm over time.
    """
    upsamples = any(isinstance(layer, nn.ConvTranspose1d) for layer in module.modules())
    hop_in, hop_out = (1, hop_length) if upsamples else (hop_length, 1)
    frames = _FIRST_FRAMES
    with torch.no_grad(), _bypassed(module, without):
        while frames * hop_length <= _LONGEST_SAMPLES:
            reach = _reach_within(module, hop_in, hop_out, frames)
            if reach is not None:
                return reach
            frames *= 2
    raise ValueError(f"{type(module).__name__} has no bounded context: a frame depends on all of the clip")


def _reach_within(module: nn.Module, hop_in: int, hop_out: int, frames: int) -> Reach | None:
    """`conv_reach` if it is below `frames`; None if a side has that or more."""
    first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d))
    middle = frames * hop_in
    probe = torch.zeros(
        2, first.in_channels, 2 * middle, dtype=first.weight.dtype, device=first.weight.device
    )
    probe[0, :, :middle] = torch.nan  # the past
    probe[1, :, middle:] = torch.nan  # the future
    # cuDNN may choose an algorithm (FFT, Winograd) that mixes neighbours which no weight connects.
    with torch.backends.cudnn.flags(enabled=False):
        reached: Tensor = module(probe).isnan().any(dim=1)  # [2, about 2 * frames * hop_out]
    # What the past reaches after the middle is what looks back.
    back = _furthest(reached[0], middle=frames * hop_out)
    # Counted from the middle, not from the end: an unpadded network gives fewer frames.
    ahead = frames * hop_out - _first(reached[1])
    if back == reached.shape[1] - frames * hop_out or ahead == frames * hop_out:
        return None  # everything was reached: longer input has to tell how far it goes
    reach = Reach(before=-(-back // hop_out), after=-(-max(ahead, 0) // hop_out))
    return reach if max(reach.before, reach.after) < frames else None


def _furthest(reached: Tensor, middle: int) -> int:
    """How many positions from `middle` on it takes to hold the last true one; 0 if there is none."""
    positions = reached.nonzero()
    return max(0, int(positions.max()) + 1 - middle) if len(positions) else 0


def _first(reached: Tensor) -> int:
    """The first true position; the length if there is none."""
    positions = reached.nonzero()
    return int(positions.min()) if len(positions) else len(reached)


@contextlib.contextmanager
def _bypassed(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Let layers of these kinds hand on their input unchanged."""
    hooks = [
        layer.register_forward_hook(lambda _layer, inputs, _output: inputs[0])
        for layer in module.modules()
        if isinstance(layer, kinds)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
