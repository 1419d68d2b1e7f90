"""Small models whose step is a program, with weights large enough for every part of them to matter.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.lm.decoders.step_decoder import Executor, ProgramDecoder
from tokkata.lm.decoders.step_program_native import NativeProgram
from tokkata.lm.decoders.step_program_torch import GraphExecutor, TorchExecutor
from tokkata.lm.step_models.causal_conv import CausalConvConfig, CausalConvLM
from tokkata.lm.step_models.input_noise import assume_noise
from tokkata.lm.step_models.rnn import RNNLM, RNNConfig
from tokkata.lm.step_models.samplernn import SampleRNN, SampleRNNConfig
from tokkata.lm.step_models.step_model import StepModel
from tokkata.lm.step_models.wavenet import WaveNet, WaveNetConfig

Model = TypeVar("Model", bound=StepModel)

V = 19
SAMPLES = {"id": "mulaw:1000", "num_codebooks": 1, "codebook_size": V, "frame_rate": 1000.0}
FRAMES = {"id": "pocket", "num_codebooks": 3, "codebook_size": V, "frame_rate": 50.0}

PITCH = Condition("pitch", "label", values=(60, 62, 64))
MELODY = Condition("melody", "sequence", width=5, feature={"kind": "melody", "frame_rate": 1000 / 7})
LEVEL = Condition("level", "sequence", width=2, feature={"kind": "melody", "frame_rate": 1000 / 21})
STYLE = Condition("style", "sequence", width=3, feature={"kind": "style", "frame_rate": None})
PITCHES = Conditions((PITCH,))
LOCAL = Conditions((PITCH, MELODY, LEVEL, STYLE))


def wavenet(conditions: Conditions = PITCHES, scale: float = 3.0, **shape: Any) -> WaveNet:
    """10 layers at most, widths that are no multiples of a vector."""
    shape = {"layers_per_stack": 3, "residual_channels": 9, "gate_channels": 10, "skip_channels": 20} | shape
    return loud(lambda: WaveNet(WaveNetConfig.for_codec(SAMPLES, conditions, **shape)), scale)


def causal_conv(conditions: Conditions = PITCHES, scale: float = 3.0, **shape: Any) -> CausalConvLM:
    """Over three codebooks."""
    shape = {"layers_per_stack": 2, "residual_channels": 9, "gate_channels": 18, "skip_channels": 20} | shape
    return loud(lambda: CausalConvLM(CausalConvConfig.for_codec(FRAMES, conditions, **shape)), scale)


def rnn(conditions: Conditions = PITCHES, scale: float = 2.0, **shape: Any) -> RNNLM:
    """Over three codebooks."""
    return loud(lambda: RNNLM(RNNConfig.for_codec(FRAMES, conditions, **({"dim": 21} | shape))), scale)


def samplernn(conditions: Conditions = PITCHES, scale: float = 2.0, **shape: Any) -> SampleRNN:
    """Three tiers."""
    shape = {"dim": 21, "embedding_dim": 6} | shape
    return loud(lambda: SampleRNN(SampleRNNConfig.for_codec(SAMPLES, conditions, **shape)), scale)


def loud(make: Callable[[], Model], scale: float) -> Model:
    """A model in evaluation mode with weights `scale` times as large, small ones of the output far more."""
    torch.manual_seed(0)
    lm = make().eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("start"):
                parameter.normal_()
            is_small = name.startswith("head") and lm.config.kind != "wavenet"
            parameter.mul_(8 * scale if is_small else scale)
    return lm


TOLD = {"input_noise": 8.0, "tell_noise": True}


def unsuspecting(lm: Model) -> Model:
    """A model that takes its own samples for clean, as `logits` does in evaluation mode."""
    assume_noise(lm, 0.0)
    return lm


FAMILIES: dict[str, Callable[[], StepModel]] = {
    "wavenet": wavenet,
    "wavenet-unconditional": lambda: wavenet(Conditions()),
    "wavenet-local": lambda: wavenet(LOCAL, kernel_size=3),
    "causal_conv": causal_conv,
    "causal_conv-flatten": lambda: causal_conv(pattern="flatten"),
    "causal_conv-wide": lambda: causal_conv(residual_channels=64, gate_channels=80, skip_channels=130),
    "rnn": rnn,
    "rnn-gru": lambda: rnn(cell="gru", pattern="parallel"),
    "samplernn": samplernn,
    "samplernn-2-tiers": lambda: samplernn(Conditions(), frame_sizes=(6,), cell="lstm", num_layers=2),
    "samplernn-wide": lambda: samplernn(dim=100, frame_sizes=(8, 4, 2)),
    "wavenet-told-of-noise": lambda: unsuspecting(wavenet(Conditions(), **TOLD)),
    "samplernn-told-of-noise": lambda: unsuspecting(samplernn(**TOLD)),
}


def some(lm: StepModel, batch_size: int = 4) -> GivenConditions:
    """What some clips may be given of the model's conditions."""
    generator = torch.Generator().manual_seed(3)
    values: dict[str, list[Any]] = {"pitch": [60, None, 64, 62]}
    for condition in (MELODY, LEVEL, STYLE):
        lengths = {"melody": 12, "level": 4, "style": 1}
        one = torch.randn(lengths[condition.name], condition.width, generator=generator)
        values[condition.name] = [one, None, one[: len(one) // 2 + 1] * 2, -one]
    repeated = {name: (values[name] * batch_size)[:batch_size] for name in lm.config.conditions.names}
    return lm.config.conditions.encode(repeated)


def random_input(lm: StepModel, batch_size: int = 4, num_steps: int = 45) -> Tensor:
    """The input of the model [B, K, S]: the special token, then any tokens."""
    shape = batch_size, lm.config.num_codebooks, num_steps
    tokens = torch.randint(0, V, shape, generator=torch.Generator().manual_seed(1))
    tokens[:, :, 0] = V
    return tokens


EXECUTORS = ["native", "torch", "graph"]


def decoder(lm: StepModel, executor: str, given: GivenConditions, num_rows: int) -> ProgramDecoder:
    """A decoder with an executor of that kind; `graph` runs uncaptured on a CPU."""
    with torch.no_grad():
        program, initial = lm.step_program(), lm.initial_state(given, num_rows)
    chosen: Executor
    if executor == "native":
        chosen = NativeProgram(program).executor(num_rows, initial)
    else:
        kind = TorchExecutor if executor == "torch" else GraphExecutor
        chosen = kind(program, num_rows, initial, lm.device)
    return ProgramDecoder(chosen, program, num_rows)


def random_frames(batch_size: int, num_frames: int) -> Tensor:
    """Codes [B, K, T] of three codebooks."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, V, (batch_size, 3, num_frames), generator=generator)


def check_loss_of_the_pattern(lm: StepModel, codes: Tensor) -> None:
    """The loss is the cross-entropy of the logits where the model's pattern has tokens."""
    values = some(lm, len(codes))
    with torch.no_grad():
        loss = lm(codes, values)
        sequence = lm.pattern.apply(codes, V)
        logits = lm.logits(F.pad(sequence[:, :, :-1], (1, 0), value=V), values)
        steps = lm.pattern.steps(codes.shape[2])
        per_codebook = [
            F.cross_entropy(logits[:, k, steps[k]].flatten(0, 1), codes[:, k].flatten()) for k in range(3)
        ]
    torch.testing.assert_close(loss.per_codebook, torch.stack(per_codebook))
    torch.testing.assert_close(loss.mean, torch.stack(per_codebook).mean())
    assert loss.num_tokens == codes.numel()
