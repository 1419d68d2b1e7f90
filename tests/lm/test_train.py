"""Training of language models: batches, validation, and that it learns.

Shapes: B batch, K codebooks, T frames.
"""

import dataclasses
import json
import shutil
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.lm import train as module
from tokkata.lm.build import transformer_config
from tokkata.lm.train import train_lm
from tokkata.lm.transformer import TransformerLM
from tokkata.tests.core.device_waits import DEVICES, waits_of_steps
from tokkata.tokenize.features.clip_conditions import conditions_of


@pytest.fixture
def job_of(monkeypatch):
    """What `train_lm` hands to the training loop."""

    def job(recipe):
        handed = []
        monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
        train_lm(recipe)
        monkeypatch.undo()
        return handed[0]

    return job


def loss_by_hand(lm, codes, given):
    """Sum of -ln p over the tokens of one clip [K, T], codebook by codebook, from the logits."""
    num_codebooks, num_frames = codes.shape
    sequence = lm.pattern.apply(codes[None], lm.config.special)
    logits = lm.logits(F.pad(sequence[:, :, :-1], (1, 0), value=lm.config.special), given)
    return sum(
        -logits[0, k, t + k].log_softmax(-1)[codes[k, t]]  # delays 0, 1, 2
        for k in range(num_codebooks)
        for t in range(num_frames)
    )


def test_validation_loss_is_the_mean_over_all_tokens(lm_recipe, write_tokens, job_of):
    recipe = lm_recipe(model={"conditions": ["pitch"]}, train={"batch_size": 2})
    store = write_tokens(recipe, train=8, valid=5)
    job = job_of(recipe)
    lm = job.modules["lm"].eval()
    with torch.no_grad():
        for parameter in lm.parameters():  # opinions, so that clips differ in their loss
            parameter.mul_(10 if parameter.ndim == 2 else 1)
        scores = job.validate(lm)
        split, total, num_tokens = store.split("valid"), 0.0, 0
        pitches = split.column("pitch")
        for i in range(len(split)):
            codes = torch.from_numpy(split.codes(i, 0, 8))  # crop_s 0.16 is 8 frames; some clips have 5
            pitch = lm.config.conditions.encode({"pitch": [pitches[i]]})
            total += float(loss_by_hand(lm, codes, pitch))
            num_tokens += codes.numel()
    assert num_tokens < 5 * 3 * 8
    assert scores["loss"] == pytest.approx(total / num_tokens, rel=1e-5)
    assert scores["loss"] == pytest.approx(sum(scores[f"codebook_{k}"] for k in range(3)) / 3, rel=1e-5)


def test_a_batch_does_not_depend_on_who_computes_it(lm_recipe, write_tokens, job_of):
    recipe = lm_recipe(model={"conditions": ["pitch", "player"], "condition_dropout": 0.5})
    write_tokens(recipe, train=8, valid=1)
    batch = job_of(recipe).batch

    @settings(deadline=None, max_examples=40)
    @given(step=st.integers(0, 1000), cuts=st.sets(st.integers(1, 7)))
    def shared_out(step, cuts):
        whole = batch(step, range(8))
        ends = [0, *sorted(cuts), 8]
        parts = [batch(step, range(start, stop)) for start, stop in pairwise(ends)]
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor)

    shared_out()


def test_labels_are_hidden_clip_by_clip(lm_recipe, write_tokens, job_of):
    recipe = lm_recipe(model={"conditions": ["pitch", "player"], "condition_dropout": 0.3})
    write_tokens(recipe, train=8, valid=1)
    batch = job_of(recipe).batch
    batches = [batch(step, range(8)) for step in range(200)]
    hidden = ~torch.stack([found["mask/pitch"] for found in batches])[..., 0]  # [200, B]
    assert torch.equal(hidden, ~torch.stack([found["mask/player"] for found in batches])[..., 0])
    # 1,600 coins: six standard deviations are 0.07.
    assert abs(float(hidden.float().mean()) - 0.3) < 0.07
    # A coin a clip: with one a batch, none of these would be mixed.
    assert (hidden.any(1) & ~hidden.all(1)).sum() > 100


def test_a_batch_holds_what_the_store_does(lm_recipe, write_tokens, job_of):
    recipe = lm_recipe(model={"conditions": ["player"], "condition_dropout": 0.0})
    store = write_tokens(recipe, train=8, valid=1)
    job = job_of(recipe)
    split = store.split("train")
    players = split.column("player")
    for step in range(5):
        batch = job.batch(step, range(8))
        assert batch["mask/player"].all()
        for codes, row, mask in zip(batch["codes"], batch["values/player"], batch["mask"], strict=True):
            clip = players.index(job.modules["lm"].config.conditions["player"].values[row - 1])
            length = min(8, int(split.num_frames[clip]))
            assert mask.tolist() == [True] * length + [False] * (8 - length)
            whole = torch.from_numpy(split.codes(clip))
            assert any(
                torch.equal(whole[:, start : start + length], codes[:, :length])
                for start in range(whole.shape[1] - length + 1)
            )


