"""SampleRNN: tiers, chunks with carried state, and a resume within a recording.

Shapes: B batch, T samples, V classes.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import RecipeError
from tokkata.lm import train as module
from tokkata.lm.feeding import ChunkFeed, Source
from tokkata.lm.load import load_lm
from tokkata.lm.step_models.samplernn import SampleRNNConfig
from tokkata.lm.train import train_lm
from tokkata.tests.lm.sample_tokens import sample_recipe, write_samples
from tokkata.tests.lm.tiny_steps import FRAMES, V, random_input, samplernn, some

PITCHES = Conditions((Condition("pitch", "label", values=(60, 61, 62, 63)),))
MODEL = {"kind": "samplernn", "dim": 16, "embedding_dim": 8, "conditions": ["pitch"]}
SHAPES = [
    {},
    {"frame_sizes": (6,), "num_layers": 2},
    {"frame_sizes": (8, 4, 2), "cell": "lstm"},
]


def codes_of(batch_size=3, num_samples=48):
    shape = batch_size, 1, num_samples
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_with_their_state_are_the_whole(shape):
    lm = samplernn(**shape)
    codes, values = codes_of(), some(lm, 3)
    with torch.no_grad():
        whole = lm(codes, values)
        state, total = lm.empty_state(3), 0.0
        for i, part in enumerate(codes.split(24, dim=2)):
            found = lm(part, values, state=state, begins=torch.full((3,), i == 0))
            state, total = found.state, total + float(found.mean * found.num_tokens)
        forgetful = sum(float(lm(part, values).mean) * part.numel() for part in codes.split(24, dim=2))
    assert total == pytest.approx(float(whole.mean) * codes.numel(), rel=1e-5)
    assert abs(forgetful - total) > 1e-3 * total


def test_a_row_that_begins_a_recording_knows_nothing_of_the_one_before():
    lm = samplernn()
    first, second = codes_of(3, 24), codes_of(3, 48)[:, :, 24:]
    begins = torch.tensor([False, True, False])
    with torch.no_grad():
        state = lm(first).state
        kept = dict(state)
        after = lm(second, state=state, begins=begins).state
        fresh = lm(second).state
        going_on = lm(second, state=kept, begins=torch.zeros(3, dtype=torch.bool)).state
    for name in after:
        torch.testing.assert_close(after[name][1], fresh[name][1])
        torch.testing.assert_close(after[name][[0, 2]], going_on[name][[0, 2]])
        assert name == "last" or not torch.allclose(after[name][0], fresh[name][0])


def test_padding_is_neither_seen_nor_counted():
    lm = samplernn()
    codes = codes_of(2, 48)
    mask = torch.ones(2, 48, dtype=torch.bool)
    mask[1, 29:] = False  # no whole number of frames
    with torch.no_grad():
        both = lm(codes, frame_mask=mask)
        alone = [lm(codes[:1]), lm(codes[1:, :, :29])]
    assert both.num_tokens == 77
    total = sum(float(one.mean * one.num_tokens) for one in alone)
    assert float(both.mean) * 77 == pytest.approx(total, rel=1e-5)


def test_the_loss_is_that_of_the_logits():
    lm = samplernn()
    codes = codes_of()
    with torch.no_grad():
        logits = lm.logits(F.pad(codes[:, :, :-1], (1, 0), value=V))
        expected = F.cross_entropy(logits[:, 0].flatten(0, 1), codes.flatten())
        torch.testing.assert_close(lm(codes).mean, expected)


def test_a_prediction_does_not_see_what_follows():
    lm = samplernn()
    tokens = random_input(lm, 2)
    for step in (17, 24, 31):
        changed = tokens.clone()
        changed[:, :, step:] = (changed[:, :, step:] + 1) % V
        with torch.no_grad():
            before, after = lm.logits(tokens), lm.logits(changed)
        torch.testing.assert_close(before[:, :, :step], after[:, :, :step], rtol=0, atol=0)
        assert not torch.equal(before[:, :, step], after[:, :, step])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tier_runs_at_its_own_clock(shape):
    lm = samplernn(**shape)
    program = lm.step_program()
    sizes = lm.config.frame_sizes
    assert [op.period for op in program.operations] == sorted(
        (op.period for op in program.operations), reverse=True
    )
    assert {op.period for op in program.operations} == {*sizes, 1}
    # With the program at hand: products with weights a sample are those of each tier, divided by its period.
    weights = dict.fromkeys((*sizes, 1), 0.0)
    for op in program.operations:
        weight = getattr(op, "weight", None)
        weights[op.period] += 0 if weight is None else weight.numel()
    assert all(weights.values())


def test_every_weight_is_trained_the_initial_states_too():
    lm = samplernn(cell="lstm").train()
    lm(codes_of(), some(lm, 3)).mean.backward()
    untrained = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert untrained == []


@pytest.mark.parametrize("sizes", [[2, 8], [8, 3], [8, 8], [8, 1]])
def test_frame_sizes_must_be_multiples(sizes):
    with pytest.raises(RecipeError, match="must fall, each a multiple of the next"):
        sample_recipe(None, MODEL | {"frame_sizes": sizes})
    with pytest.raises(UserError, match="must fall, each a multiple of the next"):
        samplernn(frame_sizes=tuple(sizes))


def test_it_is_for_one_codebook():
    with pytest.raises(UserError, match="needs a codec of one codebook, such as linear:16000, not 3"):
        SampleRNNConfig.for_codec(FRAMES)


# ------------------------------------------------------------------------------------------------ training


def test_rows_go_through_recordings_chunk_after_chunk(tmp_path):
    recipe = sample_recipe(tmp_path, MODEL, crop_s=0.02)  # 20 samples are no whole frames: 24 are
    store = write_samples(recipe, train=5, valid=1)
    lm = samplernn()
    feed = ChunkFeed(Source(store, PITCHES, 0.5), recipe.train, 20, lm)
    split = store.split("train")
    recordings = [torch.from_numpy(split.codes(i))[0] for i in range(5)]
    heard, current = [], None
    for step in range(60):
        batch = feed.batch(step, range(1, 3))
        assert batch["codes"].shape == (2, 1, 24)
        part = batch["codes"][0, 0, batch["mask"][0]]
        if batch["begins"][0]:
            heard.append(current)
            current, hidden = part, batch["mask/pitch"][0]
        else:
            current = torch.cat([current, part])
            assert torch.equal(batch["mask/pitch"][0], hidden)  # told throughout, or not at all
    whole = heard[1:]
    assert len(whole) > 8
    for one in whole:
        assert any(torch.equal(one, recording) for recording in recordings)


@settings(deadline=None, max_examples=10)
@given(step=st.integers(0, 500), cut=st.integers(1, 3))
def test_a_batch_does_not_depend_on_who_computes_it(tmp_path_factory, step, cut):
    recipe = sample_recipe(tmp_path_factory.mktemp("run"), MODEL)
    store = write_samples(recipe, train=5)
    feed = ChunkFeed(Source(store, PITCHES, 0.5), recipe.train, 24, samplernn())
    whole = feed.batch(step, range(4))
    parts = [feed.batch(step, range(cut)), feed.batch(step, range(cut, 4))]
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def test_stopped_within_recordings_and_resumed_is_bitwise_undisturbed(tmp_path, monkeypatch):
    recipes = [sample_recipe(tmp_path, MODEL, name=name, steps=7) for name in ("whole", "parts")]
    for recipe in recipes:
        write_samples(recipe, train=6, valid=2)
    whole, parts = recipes
    train_lm(whole)
    loss, calls = module._loss, 0

    def fail(modules, batch):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RuntimeError("the machine has gone away")
        return loss(modules, batch)

    monkeypatch.setattr(module, "_loss", fail)
    with pytest.raises(RuntimeError, match="gone away"):
        train_lm(parts)
    monkeypatch.undo()
    newest = list_checkpoints(parts.folder / "checkpoints")[-1]
    assert newest.name == "step-000004"
    assert (newest / "carried.safetensors").exists()
    train_lm(parts)
    name = "model/model.safetensors"
    assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()
    logs = [read_jsonl(recipe.folder / "logs" / "train.jsonl")[-1] for recipe in recipes]
    assert logs[0]["valid/loss"] == logs[1]["valid/loss"]


def test_validation_carries_the_state_from_chunk_to_chunk(tmp_path, monkeypatch):
    handed = []
    recipe = sample_recipe(tmp_path, MODEL, batch_size=2)
    store = write_samples(recipe, train=4, valid=3)
    monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
    train_lm(recipe)
    lm = handed[0].modules["lm"].eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(3)
        found = handed[0].validate(lm)["loss"]
        split, total, number = store.split("valid"), 0.0, 0
        for i in range(3):
            codes = torch.from_numpy(split.codes(i))[None]
            pitch = lm.config.conditions.encode({"pitch": [split.column("pitch")[i]]})
            total += float(lm(codes, pitch).mean) * codes.numel()
            number += codes.numel()
    assert found == pytest.approx(total / number, rel=1e-5)


def test_it_learns_waves_by_heart(tmp_path, capsys):
    recipe = sample_recipe(
        tmp_path,
        MODEL | {"condition_dropout": 0.0, "dim": 32},
        steps=180,
        lr=1e-2,
        log_every=1,
        save_every=180,
    )
    store = write_samples(recipe, train=4)
    train_lm(recipe)
    assert "train: samplernn of 3 tiers: 125 Hz, 500 Hz and 1000 Hz" in capsys.readouterr().err
    losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    assert losses[0] == pytest.approx(2.94, abs=0.1)  # ln 19
    assert losses[-1] < 0.3
    lm = load_lm(recipe.folder / "model")
    split = store.split("train")
    for i, pitch in enumerate(split.column("pitch")):
        codes = torch.from_numpy(split.codes(i))[None]
        with torch.no_grad():
            assert float(lm(codes, lm.config.conditions.encode({"pitch": [pitch]})).mean) < 0.4
