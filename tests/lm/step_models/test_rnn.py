"""The recurrent baseline over codec tokens.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

import pytest
import torch

from tokkata.core.files import read_jsonl
from tokkata.lm.load import load_lm
from tokkata.lm.train import train_lm
from tokkata.tests.lm.tiny_steps import check_loss_of_the_pattern, random_frames, random_input, rnn, some


def random_codes(batch_size=2, num_frames=12):
    return random_frames(batch_size, num_frames)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_the_loss_is_that_of_the_pattern(pattern):
    check_loss_of_the_pattern(rnn(pattern=pattern), random_codes())


def test_padding_is_neither_seen_nor_counted():
    lm = rnn()
    codes = random_codes()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    with torch.no_grad():
        both = lm(codes, frame_mask=mask)
        alone = [lm(codes[:1]), lm(codes[1:, :, :7])]
    total = sum(float(one.mean * one.num_tokens) for one in alone)
    assert float(both.mean * both.num_tokens) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_weight_is_trained(cell):
    lm = rnn(cell=cell).train()
    lm(random_codes(4), some(lm)).mean.backward()
    assert [name for name, p in lm.named_parameters() if p.grad is None] == []


def test_dropout_is_for_training_alone():
    lm = rnn(dropout=0.5)
    tokens = random_input(lm)
    with torch.no_grad():
        assert torch.equal(lm.logits(tokens), lm.logits(tokens))
        assert not torch.equal(lm.train().logits(tokens), lm.logits(tokens))


def test_it_learns_four_clips_by_heart(lm_recipe, write_tokens):
    model = {"kind": "rnn", "dim": 48, "num_layers": 1, "conditions": ["player"], "condition_dropout": 0.0}
    recipe = lm_recipe(train={"steps": 100, "batch_size": 4, "crop_s": 0.24, "lr": 2e-2, "log_every": 1})
    recipe = recipe.model_copy(update={"model": type(recipe).model_validate(
        recipe.model_dump() | {"model": model}).model})  # fmt: skip
    store = write_tokens(recipe, train=4)
    train_lm(recipe)
    losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    assert losses[0] > 2.0  # at first near ln 16 = 2.77
    assert losses[-1] < 0.1
    lm = load_lm(recipe.folder / "model")
    split = store.split("train")
    for i, player in enumerate(split.column("player")):
        codes = torch.from_numpy(split.codes(i, 0, 8))[None]
        with torch.no_grad():
            assert float(lm(codes, lm.config.conditions.encode({"player": [player]})).mean) < 0.2
