"""Training on rows of short clips: batches, and that a step is the one of the same clips unpacked.

Shapes: B batch, K codebooks, T frames.
"""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tokkata.core.conditions import Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.schema import Train
from tokkata.lm import train as module
from tokkata.lm.feeding import Source, make_feed
from tokkata.lm.train import train_lm
from tokkata.tests.lm.tiny_lm import EVERYTHING, tiny

CROP_S = 0.44  # 22 frames of clips of 5 to 14
LABELS = {"conditions": ["pitch", "player"], "condition_dropout": 0.5}


@pytest.fixture
def packed_job(lm_recipe, write_tokens, monkeypatch):
    """`packed_job(crop_s=…, model={…})`: what training is handed, its store and its recipe."""

    def make(crop_s=CROP_S, name="run", num_clips=16, model=LABELS, **changes):
        recipe = lm_recipe(name=name, model=model, train={"crop_s": crop_s, "pack": True, **changes})
        store = write_tokens(recipe, train=num_clips, valid=3)
        handed = []
        with monkeypatch.context() as patch:
            patch.setattr(module, "train", lambda job, config, folder: handed.append(job))
            train_lm(recipe)
        return handed[0], store, recipe

    return make


def parts_of(batch):
    """The clips of a batch as they come: (number, codes [K, n])."""
    found = []
    for codes, mask, clips in zip(batch["codes"], batch["mask"], batch["clips"], strict=True):
        for number in clips.unique().tolist():
            found.append((number, codes[:, mask & (clips == number)]))
    return found


@pytest.mark.parametrize("crop_s", [CROP_S, 0.2])
def test_a_batch_holds_the_clips_of_the_store(packed_job, crop_s):
    job, store, _ = packed_job(crop_s, model={"conditions": ["player"], "condition_dropout": 0.0})
    split, num_frames = store.split("train"), round(crop_s * 50)
    players = split.column("player")
    values = job.modules["lm"].config.conditions["player"].values
    num_clips = []
    for step in range(6):
        batch = job.batch(step, range(8))
        assert batch["codes"].shape == (8, 3, num_frames)
        parts = parts_of(batch)
        assert [number for number, _ in parts] == list(range(len(batch["values/player"])))
        num_clips.append(len(parts))
        for number, codes in parts:
            clip = players.index(values[batch["values/player"][number] - 1])
            whole = torch.from_numpy(split.codes(clip))
            assert codes.shape[1] == min(num_frames, whole.shape[1])
            assert any(torch.equal(piece, codes) for piece in whole.unfold(1, codes.shape[1], 1).unbind(1))
    if crop_s == CROP_S:
        assert min(num_clips) > 8


def test_every_clip_comes_up_once_a_pass(packed_job):
    model = {"conditions": ["player"], "condition_dropout": 0.0}
    job, store, _ = packed_job(model=model, batch_size=1)
    names = job.modules["lm"].config.conditions["player"].values
    stream = []
    for step in range(20):
        stream += [names[row - 1] for row in job.batch(step, range(1))["values/player"][:, 0].tolist()]
    assert Counter(stream[:16]) == Counter(store.split("train").column("player"))
    assert Counter(stream[16:32]) == Counter(stream[:16])


def test_a_token_costs_what_its_clip_asks_for(packed_job):
    job, store, _ = packed_job()
    lm, lengths = job.modules["lm"], store.split("train").num_frames.tolist()
    total = sum(lm.clip_flops(num_frames, {}) for num_frames in lengths)
    assert job.flops_per_unit == pytest.approx(total / (3 * sum(lengths)))


def test_a_batch_does_not_depend_on_who_computes_it(packed_job):
    batch = packed_job()[0].batch

    @settings(deadline=None, max_examples=40)
    @given(step=st.integers(0, 1000), cuts=st.sets(st.integers(1, 7)))
    def shared_out(step, cuts):
        whole = batch(step, range(8))
        ends = [0, *sorted(cuts), 8]
        parts = [batch(step, range(start, stop)) for start, stop in pairwise(ends)]
        for name, tensor in whole.items():
            if name != "clips":
                assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
        num_before = 0
        for part, (start, stop) in zip(parts, pairwise(ends), strict=True):
            assert torch.equal(part["clips"] + num_before, whole["clips"][start:stop])
            num_before += len(part["values/pitch"])

    shared_out()


