"""The pass that GPUs replay, against the plain one; uncaptured where there is no GPU.

Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokkata.core.conditions import GivenConditions
from tokkata.diffusion import generate as module
from tokkata.diffusion.diffusion_model import DiffusionConfig, DiffusionModel
from tokkata.diffusion.generate import Settings, generate
from tokkata.diffusion.objective import EDM, Flow
from tokkata.diffusion.replayed import FEWEST_CALLS, Replayed
from tokkata.diffusion.stable_audio.files import load_stable_audio
from tokkata.tests.diffusion.stable_audio.test_stable_audio import some_given
from tokkata.tests.diffusion.tiny_networks import NETWORKS, D, some_of, tiny
from tokkata.tests.made_graphs import NothingOfTheHost, as_on_a_gpu
from tokkata.tests.made_stable_audio import SHAPES, save_stable_audio_pipeline
from tokkata.tokenize.codec import CodecInfo

Make = Callable[..., DiffusionModel]
STEPS = FEWEST_CALLS + 2
UNEVEN = Settings(steps=STEPS, cfg_scale=2.0, cfg_interval=(0.3, 0.8), cfg_rescale=0.5)
"""Some steps are guided, and some are not."""


def network_config(name: str, latent_info: CodecInfo, objective: Flow | EDM) -> DiffusionConfig:
    codec = dataclasses.asdict(dataclasses.replace(latent_info, latent_dim=D))
    return DiffusionConfig(network=tiny(name).config, objective=objective, codec=codec)


@pytest.fixture
def model_of(latent_info: CodecInfo) -> Make:
    """`model_of(name, objective)`: a model with random weights everywhere."""

    def make(name: str, objective: Flow | EDM | None = None) -> DiffusionModel:
        model = DiffusionModel(network_config(name, latent_info, objective or Flow()))
        model.network.load_state_dict(tiny(name).state_dict())
        return model.eval()

    return make


def told(model: DiffusionModel) -> GivenConditions:
    return {name: one.to(model.device) for name, one in some_of(model.config.conditions).items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_pass_stays_on_the_device(model_of: Make, name: str, guided: bool, device: str) -> None:
    model = model_of(name).to(device)
    part = module._Part(model, told(model), 3, [slice(0, 22)], UNEVEN)
    x, time = torch.randn(3, D, 22, device=device), torch.rand(3, device=device)
    with torch.no_grad(), NothingOfTheHost(device):
        assert part.predict(x, time, guided).shape == (3, D, 22)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_so_does_stable_audios(tmp_path: Path, device: str) -> None:
    save_stable_audio_pipeline(tmp_path, **SHAPES["two heads"])
    network = load_stable_audio(tmp_path).network.to(device)
    given = {name: one.to(device) for name, one in some_given(network).items()}
    conditioned = network.condition(given, 3, keep_keys=True)
    x, time = torch.randn(3, network.latent_dim, 7, device=device), torch.rand(3, device=device)
    with torch.no_grad(), NothingOfTheHost(device):
        network.predict(x, time, conditioned)


@pytest.mark.parametrize(
    ("device", "call"),
    [
        ("meta", lambda x: x + torch.arange(3).to(x)),
        ("cpu", lambda x: x * torch.tensor(2.0)),
        ("cpu", lambda x: x * x.max().item()),
        ("cpu", lambda x: x[x > 0]),
    ],
)
def test_what_needs_the_host_is_noticed(device: str, call: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(3, device=device)
    with pytest.raises(AssertionError, match=r"needs the host"), NothingOfTheHost(device):
        call(x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("objective", [Flow(), EDM()])
def test_clips_are_those_of_plain_passes(
    model_of: Make, name: str, objective: Flow | EDM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name, objective)
    seen: list[tuple[bool, int]] = []
    predict = module._Part.predict

    def watched(self: Any, inputs: Tensor, time: Tensor, guided: bool) -> Tensor:
        seen.append((guided, inputs.data_ptr()))
        return predict(self, inputs, time, guided)

    monkeypatch.setattr(module._Part, "predict", watched)
    found = generate(model, 22, conditions=told(model), settings=UNEVEN)
    assert len(seen) >= STEPS
    assert len(set(seen)) == 2, "each kind of pass has buffers that do not move"
    monkeypatch.setattr(module, "FEWEST_CALLS", STEPS + 1)
    assert torch.equal(found, generate(model, 22, conditions=told(model), settings=UNEVEN))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_captured_once_serves_every_step(
    model_of: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    expected = generate(model, 22, conditions=told(model), settings=UNEVEN)
    as_on_a_gpu(monkeypatch)
    assert torch.equal(generate(model, 22, conditions=told(model), settings=UNEVEN), expected)


def test_other_shapes_are_refused() -> None:
    double = Replayed(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"the shape was \[2\] and is \[3\]"):
        double(torch.ones(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_are_replayed(model_of: Make, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name).to("cuda")
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        found = generate(model, 22, conditions=told(model), settings=UNEVEN)
    launches = sum(event.count for event in profile.key_averages() if event.key == "cudaGraphLaunch")
    assert launches == STEPS
    monkeypatch.setattr(module, "FEWEST_CALLS", STEPS + 1)
    plain = generate(model, 22, conditions=told(model), settings=UNEVEN)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)
