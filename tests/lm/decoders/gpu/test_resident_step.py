"""The kernel of a whole step against the model itself: on fibers of a CPU, and on a GPU."""

import shutil
from pathlib import Path

import pytest
import torch

from tokkata.core.conditions import Condition, Conditions, GivenConditions, hide_all, join
from tokkata.core.schema_models import Lora
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.gpu import graph_decoder, nvrtc, resident_step
from tokkata.lm.decoders.gpu.graph_decoder import GraphDecoder, GraphTransformer
from tokkata.lm.decoders.gpu.resident_step import ResidentStep, TwoResidentSteps, kernel, runs_resident
from tokkata.lm.decoders.transformer_decoder import PlainTransformer
from tokkata.lm.lora import add_adapters
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm.decoders.gpu.emulated_kernel import EmulatedKernel

MUSICGEN = {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False}
CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62)),
        Condition("text", "sequence", "cross", width=6),
        Condition("melody", "sequence", "prepend", width=3),
    )
)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernel runs; emulated, on as many blocks as the test says."""
    if request.param == "cuda":
        if not torch.cuda.is_available() or not runs_resident(torch.device("cuda")):
            pytest.skip("needs a CUDA device that knows bfloat16")
        return torch.device("cuda")
    emulate(monkeypatch, 3)
    return torch.device("cpu")


def emulate(monkeypatch: pytest.MonkeyPatch, num_blocks: int) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(resident_step, "Kernel", EmulatedKernel)
    monkeypatch.setattr(resident_step, "num_multiprocessors", lambda device: num_blocks)
    monkeypatch.setattr(resident_step, "max_shared_bytes", lambda device: 200_000)
    monkeypatch.setattr(resident_step, "runs_resident", lambda device: True)
    kernel.cache_clear()


def made(device: torch.device, **shape: object) -> TransformerLM:
    """A model with weights that are bfloat16, and large enough for attention to be far from even."""
    torch.manual_seed(0)
    settings = {"conditions": CONDITIONS, "dim": 64, "num_layers": 2, "num_heads": 4} | shape
    config = TransformerConfig(num_codebooks=2, codebook_size=11, frame_rate=50.0, **settings)  # type: ignore[arg-type]
    lm = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
            parameter.copy_(parameter.to(torch.bfloat16))
    return lm.to(device)


def given(lm: TransformerLM, num_clips: int, seed: int = 0) -> GivenConditions:
    rng = torch.Generator().manual_seed(seed)
    text, melody = torch.randn(4, 6, generator=rng), torch.randn(5, 3, generator=rng)
    known = {
        "pitch": [60, 62] * num_clips,
        "text": [text, None, text[:2]] * num_clips,
        "melody": [melody[:2], melody] * num_clips,
    }
    told = {name: known[name][:num_clips] for name in lm.config.conditions.names}
    return {name: one.to(lm.device) for name, one in lm.config.conditions.encode(told).items()}


def logits_of_last(
    lm: TransformerLM,
    num_clips: int,
    num_known: int,
    num_steps: int,
    seeds: tuple[int, ...] = (0,),
    *,
    is_guided: bool = False,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each seed, of the last of `num_steps` steps after some that are known: the kernel's, and those of
    the model in float32."""
    total = num_known + num_steps
    num_rows = 2 * num_clips if is_guided else num_clips

    def conditions(seed: int) -> GivenConditions:
        told = given(lm, num_clips, seed)
        return join(told, hide_all(told)) if is_guided else told

    tokens = torch.randint(0, 11, (num_clips, 2, total + 1), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(lm.device)
    noise = torch.ones(num_clips, 2, total, device=lm.device)
    sampling = Sampling(0.0, cfg_scale=3.0 if is_guided else 1.0)
    draft = Draft(tokens, torch.zeros_like(noise, dtype=torch.bool), noise, sampling)
    known = tokens[:, :, :total].repeat(num_rows // num_clips, 1, 1)
    found = []
    with torch.inference_mode():
        plain = [
            PlainTransformer(lm).decoder(conditions(seed), num_rows, total).feed(known) for seed in seeds
        ]
        prepared = GraphTransformer(lm.to(torch.bfloat16), use_kernels=True)
        for seed, expected in zip(seeds, plain, strict=True):
            decoder = prepared.decoder(conditions(seed), num_rows, total)
            assert isinstance(decoder, GraphDecoder)
            decoder.run(draft, num_known, total)
            step = decoder._fused_step
            assert isinstance(step, ResidentStep if num_rows <= 8 else TwoResidentSteps)
            found.append((step.logits.clone(), expected))
            decoder.close()
    return found


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [MUSICGEN, {"num_kv_heads": 1}], ids=["musicgen", "modern"])
@pytest.mark.parametrize("num_clips", [1, 3])
def test_logits_are_those_of_the_model(
    num_clips: int, shape: dict[str, object], device: torch.device
) -> None:
    lm = made(device, **shape)
    for found, expected in logits_of_last(
        lm, num_clips, 0, 3, seeds=(0, 1)
    ):  # the second in the same buffers
        assert error(found, expected) < 1e-2


@pytest.mark.parametrize("shape", [MUSICGEN, {"num_kv_heads": 2}], ids=["musicgen", "modern"])
def test_a_short_memory_is_folded(shape: dict[str, object], device: torch.device) -> None:
    lm = made(device, dim=128, num_heads=8, **shape)
    for found, expected in logits_of_last(lm, 2, 0, 3, seeds=(0, 1)):
        assert error(found, expected) < 1e-2


@pytest.mark.parametrize(
    "conditions", [CONDITIONS, Conditions(tuple(CONDITIONS)[:1])], ids=["memory", "none"]
)
def test_many_keys_are_attended_to_in_parts(
    conditions: Conditions, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        emulate(monkeypatch, 9)
    lm = made(device, dim=128, num_heads=2, num_layers=1, conditions=conditions)
    ((found, expected),) = logits_of_last(lm, 2, 300, 2)
    assert error(found, expected) < 1e-2


def test_heads_of_eight(device: torch.device) -> None:
    lm = made(device, num_heads=8, num_layers=1)
    ((found, expected),) = logits_of_last(lm, 1, 0, 3)
    assert error(found, expected) < 1e-2


def test_widths_that_do_not_divide_evenly(device: torch.device) -> None:
    lm = made(device, dim=544, num_heads=17, num_layers=1)
    ((found, expected),) = logits_of_last(lm, 2, 0, 2)
    assert error(found, expected) < 1e-2


@pytest.mark.parametrize(("num_clips", "is_guided"), [(9, False), (5, True)])
def test_more_rows_take_two_launches(num_clips: int, is_guided: bool, device: torch.device) -> None:
    lm = made(device, num_layers=1)
    for found, expected in logits_of_last(lm, num_clips, 0, 2, seeds=(0, 1), is_guided=is_guided):
        assert error(found, expected) < 1e-2


def test_a_ring_that_is_as_short_as_it_may_be(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = made(device, dim=128, num_heads=8, **MUSICGEN)
    assert resident_step.num_stages(lm.config, 2, device) > resident_step.MIN_STAGES
    ((whole, expected),) = logits_of_last(lm, 1, 0, 3)
    monkeypatch.setattr(resident_step, "MAX_STAGES", resident_step.MIN_STAGES)
    kernel.cache_clear()
    ((short, _),) = logits_of_last(made(device, dim=128, num_heads=8, **MUSICGEN), 1, 0, 3)
    kernel.cache_clear()
    assert torch.equal(short, whole)
    assert error(whole, expected) < 1e-2


def test_results_do_not_depend_on_the_order_of_events(device: torch.device) -> None:
    results = [logits_of_last(made(device, num_kv_heads=1), 3, 0, 2)[0][0] for _ in range(3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_emulation_notices_blocks_that_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, 3)
    launch = EmulatedKernel.launch
    monkeypatch.setattr(EmulatedKernel, "launch", lambda self, _, *rest: launch(self, 2, *rest))
    with pytest.raises(AssertionError, match="the blocks wait for what does not come"):
        logits_of_last(made(torch.device("cpu"), **MUSICGEN), 1, 0, 2)


def test_what_it_is_not_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, 2)
    cpu = torch.device("cpu")
    lm = made(cpu).to(torch.bfloat16)
    assert graph_decoder.fused_step_for(lm, 8) is ResidentStep
    assert graph_decoder.fused_step_for(lm, 16) is TwoResidentSteps
    assert graph_decoder.fused_step_for(lm, 17) is None
    assert not ResidentStep.can_run(lm, 9)
    assert not ResidentStep.can_run(made(cpu), 2)
    assert not ResidentStep.can_run(made(cpu, dim=48).to(torch.bfloat16), 2)  # heads of 12
    monkeypatch.setattr(resident_step, "max_shared_bytes", lambda device: 10_000)
    assert not ResidentStep.can_run(lm, 8)
    monkeypatch.setattr(resident_step, "max_shared_bytes", lambda device: 200_000)
    add_adapters(lm, Lora(), "somewhere")
    assert not ResidentStep.can_run(lm, 2)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_it_compiles_for_gpus_that_are_not_here(
    capability: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        nvrtc._nvrtc()
    except OSError as error:
        pytest.skip(f"needs NVRTC: {error}")
    macros: dict[str, object] = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(resident_step, "Kernel", lambda name, given, device: macros.update(given))
    monkeypatch.setattr(resident_step, "num_multiprocessors", lambda device: 108)
    monkeypatch.setattr(resident_step, "max_shared_bytes", lambda device: 232_448)
    kernel.cache_clear()
    lm = made(torch.device("cpu"), dim=128, num_heads=8).to(torch.bfloat16)
    with torch.inference_mode():
        decoder = GraphDecoder(lm, 2, 3, ResidentStep, lambda decoder: None)
        decoder.start(given(lm, 2))
    kernel.cache_clear()
    code = nvrtc.machine_code("resident_step", macros, capability)
    assert code.startswith(b"\x7fELF")
    monkeypatch.setattr(nvrtc, "_compiled", lambda *_: pytest.fail("it has been compiled before"))
    assert nvrtc.machine_code("resident_step", macros, capability) == code
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r'NVRTC: .*"NUM_WARPS" is undefined'):
        nvrtc.machine_code("resident_step", {}, capability)


def test_a_trial_tells_wrong_results(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    assert resident_step.trial(device) is None
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(ResidentStep, "launch", lambda self, tokens: self.logits.fill_(0.01))
    assert resident_step.trial(device) == "its results are wrong"


def test_a_machine_without_the_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        resident_step, "missing_library", lambda: "libnvrtc.so.99: cannot open shared object file"
    )
    runs_resident.cache_clear()
    for _ in range(2):
        assert not runs_resident(torch.device("cuda"))
    runs_resident.cache_clear()
    assert capsys.readouterr().err == (
        "generation: the kernel for bfloat16 cannot be used on cuda"
        " (libnvrtc.so.99: cannot open shared object file); using others\n"
    )
