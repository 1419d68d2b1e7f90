"""Training of diffusion models: batches, validation, resuming, and that it learns.

Shapes: B batch, D latent width, T frames.
"""

import math
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl, write_text
from tokkata.core.recipe import check_recipe, dump_recipe
from tokkata.diffusion import train as module
from tokkata.diffusion.diffusion_model import DiffusionModel
from tokkata.diffusion.latent_batches import TIMES, draw_known
from tokkata.diffusion.train import train_diffusion
from tokkata.tests.core.device_waits import DEVICES, waits_of_steps
from tokkata.tests.forked import run_forked


@pytest.fixture
def job_of(monkeypatch):
    """What `train_diffusion` hands to the training loop."""

    def job(recipe):
        handed = []
        monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
        train_diffusion(recipe)
        monkeypatch.undo()
        return handed[0]

    return job


EVERYTHING = {"conditions": ["pitch", "player"], "condition_dropout": 0.5, "mask_conditions": True}


def test_a_batch_does_not_depend_on_who_computes_it(diffusion_recipe, write_latents, job_of):
    recipe = diffusion_recipe(model=EVERYTHING | {"sample_posterior": True})
    write_latents(recipe, has_scale=True, train=8, valid=1)
    batch = job_of(recipe).batch
    assert batch(0, range(8)).keys() >= {"latents", "noise", "time", "mask", "known", "values/pitch"}

    @settings(deadline=None, max_examples=30)
    @given(step=st.integers(0, 1000), cuts=st.sets(st.integers(1, 7)))
    def shared_out(step, cuts):
        whole = batch(step, range(8))
        ends = [0, *sorted(cuts), 8]
        parts = [batch(step, range(start, stop)) for start, stop in pairwise(ends)]
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor)

    shared_out()


def test_a_batch_holds_what_the_store_does(diffusion_recipe, write_latents, job_of):
    recipe = diffusion_recipe(model={"conditions": ["player"], "condition_dropout": 0.0})
    store = write_latents(recipe, train=8, valid=1)
    job = job_of(recipe)
    split = store.split("train")
    players = split.column("player")
    known = job.modules["model"].config.conditions["player"].values
    for step in range(5):
        batch = job.batch(step, range(8))
        for latents, row, mask in zip(batch["latents"], batch["values/player"], batch["mask"], strict=True):
            clip = players.index(known[row - 1])
            length = int(mask.sum())
            assert length == min(8, int(split.num_frames[clip]))
            whole = split.latents(clip)
            starts = range(whole.shape[1] - length + 1)
            assert any(np.array_equal(latents[:, :length], whole[:, s : s + length]) for s in starts)
            assert not latents[:, length:].any()


def test_a_vaes_latents_are_drawn_anew_only_where_that_is_asked_for(diffusion_recipe, write_latents, job_of):
    drawn = {}
    for on in (False, True):
        recipe = diffusion_recipe(name=f"run-{on}", model={"sample_posterior": on})
        write_latents(recipe, has_scale=True, train=8, valid=1)
        drawn[on] = job_of(recipe).batch(0, range(8))
    where = drawn[True]["mask"][:, None].expand_as(drawn[True]["latents"])
    difference = (drawn[True]["latents"] - drawn[False]["latents"])[where]
    assert float(difference.std()) == pytest.approx(0.5, rel=0.1)  # the scale of every posterior
    assert float(difference.mean()) == pytest.approx(0, abs=0.05)


def test_a_scale_that_is_not_there_is_missed(diffusion_recipe, write_latents):
    recipe = diffusion_recipe(model={"sample_posterior": True})
    write_latents(recipe, train=4)
    with pytest.raises(UserError, match=r"model.sample_posterior: the codec .* is no variational autoenc"):
        train_diffusion(recipe)


def test_the_model_normalises_what_it_is_given(diffusion_recipe, write_latents, job_of):
    recipe = diffusion_recipe()
    store = write_latents(recipe, train=40, valid=1)
    model = job_of(recipe).modules["model"]
    split = store.split("train")
    latents = torch.cat([torch.from_numpy(split.latents(i)) for i in range(40)], dim=1)[None]
    normal = model.normalise(latents)
    torch.testing.assert_close(normal.mean((0, 2)), torch.zeros(normal.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2), correction=0), torch.ones(normal.shape[1]))
    torch.testing.assert_close(model.denormalise(normal), latents, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["flow", "v", "ddpm", "edm"])
