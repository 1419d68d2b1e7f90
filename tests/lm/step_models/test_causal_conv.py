"""The convolutional baseline over codec tokens.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

import pytest
import torch
import torch.nn.functional as F

from tokkata.core.files import read_jsonl
from tokkata.lm.load import load_lm
from tokkata.lm.train import train_lm
from tokkata.tests.lm.tiny_steps import V, causal_conv, check_loss_of_the_pattern, random_frames, random_input


def random_codes(batch_size=2, num_frames=40):
    return random_frames(batch_size, num_frames)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_the_loss_is_that_of_the_pattern(pattern):
    check_loss_of_the_pattern(causal_conv(pattern=pattern), random_codes())


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
def test_a_crop_with_its_context_has_the_loss_that_it_has_within_the_recording(pattern):
    lm = causal_conv(pattern=pattern)
    codes = random_codes()
    field = lm.config.context_frames
    # The end of a crop is like the end of a recording: under a delay its last frames see no later ones.
    frames = torch.arange(field + 8)
    counted = (frames >= field) & (frames < field + 6)
    with torch.no_grad():
        crop = lm(codes[:, :, 9 : 9 + field + 8], counted=counted.expand(2, -1))
        sequence = lm.pattern.apply(codes, V)
        logits = lm.logits(F.pad(sequence[:, :, :-1], (1, 0), value=V))
        steps = lm.pattern.steps(40)[:, 9 + field : 15 + field]
        targets = codes[:, :, 9 + field : 15 + field]
        expected = torch.stack(
            [F.cross_entropy(logits[:, k, steps[k]].flatten(0, 1), targets[:, k].flatten()) for k in range(3)]
        )
    assert crop.num_tokens == targets.numel()
    torch.testing.assert_close(crop.per_codebook, expected, rtol=1e-5, atol=1e-6)


def test_tokens_of_a_step_do_not_see_each_other():
    lm = causal_conv()
    tokens = random_input(lm, 1, 20)
    for k in range(3):
        changed = tokens.clone()
        changed[:, k, 11] = (changed[:, k, 11] + 1) % V
        with torch.no_grad():
            differs = (lm.logits(tokens) != lm.logits(changed)).flatten(3).any(-1)[0]  # [K, S]
        assert not differs[:, :11].any()
        assert differs[:, 11].all()


def test_it_learns_four_clips_by_heart(lm_recipe, write_tokens):
    shape = {"residual_channels": 32, "gate_channels": 32, "skip_channels": 64, "layers_per_stack": 2}
    model = {"kind": "causal_conv", "conditions": ["player"], "condition_dropout": 0.0} | shape
    recipe = lm_recipe(train={"steps": 120, "batch_size": 4, "crop_s": 0.24, "lr": 1e-2, "log_every": 1})
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