def test_it_learns_four_clips_by_heart(lm_recipe, write_tokens):
    recipe = lm_recipe(
        model={"conditions": ["player"], "condition_dropout": 0.0},
        train={"steps": 120, "batch_size": 4, "crop_s": 0.24, "lr": 2e-2, "log_every": 1},
    )
    store = write_tokens(recipe, train=4)
    train_lm(recipe)
    losses = [row["loss"] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    assert losses[0] > 2.0  # at first near ln 16 = 2.77
    assert losses[-1] < 0.1
    lm = TransformerLM.from_pretrained(recipe.folder / "model")
    split = store.split("train")
    for i, player in enumerate(split.column("player")):
        codes = torch.from_numpy(split.codes(i, 0, 8))[None]
        with torch.no_grad():
            loss = lm(codes, lm.config.conditions.encode({"player": [player]})).mean
        assert float(loss) < 0.2


def test_stopped_and_resumed_is_bitwise_undisturbed(lm_recipe, write_tokens, monkeypatch):
    settings = {"steps": 6, "save_every": 2}
    dropout = {"conditions": ["pitch"], "condition_dropout": 0.5, "dropout": 0.3}
    whole, parts = (lm_recipe(name=name, model=dropout, train=settings) for name in ("whole", "parts"))
    for recipe in (whole, parts):
        write_tokens(recipe, train=8, valid=3)
    train_lm(whole)
    loop_loss = module._loss
    calls = 0

    def fail(modules, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("the machine has gone away")
        return loop_loss(modules, batch)

    monkeypatch.setattr(module, "_loss", fail)
    with pytest.raises(RuntimeError, match="gone away"):
        train_lm(parts)
    monkeypatch.undo()
    assert not (parts.folder / "model").exists()
    train_lm(parts)
    name = "model/model.safetensors"
    assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()


def test_two_processes_are_one(tmp_path, write_recipe, tokkata, shell):
    recipe = write_recipe(
        tmp_path,
        model={"condition_dropout": 0.5},
        train={"steps": 6, "grad_accumulation": 1, "lr": 5e-3},
        tokenize={"shard_clips": 24},
    )
    assert tokkata("tokenize", recipe, "name=one").returncode == 0
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    assert tokkata("train", recipe, "name=one").returncode == 0
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"
    command = ("tokkata", "run", recipe, "name=two", "--stages", "train", "--launcher", launcher)
    result = shell(*command, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr
    one, two = (
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-5)
    newest = tmp_path / "runs" / "two" / "checkpoints" / "step-000006"
    assert json.loads((newest / "loop.json").read_text())["num_processes"] == 2
    # The same training, in numbers and not only at its end; and nobody wrote twice.
    logs = [read_jsonl(tmp_path / "runs" / name / "logs" / "train.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for row, other in zip(*logs, strict=True):
        assert row.keys() == other.keys()
        for key in {"loss", "grad_norm", "valid/loss"} & row.keys():
            assert other[key] == pytest.approx(row[key], rel=1e-4)


def test_clips_with_labels_never_met_are_not_validated_on(lm_recipe, write_tokens, job_of, capsys):
    scores = {}
    for num_valid in (3, 8):  # players 0 to 2 are known
        recipe = lm_recipe(name=f"run-{num_valid}", model={"conditions": ["player"]})
        write_tokens(recipe, train=3, valid=num_valid)
        job = job_of(recipe)
        with torch.no_grad():
            scores[num_valid] = job.validate(job.modules["lm"].eval())
    assert scores[3].keys() == {"loss", "codebook_0", "codebook_1", "codebook_2"}
    assert scores[8] == scores[3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("num_clips", "why"),
    [
        ({"train": 4}, "because there are none"),
        ({"train": 4, "valid": 4}, "because each has a label value that the model never meets"),
    ],
)
def test_no_validation_is_told_not_replaced(lm_recipe, write_tokens, capsys, num_clips, why):
    recipe = lm_recipe(model={"conditions": ["place"]})
    write_tokens(recipe, **num_clips)
    train_lm(recipe)
    err = capsys.readouterr().err
    rows = read_jsonl(recipe.folder / "logs" / "train.jsonl")
    assert f"no clip of the split 'valid' can be validated on, {why}" in err
    assert not any("valid/loss" in row for row in rows)
    assert "There was no held-out clip to validate on." in (recipe.folder / "model/README.md").read_text()


def test_no_tokens_to_train_on(lm_recipe, write_tokens):
    recipe = lm_recipe()
    write_tokens(recipe, valid=2)
    with pytest.raises(UserError, match="no tokens in the split 'train'"):
        train_lm(recipe)


def test_a_label_that_the_tokens_do_not_have(lm_recipe, write_tokens):
    recipe = lm_recipe(model={"conditions": ["pitsch"]})
    write_tokens(recipe, train=2)
    with pytest.raises(UserError, match="no label 'pitsch': they have pitch, player, place"):
        train_lm(recipe)


def test_the_model_is_built_for_its_codec(lm_recipe, write_tokens):
    recipe = lm_recipe(model={"conditions": ["pitch"], "dropout": 0.25})
    store = write_tokens(recipe, train=6)
    conditions = conditions_of(store, store.split("train"), recipe.model.conditions)
    assert conditions == Conditions((Condition("pitch", "label", values=(60, 61, 62, 63)),))
    config = transformer_config(recipe.model, store, conditions, 8)
    assert (config.conditions, config.window_frames) == (conditions, 8)
    assert (config.num_codebooks, config.codebook_size, config.frame_rate) == (3, 16, 50.0)
    assert (config.dim, config.num_layers, config.num_heads, config.dropout) == (32, 1, 2, 0.25)
    assert config.codec == dataclasses.asdict(store.info)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("device", DEVICES)
def test_no_step_waits_for_a_gpu(lm_recipe, write_tokens, job_of, norm, pack, device, monkeypatch):
    recipe = lm_recipe(model={"conditions": ["pitch"], "norm": norm}, train={"pack": pack})
    write_tokens(recipe, train=8, valid=4)
    assert waits_of_steps(job_of(recipe), recipe.train, recipe.folder, device, monkeypatch) == [0] * 5
