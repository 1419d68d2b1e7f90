"""Models whose step is a program generate what they predict, whatever runs the program.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, R rows.
"""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.conditions import Conditions
from tokkata.core.errors import UserError
from tokkata.lm.decoders import native
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.step_decoder import ProgramDecoder, prepare_program
from tokkata.lm.decoders.step_program import Buffer, Embed, Program, whole
from tokkata.lm.decoders.step_program_native import NativeProgram
from tokkata.lm.decoders.step_program_torch import GRAPH_STEPS, GraphExecutor
from tokkata.lm.generate import Generator, generate
from tokkata.lm.load import load_lm
from tokkata.lm.sampling import Sampling, sample_tokens
from tokkata.tests.lm import tiny_steps
from tokkata.tests.lm.tiny_lm import naive_greedy
from tokkata.tests.lm.tiny_steps import EXECUTORS, FAMILIES, V, random_input, some
from tokkata.tests.made_graphs import NothingOfTheHost, as_on_a_gpu

WIDE = {"residual_channels": 64, "gate_channels": 80, "skip_channels": 400}

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler"
)
ALL_EXECUTORS = [pytest.param(name, marks=needs_compiler if name == "native" else []) for name in EXECUTORS]


def decoded(lm, executor, batch_size=4, blocks=(13, 1, 30)):
    """Logits [B, K, S, V] after each step of some input, in blocks of steps."""
    given = some(lm, batch_size)
    tokens = random_input(lm, batch_size, sum(blocks) + 1)[:, :, : sum(blocks)]
    decoder = tiny_steps.decoder(lm, executor, given, batch_size)
    with torch.inference_mode():
        parts = [decoder.predict(part) for part in tokens.split(blocks, dim=2)]
        return torch.cat(parts, dim=2), lm.logits(tokens, given)


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_is_uncached_at_every_position_of_a_block(family, executor):
    found, expected = decoded(FAMILIES[family](), executor)
    assert expected.std() > 0.2  # there is something to predict
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@needs_compiler
@pytest.mark.parametrize("family", ["wavenet-unconditional", "wide", "samplernn-2-tiers"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_beside_any_others(family, threads):
    # Without conditions: PyTorch's product, which prepares these, does depend on the size of the batch.
    lm = tiny_steps.wavenet(Conditions(), **WIDE) if family == "wide" else FAMILIES[family]()
    before = torch.get_num_threads()
    whole_batch, _ = decoded(lm, "native", batch_size=11)
    try:
        torch.set_num_threads(threads)
        for batch_size in (1, 2, 3, 7, 11):
            part, _ = decoded(lm, "native", batch_size)
            assert torch.equal(part, whole_batch[:batch_size])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_does_not_depend_on_batch_chunks_and_number_of_frames(family):
    lm = FAMILIES[family]()
    generator, sampling = Generator(lm), Sampling(2.0, top_k=12)
    inputs = some(lm)
    whole_batch = generator.generate(26, batch_size=4, conditions=inputs, sampling=sampling, seed=5)
    assert whole_batch.max() < V
    assert whole_batch.unique().numel() > V // 3
    streamed = generator.stream(
        26, chunk_frames=3, batch_size=4, conditions=inputs, sampling=sampling, seed=5
    )
    assert torch.equal(torch.cat(list(streamed), dim=2), whole_batch)
    for i in range(4):
        alone = {name: type(one)(one.values[i : i + 1], one.mask[i : i + 1]) for name, one in inputs.items()}
        clip = generator.generate(26, batch_size=1, conditions=alone, sampling=sampling, seed=5, first_clip=i)
        assert torch.equal(clip[0], whole_batch[i])
    shorter = generator.generate(17, batch_size=4, conditions=inputs, sampling=sampling, seed=5)
    assert torch.equal(shorter[:, :, :15], whole_batch[:, :, :15])  # the last steps of a delay see less
    other = generator.generate(26, batch_size=4, conditions=inputs, sampling=sampling, seed=6)
    assert not torch.equal(other, whole_batch)


@pytest.mark.parametrize("num_prompt", [0, 9])
@pytest.mark.parametrize("family", ["wavenet", "causal_conv", "rnn", "samplernn"])
def test_greedy_is_what_the_naive_loop_finds(family, num_prompt):
    lm = FAMILIES[family]()
    shape = 4, lm.config.num_codebooks, num_prompt
    prompt = torch.randint(0, V, shape, generator=torch.Generator().manual_seed(2))
    pitches = {"pitch": [60, 62, 64, 64]}
    # The naive loop is written for three codebooks; with one, its pattern says the same.
    expected = naive_greedy_of(lm, 14, lm.config.conditions.encode(pitches), prompt)
    codes = generate(lm, 14, conditions=pitches, prompt=prompt, temperature=0, cfg_scale=2.0)
    assert torch.equal(codes, expected)


def naive_greedy_of(lm, num_frames, given, prompt):
    """`naive_greedy` for any number of codebooks and classes."""
    from tokkata.tests.lm import tiny_lm

    known = tiny_lm.K, tiny_lm.V
    tiny_lm.K, tiny_lm.V = lm.config.num_codebooks, V
    try:
        return naive_greedy(lm, num_frames, given, list(prompt), 2.0)
    finally:
        tiny_lm.K, tiny_lm.V = known


@pytest.mark.parametrize("family", ["wavenet-local", "causal_conv", "rnn", "samplernn"])
def test_without_a_compiler_the_same_clips_and_one_line(family, monkeypatch, capsys):
    lm = FAMILIES[family]()
    settings = {"conditions": some(lm), "top_p": 0.9, "temperature": 1.3, "cfg_scale": 1.5, "seed": 2}
    expected = generate(lm, 30, **settings)
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.load_kernel.cache_clear()
    try:
        assert torch.equal(generate(lm, 30, **settings), expected)
        assert torch.equal(generate(lm, 30, **settings), expected)
        with pytest.raises(UserError, match="bf16 on cpu without its compiled kernel: choose fp32"):
            generate(lm, 3, weights="bf16")
    finally:
        native.load_kernel.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "without the compiled kernel 'program', so slowly: no-such-compiler cannot build it" in lines[0]


@needs_compiler
def test_a_kernel_is_built_once_and_again_for_other_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load_kernel.cache_clear()
    try:
        assert native.load_kernel("program") is not None
        (built,) = (tmp_path / "tokkata").iterdir()
        written = built.stat().st_mtime_ns
        native.load_kernel.cache_clear()
        assert native.load_kernel("program") is not None
        assert [file.stat().st_mtime_ns for file in (tmp_path / "tokkata").iterdir()] == [written]
    finally:
        native.load_kernel.cache_clear()


@needs_compiler
def test_bf16_rounds_and_nothing_else():
    lm = tiny_steps.wavenet()
    rounded = tiny_steps.wavenet()
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if name.endswith("weight") and not name.startswith("condition"):
                parameter.copy_(parameter.bfloat16())
    pitches = {"pitch": [60, 64]}
    codes = generate(lm, 60, conditions=pitches, weights="bf16")
    assert torch.equal(codes, generate(rounded, 60, conditions=pitches))
    with pytest.raises(UserError, match="cannot generate with weights in int8 on cpu: choose fp32"):
        generate(lm, 2, weights="int8")


def program_of_logits(logits, num_codebooks=1):
    """A program whose prediction after token t is row t of `logits` [V + 1, K V], whatever the codebook."""
    buffer = Buffer("logits", logits.shape[1])
    table = logits[None, None]
    return Program((Embed(whole(buffer), table),), 1, whole(buffer), num_codebooks, len(logits) - 1, None)


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3, 18, 40]),
    top_p=st.sampled_from([None, 0.1, 0.8, 1.0]),
    cfg_scale=st.sampled_from([1.0, 0.0, 3.0]),
)
def test_the_kernel_samples_as_sample_tokens_does(seed, temperature, top_k, top_p, cfg_scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(V + 1, V, generator=generator) * 3
    sampling = Sampling(temperature, top_k, top_p, cfg_scale)
    num_rows = 6 if sampling.is_guided else 3
    noise = 1 - torch.rand(3, 1, 40, generator=generator)
    tokens = torch.full((3, 1, 41), V)
    draft = Draft(tokens, torch.ones(3, 1, 40, dtype=torch.bool), noise, sampling)
    program = program_of_logits(logits)
    executor = NativeProgram(program).executor(num_rows, {})
    ProgramDecoder(executor, program, num_rows).run(draft, 0, 40)
    # Both rows of guidance predict the same here, so that guidance changes nothing.
    expected = sample_tokens(logits[tokens[:, 0, :-1]], temperature, top_k, top_p, noise[:, 0])
    assert torch.equal(tokens[:, 0, 1:], expected)


def test_a_model_that_predicts_nan_is_refused():
    for temperature in (0.0, 1.0):
        lm = tiny_steps.wavenet()
        with torch.no_grad():
            lm.head[1].bias[3] = torch.nan
        with pytest.raises(UserError, match="the model predicts NaN"):
            generate(lm, 5, temperature=temperature)


@pytest.mark.parametrize("family", ["wavenet-local", "causal_conv", "rnn", "samplernn-2-tiers"])
def test_a_saved_model_is_the_same(family, tmp_path):
    lm = FAMILIES[family]()
    lm.save_pretrained(tmp_path)
    again = load_lm(tmp_path)
    assert type(again) is type(lm)
    assert again.config == lm.config
    tokens, given = random_input(lm), some(lm)
    with torch.no_grad():
        assert torch.equal(again.logits(tokens, given), lm.logits(tokens, given))


def some_draft(lm, batch_size, num_steps, sampling, device="cpu"):
    """One token in five is known."""
    shape = batch_size, lm.config.num_codebooks, num_steps
    rng = torch.Generator().manual_seed(5)
    tokens = torch.cat([torch.full((*shape[:2], 1), V), torch.randint(0, V, shape, generator=rng)], dim=2)
    to_sample, noise = torch.rand(shape, generator=rng) < 0.8, 1 - torch.rand(shape, generator=rng)
    return Draft(*(one.to(device) for one in (tokens, to_sample, noise)), sampling)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_make_the_tokens_of_single_steps(family, monkeypatch):
    lm = FAMILIES[family]()
    num_steps, given, replays = 3 * GRAPH_STEPS + 5, some(lm), []
    single, replayed = (some_draft(lm, 4, num_steps, Sampling(top_k=9)) for _ in range(2))
    replay = GraphExecutor._replay
    monkeypatch.setattr(GraphExecutor, "_replay", lambda self, *a: replays.append(a) or replay(self, *a))
    with torch.inference_mode():
        tiny_steps.decoder(lm, "torch", given, 4).run(single, 3, num_steps)
        as_on_a_gpu(monkeypatch)
        decoder = tiny_steps.decoder(lm, "graph", given, 4)
        decoder.run(replayed, 3, num_steps - 7)
        decoder.run(replayed, num_steps - 7, num_steps)
    assert len(replays) == 2
    assert torch.equal(replayed.tokens, single.tokens)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_captured_step_neither_reads_from_the_device_nor_brings_anything_to_it(family, device):
    lm = FAMILIES[family]().to(device)
    given = {name: one.to(device) for name, one in some(lm).items()}
    draft = some_draft(lm, 2, 9, Sampling(0.9, 7, 0.8, cfg_scale=2.0), device)
    with torch.inference_mode():
        executor = tiny_steps.decoder(lm, "graph", given, 4)._executor
        with NothingOfTheHost(device):
            executor._steps(draft, 0, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_on_a_gpu_make_the_same_clips(family):
    lm = FAMILIES[family]()
    num_frames = 3 * GRAPH_STEPS
    expected = generate(lm, num_frames, conditions=some(lm), seed=1)
    lm.cuda()
    prepared = prepare_program(lm, "fp32")
    decoder = prepared.decoder({n: one.to(lm.device) for n, one in some(lm).items()}, 4, 10)
    assert isinstance(decoder._executor, GraphExecutor)
    codes = generate(lm, num_frames, conditions=some(lm), seed=1).cpu()
    # Sums are rounded in another order there: now and then a token falls to the other side.
    assert (codes == expected)[:, :, :20].float().mean() > 0.95
    assert torch.equal(codes, generate(lm, num_frames, conditions=some(lm), seed=1).cpu())
