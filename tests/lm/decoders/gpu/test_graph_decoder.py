"""The step that GPUs replay, against the plain decoder; uncaptured where there is no GPU."""

import pytest
import torch

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.gpu import graph_decoder
from tokkata.lm.decoders.gpu.graph_decoder import GraphTransformer
from tokkata.lm.decoders.transformer_decoder import PlainTransformer
from tokkata.lm.generate import Generator
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.made_graphs import NothingOfTheHost, as_on_a_gpu

K, V = 3, 11
CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62)),
        Condition("text", "sequence", "cross", width=6),
        Condition("melody", "sequence", "prepend", width=3),
    )
)
MUSICGEN = {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False}
MODELS = [{}, MUSICGEN, {"pattern": "flatten", "num_kv_heads": 1}, {"pattern": "coarse_first"}]


def tiny(device: str = "cpu", **shape: object) -> TransformerLM:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_codebooks=K,
        codebook_size=V,
        frame_rate=50.0,
        conditions=CONDITIONS,
        dim=16,
        num_layers=2,
        num_heads=2,
        **shape,  # type: ignore[arg-type]
    )
    lm = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return lm.to(device)


def given(seed: int = 0) -> GivenConditions:
    rng = torch.Generator().manual_seed(seed)
    text, melody = torch.randn(4, 6, generator=rng), torch.randn(5, 3, generator=rng)
    return CONDITIONS.encode({"pitch": [60, 62], "text": [text, None], "melody": [melody[:2], melody]})


def both(lm: TransformerLM) -> tuple[Generator, Generator]:
    """Generators of the step that is replayed, and of the model as it is."""
    graphed, plain = Generator(lm), Generator(lm)
    graphed._prepared, plain._prepared = GraphTransformer(lm), PlainTransformer(lm)
    return graphed, plain


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("sampling", [Sampling(0.0, cfg_scale=2.0), Sampling(top_k=5)])
def test_the_step_is_that_of_the_plain_decoder(
    shape: dict[str, object], sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_decoder, "BUCKET", 4)  # several buckets in a short clip
    graphed, plain = both(tiny(**shape))
    for seed in range(2):  # the second time in the buffers of the first
        settings = {"conditions": given(seed), "sampling": sampling, "seed": seed}
        assert torch.equal(graphed.generate(12, **settings), plain.generate(12, **settings))
    prompt = [torch.randint(0, V, (K, n), generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    settings = {"conditions": given(), "sampling": sampling, "prompt": prompt}
    assert torch.equal(graphed.generate(12, **settings), plain.generate(12, **settings))


@pytest.mark.parametrize("shape", MODELS)
def test_what_is_captured_once_serves_every_step(
    shape: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_decoder, "BUCKET", 8)
    graphed, plain = both(tiny(**shape))
    settings = {"sampling": Sampling(top_k=5, cfg_scale=2.0)}
    expected = [plain.generate(12, conditions=given(seed), seed=seed, **settings) for seed in range(2)]
    as_on_a_gpu(monkeypatch)
    for seed in range(2):  # the second time by the graphs of the first
        assert torch.equal(
            graphed.generate(12, conditions=given(seed), seed=seed, **settings), expected[seed]
        )


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_captured_step_neither_reads_from_the_device_nor_brings_anything_to_it(
    shape: dict[str, object], device: str
) -> None:
    lm = tiny(device, **shape)
    told = {name: one.to(torch.device(device)) for name, one in given().items()}
    draft = Draft(
        torch.full((1, K, 9), V, device=device),
        torch.ones(1, K, 8, dtype=torch.bool, device=device),
        torch.rand(1, K, 8, device=device),
        Sampling(0.9, 7, 0.8, cfg_scale=2.0),
    )
    with torch.inference_mode():
        decoder = GraphTransformer(lm).decoder(told, 2, 8)
        with NothingOfTheHost(device):
            decoder._launch(draft, 16, 5)  # type: ignore[attr-defined]


def test_clips_of_one_model_may_be_generated_at_once() -> None:
    graphed, plain = both(tiny())
    streams = [graphed.stream(10, chunk_frames=2, conditions=given(i), seed=i) for i in range(2)]
    chunks = list(zip(*streams, strict=True))
    for i, parts in enumerate(zip(*chunks, strict=True)):
        assert torch.equal(torch.cat(parts, dim=2), plain.generate(10, conditions=given(i), seed=i))


def test_other_conditions_of_another_length_take_other_buffers() -> None:
    graphed, plain = both(tiny())
    for length in (1, 7, 2):
        conditions = {"text": [torch.ones(length, 6)] * 2}
        expected = plain.generate(6, conditions=conditions)
        assert torch.equal(graphed.generate(6, conditions=conditions), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize("use_kernels", [False, True])
def test_graphs_are_replayed(use_kernels: bool, shape: dict[str, object]) -> None:
    lm = tiny("cuda", **shape)
    graphed, plain = both(lm)
    graphed._prepared = GraphTransformer(lm, use_kernels=use_kernels)
    decoders = []
    make = graphed._prepared.decoder
    graphed._prepared.decoder = lambda *a: decoders.append(make(*a)) or decoders[-1]  # type: ignore[method-assign,func-returns-value]
    settings = {"conditions": given(), "sampling": Sampling(0.0)}
    expected = plain.generate(300, **settings)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = graphed.generate(300, **settings)
    num_steps = lm.pattern.num_steps(300)
    launches = sum(event.count for event in profile.key_averages() if event.key == "cudaGraphLaunch")
    assert decoders[0].num_replays == launches == num_steps - 1
    assert (found == expected).float().mean() > 0.9  # sums in another order can turn a close call