def test_the_loss_is_the_squared_distance_from_the_target(diffusion_recipe, write_latents, job_of, kind):
    """By hand, clip by clip; untrained, a network predicts 0, so that it is the target's size."""
    recipe = diffusion_recipe(model={"objective": {"kind": kind}})
    write_latents(recipe, train=8, valid=1)
    job = job_of(recipe)
    model = job.modules["model"]
    batch = job.batch(3, range(8))
    loss = job.phases[0].loss(job.modules, batch)
    total, count = 0.0, 0
    for i in range(8):
        length = int(batch["mask"][i].sum())
        x0 = model.normalise(batch["latents"][i : i + 1, :, :length])
        target = model.objective.target(x0, batch["noise"][i : i + 1, :, :length], batch["time"][i : i + 1])
        total += float(target.square().mean(1).sum())
        count += length
    assert float(loss.mean) == pytest.approx(total / count, rel=1e-5)
    assert int(loss.weight) == count


def test_frames_that_are_told_do_not_count(diffusion_recipe, write_latents, job_of):
    recipe = diffusion_recipe(model={"mask_conditions": True})
    write_latents(recipe, train=8, valid=1)
    job = job_of(recipe)
    batch = job.batch(0, range(8))
    batch["known"][:, :3] = True
    everything = job.phases[0].loss(job.modules, batch | {"known": torch.zeros_like(batch["known"])})
    rest = job.phases[0].loss(job.modules, batch)
    assert int(rest.weight) == int((batch["mask"] & ~batch["known"]).sum()) < int(everything.weight)