def test_labels_are_hidden_clip_by_clip(packed_job):
    batch = packed_job()[0].batch
    batches = [batch(step, range(8)) for step in range(100)]
    hidden = ~torch.cat([found["mask/pitch"] for found in batches])[:, 0]
    assert torch.equal(hidden, ~torch.cat([found["mask/player"] for found in batches])[:, 0])
    assert len(hidden) > 1000
    assert abs(float(hidden.float().mean()) - 0.5) < 0.1  # six standard deviations
    in_rows = [hidden_ for found in batches for hidden_ in mixed_rows(found)]
    assert sum(in_rows) > 100  # both kinds in one row


def mixed_rows(batch):
    hidden = ~batch["mask/pitch"][:, 0]
    return [0 < int(hidden[row.unique()].sum()) < len(row.unique()) for row in batch["clips"]]


def test_the_loss_is_that_of_the_clips_alone(packed_job):
    job, *_ = packed_job()
    lm = job.modules["lm"].eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
        batch = job.batch(3, range(8))
        loss = job.phases[0].loss({"lm": lm}, batch)
        total, num_tokens = 0.0, 0
        for number, codes in parts_of(batch):
            alone = {name: tensor[number : number + 1] for name, tensor in batch.items() if "/" in name}
            alone |= {"codes": codes[None], "mask": torch.ones(1, codes.shape[1], dtype=torch.bool)}
            one = job.phases[0].loss({"lm": lm}, alone)
            total += float(one.mean * one.weight)
            num_tokens += int(one.weight)
    assert int(loss.weight) == num_tokens == int(batch["mask"].sum()) * 3
    assert float(loss.mean) == pytest.approx(total / num_tokens, rel=1e-5)


def test_micro_batches_change_nothing(lm_recipe, write_tokens):
    found = []
    for parts in (1, 2, 4):
        settings_ = {"crop_s": CROP_S, "pack": True, "grad_accumulation": parts, "steps": 5}
        recipe = lm_recipe(name=f"in-{parts}", model=LABELS, train=settings_)
        write_tokens(recipe, train=16, valid=2)
        train_lm(recipe)
        weights = load_file(recipe.folder / "model" / "model.safetensors")
        losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
        found.append((weights, losses))
    (whole, losses), *others = found
    for weights, other_losses in others:
        assert other_losses == pytest.approx(losses, rel=1e-5)
        for name, weight in whole.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)


def test_it_learns_packed_clips_by_heart(lm_recipe, write_tokens):
    recipe = lm_recipe(
        model={"conditions": ["player"], "condition_dropout": 0.0},
        train={"steps": 120, "batch_size": 2, "crop_s": 0.7, "pack": True, "lr": 2e-2, "log_every": 1},
    )
    write_tokens(recipe, train=4)
    train_lm(recipe)
    losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    assert losses[0] > 2.0
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"pattern": "coarse_first"}, "several clips in one row, which the pattern 'coarse_first' would mix"),
        (
            {"conditions": [{"name": "pitch", "fuse": "prepend"}]},
            "have no place each for the condition 'pitch' to enter by 'prepend': turn it off, or choose",
        ),
        (
            {"conditions": ["player", {"name": "pitch", "fuse": "cross"}]},
            "have no place each for the condition 'pitch' to enter by 'cross'",
        ),
    ],
)
def test_what_cannot_be_packed_is_told_before_anything_starts(lm_recipe, model, message):
    assert lm_recipe(model=model).train.pack is False
    with pytest.raises(UserError, match=message):
        lm_recipe(model=model, train={"pack": True})


def test_a_model_that_inherits_what_cannot_be_packed_is_told(lm_recipe, write_tokens):
    store = write_tokens(lm_recipe(), train=2)

    def feed(lm):
        return make_feed(lm, Source(store, Conditions(), 0.0), Train(steps=1, pack=True), 22)

    with pytest.raises(UserError, match=r"train\.pack: .* the condition 'form' to enter by 'prepend'"):
        feed(tiny(EVERYTHING))
    with pytest.raises(UserError, match=r"train\.pack: clips cannot share a row under the model's Coarse"):
        feed(tiny(pattern="coarse_first"))
