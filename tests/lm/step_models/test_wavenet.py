"""WaveNet: what it sees, what it is told, what it is trained on.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.conditions import Condition, Conditions, hide_all
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import RecipeError
from tokkata.core.schema_models import WAVENET_PRESETS, WaveNetModel
from tokkata.lm import train as train_module
from tokkata.lm.generate import Generator, generate
from tokkata.lm.load import load_lm
from tokkata.lm.step_models.wavenet import WaveNet, WaveNetConfig
from tokkata.lm.train import train_lm
from tokkata.tests.lm.sample_tokens import sample_recipe, write_samples
from tokkata.tests.lm.tiny_steps import (
    LOCAL,
    MELODY,
    PITCHES,
    SAMPLES,
    V,
    causal_conv,
    random_input,
    some,
    wavenet,
)


def random_codes(batch_size=2, num_frames=60):
    return torch.randint(0, V, (batch_size, 1, num_frames), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def job_of(monkeypatch):
    """What `train_lm` hands to the training loop."""

    def job(recipe):
        handed = []
        monkeypatch.setattr(train_module, "train", lambda job, config, folder: handed.append(job))
        train_lm(recipe)
        monkeypatch.undo()
        return handed[0]

    return job


# -------------------------------------------------------------------------------------------- what it sees


@settings(deadline=None, max_examples=25)
@given(stacks=st.integers(1, 2), layers=st.integers(1, 4), kernel=st.integers(2, 3))
def test_it_sees_its_receptive_field_and_nothing_else(stacks, layers, kernel):
    lm = wavenet(Conditions(), num_stacks=stacks, layers_per_stack=layers, kernel_size=kernel)
    embedded = []
    lm._embed = lambda tokens: embedded.append(type(lm)._embed(lm, tokens).requires_grad_()) or embedded[-1]
    field = lm.config.receptive_field
    num_steps = field + 7
    logits = lm.logits(random_input(lm, 1, num_steps))
    (gradient,) = torch.autograd.grad(logits[0, 0, -3].square().sum(), embedded[0])
    seen = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
    # The embedding itself looks back over all taps.
    first = num_steps - 3 - (field - 1) + kernel - 1
    assert seen[0] == first
    assert seen[-1] == num_steps - 3


def test_the_receptive_fields_of_the_papers():
    small = WaveNetConfig.for_codec(SAMPLES | {"frame_rate": 16000.0}, **WAVENET_PRESETS["small"])
    assert small.receptive_field == 5117  # 5 (1 + 2 + … + 512) + 1 and one more tap at the beginning
    assert small.summary() == "wavenet of 50 layers: receptive field 5117 steps, 0.32 s"
    large = WaveNetConfig.for_codec(SAMPLES, **WAVENET_PRESETS["large"])
    assert len(large.dilations) == 30
    assert causal_conv(pattern="flatten").config.summary().endswith("receptive field 15 steps, 0.1 s")


def test_presets_can_be_seen_and_changed():
    small = WaveNetModel.model_validate({"kind": "wavenet", "preset": "small", "skip_channels": 64})
    shown = small.model_dump()
    assert {name: shown[name] for name in WAVENET_PRESETS["small"]} == WAVENET_PRESETS["small"] | {
        "skip_channels": 64
    }
    assert WaveNetModel.model_validate(shown) == small


def test_a_prediction_does_not_see_what_follows():
    lm = wavenet()
    tokens = random_input(lm, 2)
    changed = tokens.clone()
    changed[:, :, 30:] = (changed[:, :, 30:] + 1) % V
    with torch.no_grad():
        before, after = lm.logits(tokens), lm.logits(changed)
    assert torch.equal(before[:, :, :30], after[:, :, :30])
    assert not torch.equal(before[:, :, 30], after[:, :, 30])


def test_of_a_prompt_it_reads_no_more_than_it_can_see(monkeypatch):
    lm = wavenet()
    prompt = random_codes(1, 100)
    generator = Generator(lm)
    codes = generator.generate(130, prompt=prompt, seed=1)
    changed = prompt.clone()
    changed[:, :, : 100 - lm.config.receptive_field] = 0
    other = generator.generate(130, prompt=changed, seed=1)
    assert torch.equal(codes[:, :, 100:], other[:, :, 100:])
    changed[:, :, 100 - lm.config.receptive_field] += 1
    read = []
    executor = generator._prepared._executor
    monkeypatch.setattr(
        generator._prepared,
        "_executor",
        lambda *args: _Watched(executor(*args), read),
    )
    assert torch.equal(generator.generate(130, prompt=prompt, seed=1), codes)
    assert read[0][0] == 100 - lm.config.receptive_field + 1
    assert read[-1][1] == 130


class _Watched:
    def __init__(self, executor, read):
        self.executor, self.read = executor, read

    def run(self, tokens, start, stop, *rest):
        self.read.append((start, stop))
        self.executor.run(tokens, start, stop, *rest)


# ------------------------------------------------------------------------------------------------ the loss


def test_padding_is_neither_seen_nor_counted():
    lm = wavenet()
    codes = random_codes()
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 40:] = False
    with torch.no_grad():
        both = lm(codes, frame_mask=mask)
        alone = [lm(codes[:1]), lm(codes[1:, :, :40])]
    assert both.num_tokens == 100
    total = sum(float(one.mean * one.num_tokens) for one in alone)
    assert float(both.mean) * 100 == pytest.approx(total, rel=1e-5)


@settings(deadline=None, max_examples=15)
@given(start=st.integers(1, 25))
def test_a_crop_with_its_context_has_the_loss_that_it_has_within_the_recording(start):
    lm = wavenet()
    codes = random_codes()
    field = lm.config.receptive_field
    last = start + field + 15
    counted = torch.arange(field + 15) >= field
    with torch.no_grad():
        crop = lm(codes[:, :, start:last], counted=counted.expand(2, -1))
        tokens = F.pad(codes[:, :, :-1], (1, 0), value=V)
        logits = lm.logits(tokens)[:, 0, start + field : last]
        expected = F.cross_entropy(logits.flatten(0, 1), codes[:, 0, start + field : last].flatten())
    assert crop.num_tokens == 30
    torch.testing.assert_close(crop.mean, expected, rtol=1e-5, atol=1e-6)


def test_crops_from_within_a_recording_come_with_context(tmp_path, job_of):
    model = {"kind": "wavenet", "layers_per_stack": 3, "conditions": ["pitch"]}
    recipe = sample_recipe(tmp_path, model, batch_size=8)
    store = write_samples(recipe, train=8, valid=2)
    job = job_of(recipe)
    field = job.modules["lm"].config.receptive_field
    split = store.split("train")
    begun = 0
    for step in range(20):
        batch = job.batch(step, range(8))
        assert batch["codes"].shape == (8, 1, 24 + field)
        for codes, mask, counted in zip(batch["codes"], batch["mask"], batch["counted"], strict=True):
            number = int(mask.sum())
            places = [
                start
                for clip in range(8)
                for whole in [torch.from_numpy(split.codes(clip))]
                for start in range(whole.shape[1] - number + 1)
                if torch.equal(whole[:, start : start + number], codes[:, :number])
            ]
            assert places
            begins = bool(counted[0])
            begun += begins
            assert begins == (0 in places) or len(places) > 1
            assert counted.tolist() == [begins] * field + [True] * 24
    assert 0 < begun < 160


# ---------------------------------------------------------------------------------------------- conditions


def test_each_step_is_told_the_state_that_belongs_to_it():
    lm = wavenet(Conditions((MELODY,)))
    tokens = random_input(lm, 1, 30)
    states = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    given_states = lm.config.conditions.encode({"melody": [states]})
    with torch.no_grad():
        logits = lm.logits(tokens, given_states)
        for i in range(5):  # a state lasts 7 steps
            changed = states.clone()
            changed[i] += 1
            other = lm.logits(tokens, lm.config.conditions.encode({"melody": [changed]}))
            differs = (other != logits).any(-1)[0, 0].nonzero()[:, 0].tolist()
            if i * 7 < 30:
                assert differs[0] == i * 7
            else:
                assert differs == []


def test_conditions_of_any_kind_matter_and_hidden_ones_are_as_if_not_given():
    lm = wavenet(LOCAL)
    tokens, values = random_input(lm), some(lm)
    with torch.no_grad():
        logits, hidden = lm.logits(tokens, values), lm.logits(tokens)
        assert torch.equal(lm.logits(tokens, hide_all(values)), hidden)
        for name in values:
            without = {other: one for other, one in values.items() if other != name}
            changed = (lm.logits(tokens, without) != logits).flatten(1).any(1)
            assert changed.tolist() == [True, False, True, True]  # of the second clip nothing is told


def test_conditions_enter_by_sum_alone():
    with pytest.raises(UserError, match="'text' cannot enter a wavenet by 'cross': choose fuse: sum"):
        wavenet(Conditions((Condition("text", "sequence", "cross", width=3),)))
    with pytest.raises(RecipeError, match="'pitch' cannot enter this kind of model by 'prepend'"):
        sample_recipe(None, {"kind": "wavenet", "conditions": [{"name": "pitch", "fuse": "prepend"}]})


def test_it_is_for_one_codebook():
    with pytest.raises(UserError, match="not 8: choose kind: causal_conv"):
        WaveNetConfig.for_codec(SAMPLES | {"num_codebooks": 8})


# ------------------------------------------------------------------------------------------------ training


def test_it_learns_waves_by_heart(tmp_path, capsys):
    shape = {"layers_per_stack": 4, "residual_channels": 16, "gate_channels": 16, "skip_channels": 32}
    model = {"kind": "wavenet", "conditions": ["pitch"], "condition_dropout": 0.0} | shape
    recipe = sample_recipe(tmp_path, model, steps=80, lr=2e-2, log_every=1, save_every=80)
    store = write_samples(recipe, train=4)
    train_lm(recipe)
    assert "train: wavenet of 8 layers: receptive field 32 steps, 0.032 s" in capsys.readouterr().err
    losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    assert losses[0] == pytest.approx(2.94, abs=0.1)  # ln 19
    assert losses[-1] < 0.2
    lm = load_lm(recipe.folder / "model")
    assert lm.config.codec == dataclasses.asdict(store.info)
    split = store.split("train")
    made = generate(lm, 60, conditions={"pitch": split.column("pitch")}, temperature=0)
    right = sum(float((made[i] == torch.from_numpy(split.codes(i, 0, 60))).float().mean()) for i in range(4))
    assert right / 4 > 0.9


def test_blocks_can_be_checkpointed(tmp_path):
    model = {"kind": "wavenet", "layers_per_stack": 3}
    weights = {}
    for name in ("plain", "checkpointed"):
        recipe = sample_recipe(tmp_path, model, name=name, activation_checkpointing=name == "checkpointed")
        write_samples(recipe, train=4, valid=2)
        train_lm(recipe)
        weights[name] = (recipe.folder / "model" / "model.safetensors").read_bytes()
    assert weights["plain"] == weights["checkpointed"]


def test_every_weight_is_trained():
    lm = wavenet(LOCAL).train()
    lm(random_codes(4, 60), some(lm)).mean.backward()
    assert [name for name, p in lm.named_parameters() if p.grad is None] == []


def test_each_clip_of_a_batch_has_its_own_condition():
    lm = wavenet(PITCHES)
    tokens = random_input(lm)
    with torch.no_grad():
        parts = [lm.logits(tokens[i : i + 1], PITCHES.encode({"pitch": [p]})) for i, p in enumerate([60, 62])]
        both = lm.logits(tokens[:2], PITCHES.encode({"pitch": [60, 62]}))
    torch.testing.assert_close(torch.cat(parts), both, rtol=1e-5, atol=1e-4)


def test_at_first_near_amplitudes_are_alike_and_all_are_equally_likely():
    torch.manual_seed(0)
    config = WaveNetConfig.for_codec(SAMPLES | {"codebook_size": 256})
    lm = WaveNet(config)
    with torch.no_grad():
        for rows in (lm.table[0, 0, :-1], lm.table[1, 0, :-1], lm.head[1].weight):
            squares = (rows[:, None] - rows[None]).square().mean(-1)  # [V, V]
            near, far = squares.diagonal(1).mean(), squares.diagonal(100).mean()
            assert near < 0.1 * far
        loss = float(lm(torch.randint(0, 256, (2, 1, 200))).mean)
    assert loss == pytest.approx(math.log(256), abs=0.1)