@settings(deadline=None, max_examples=200)
@given(length=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_what_is_told_leaves_something_to_make(length, seed):
    known = draw_known(12, length, torch.Generator().manual_seed(seed))
    assert not known[length:].any()
    assert not known[:length].all()


def test_eight_of_ten_clips_are_made_whole():
    drawn = [draw_known(12, 12, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    whole = [not known.any() for known in drawn]
    beginnings = [
        bool(known.any()) and known.tolist() == sorted(known.tolist(), reverse=True) for known in drawn
    ]
    assert np.mean(whole) == pytest.approx(0.8, abs=0.04)
    assert 0.1 < np.mean(beginnings) < 0.18  # some of the random segments lie at the end too


def test_validation_is_at_fixed_times_with_fixed_noise(diffusion_recipe, write_latents, job_of):
    recipe = diffusion_recipe(model={"conditions": ["pitch"]}, train={"batch_size": 2})
    write_latents(recipe, train=8, valid=5)
    job = job_of(recipe)
    with torch.no_grad():
        model = job.modules["model"].eval()
        scores, again = job.validate(model), job.validate(model)
    assert scores == again
    assert scores.keys() == {"loss", *(f"loss_at_{time}" for time in TIMES)}
    assert scores["loss"] == pytest.approx(np.mean([scores[f"loss_at_{time}"] for time in TIMES]))


def test_stopped_and_resumed_is_bitwise_undisturbed(diffusion_recipe, write_latents, monkeypatch):
    changes = {
        "model": EVERYTHING,
        "train": {"steps": 6, "save_every": 2, "validate_every": 3, "ema_sigma_rel": 0.1},
    }
    whole, parts = (diffusion_recipe(name=name, **changes) for name in ("whole", "parts"))
    for recipe in (whole, parts):
        write_latents(recipe, train=8, valid=2)
    train_diffusion(whole)
    loop_loss, calls = module.loss, []

    def fail(modules, batch):
        if modules["model"].training:
            calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("gone away")
        return loop_loss(modules, batch)

    monkeypatch.setattr(module, "loss", fail)
    with pytest.raises(RuntimeError, match="gone away"):
        train_diffusion(parts)
    monkeypatch.undo()
    assert not (parts.folder / "model").exists()
    train_diffusion(parts)
    name = "model/model.safetensors"
    assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()


def test_a_step_that_is_not_finite_is_skipped_and_counted(diffusion_recipe, write_latents, monkeypatch):
    recipe = diffusion_recipe(train={"steps": 4, "log_every": 1})
    write_latents(recipe, train=8, valid=2)
    loop_loss, calls = module.loss, []

    def spoil(modules, batch):
        if modules["model"].training:
            calls.append(1)
            if len(calls) == 2:
                batch = batch | {"latents": batch["latents"] * math.nan}
        return loop_loss(modules, batch)

    monkeypatch.setattr(module, "loss", spoil)
    train_diffusion(recipe)
    rows = [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "skipped_steps" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    weights = load_file(recipe.folder / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_two_processes_are_one(tmp_path, diffusion_recipe, write_latents, environment):
    recipe = diffusion_recipe(name="one", model=EVERYTHING, train={"steps": 4, "validate_every": 2})
    write_latents(recipe, train=8, valid=3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train_diffusion(recipe)
    other = recipe.model_copy(update={"name": "two"})
    write_text(tmp_path / "two.yaml", dump_recipe(other))
    program = (
        "import sys, pathlib; from tokkata.core.recipe import load_recipe;"
        " from tokkata.diffusion.train import train_diffusion;"
        " train_diffusion(load_recipe(pathlib.Path(sys.argv[1])))"
    )
    write_text(tmp_path / "program.py", program)
    environ = {**environment, "ACCELERATE_USE_CPU": "true"}
    result = run_forked(tmp_path, 2, environ, tmp_path / "program.py", tmp_path / "two.yaml")
    assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["flow", "v", "ddpm", "edm"])
@pytest.mark.parametrize("network", ["dit", "unet"])
def test_it_learns_one_batch_by_heart(diffusion_recipe, write_latents, kind, network):
    shape = {"kind": network, "objective": {"kind": kind}, "conditions": ["player"], "condition_dropout": 0.0}
    small = {"dim": 32, "num_layers": 1} if network == "dit" else {"channels": [16, 32]}
    values = diffusion_recipe().model_dump()
    values["model"] = {**shape, **small, "num_heads": 2}
    values["train"] |= {"steps": 60, "lr": 1e-2, "warmup_steps": 5, "ema_decay": 0.0, "log_every": 10}
    recipe = check_recipe(values)
    write_latents(recipe, train=2)
    train_diffusion(recipe)
    rows = [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "loss" in row]
    # How much of a target can be known differs: noise can hardly be told where there is little of it.
    share = {"flow": 0.8, "v": 0.85, "edm": 0.9, "ddpm": 0.96}[kind]
    assert rows[-1]["loss"] < share * rows[0]["loss"]


def test_the_model_is_found_again_as_it_was(diffusion_recipe, write_latents):
    recipe = diffusion_recipe(model=EVERYTHING | {"objective": {"kind": "v"}})
    write_latents(recipe, train=8, valid=2)
    train_diffusion(recipe)
    model = DiffusionModel.from_pretrained(recipe.folder / "model")
    again = recipe.folder / "again"
    model.save_pretrained(again)
    assert (again / "config.json").read_text() == (recipe.folder / "model" / "config.json").read_text()
    assert model.config.mask_conditions
    assert model.config.objective.to_dict()["kind"] == "v"
    card = (recipe.folder / "model" / "README.md").read_text()
    assert "tokkata generate MODEL_FOLDER_OR_HUB_ID" in card
    assert "| loss_at_0.5 |" in card


def test_codes_are_refused_in_one_sentence(diffusion_recipe, tmp_path, write_recipe, tokkata):
    recipe = write_recipe(tmp_path)
    assert tokkata("tokenize", recipe, "name=run", f"runs_dir={tmp_path}").returncode == 0
    with pytest.raises(UserError, match=r"a diffusion model needs latents, but .* holds codes"):
        train_diffusion(diffusion_recipe())


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("device", DEVICES)
def test_no_step_waits_for_a_gpu(diffusion_recipe, write_latents, job_of, kind, device, monkeypatch):
    values = diffusion_recipe(model=EVERYTHING).model_dump()
    if kind == "unet":
        values["model"] = EVERYTHING | {"kind": "unet", "channels": [8, 12], "num_heads": 2}
    recipe = check_recipe(values)
    write_latents(recipe, train=8, valid=4)
    assert waits_of_steps(job_of(recipe), recipe.train, recipe.folder, device, monkeypatch) == [0] * 5
