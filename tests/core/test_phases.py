"""Phases that do not run in every step, and networks of which parts are not trained yet."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.files import read_jsonl
from tokkata.core.job import Phase
from tokkata.core.log import TrainingLog
from tokkata.tests.core.toy_game import GROWN_AT, maker_loss
from tokkata.tests.core.toy_training import Outcome, Toy, settings, start, train_toy

pytestmark = pytest.mark.usefixtures("on_the_cpu")

GAME = Toy("game")


class PulledPlug(Exception):
    pass


def curve(folder):
    return [row for row in read_jsonl(folder / "logs" / "train.jsonl") if "lr" in row]


@pytest.mark.parametrize(
    ("first_step", "every", "steps"), [(0, 1, range(12)), (0, 5, (4, 9)), (3, 2, (3, 5, 7, 9, 11))]
)
def test_the_steps_of_a_phase(first_step, every, steps):
    phase = Phase("", "", None, maker_loss, first_step=first_step, every=every)
    assert [step for step in range(12) if phase.runs_in(step)] == list(steps)


def test_a_phase_stands_still_in_the_other_steps(tmp_path):
    config = settings(ema_decay=0.0, save_every=1, keep_checkpoints=10)
    train_toy(tmp_path, config, GAME)
    assert [row["step"] for row in curve(tmp_path) if "maker/loss" in row] == [3, 6, 9]
    assert all("critic/loss" in row for row in curve(tmp_path))
    saved = [load_file(path / "model.safetensors") for path in list_checkpoints(tmp_path / "checkpoints")]
    changed = [not torch.equal(a["first.weight"], b["first.weight"]) for a, b in pairwise(saved)]
    assert [step for step, is_new in enumerate(changed, start=2) if is_new] == [3, 6, 9]


def test_speed_counts_every_step(tmp_path, monkeypatch):
    """Also where a phase that runs in one of two steps comes first in its step."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("tokkata.core.log.time", clock)
    with TrainingLog(tmp_path / "logs", 4, "clips", 0, enabled=True) as log:
        for phases in (("maker/", "critic/", "critic/"), ("critic/", "maker/", "critic/"), ("critic/",) * 2):
            for prefix in phases:
                log.add(prefix, {"loss": torch.tensor(8.0)}, torch.tensor(8.0))
            clock.now += 4.0
            log.write(2, 1e-3)
    rows = curve(tmp_path)
    assert [row["clips_per_s"] for row in rows] == [4.0] * 3
    assert ["maker/loss" in row for row in rows] == [True, True, False]


@pytest.mark.parametrize("at", [4, 5, 7])
def test_resumed_bit_for_bit(tmp_path, at):
    def pull_plug(step):
        if step == at:
            raise PulledPlug

    config = settings(save_every=1)
    train_toy(tmp_path / "whole", config, GAME)
    with pytest.raises(PulledPlug):
        train_toy(tmp_path / "cut", config, GAME, pull_plug)
    train_toy(tmp_path / "cut", config, GAME)
    Outcome(tmp_path / "cut").assert_same(Outcome(tmp_path / "whole"))


def test_a_skipped_phase_keeps_what_follows_out_of_its_own_step_only(tmp_path):
    followed = []

    def spoil(job):
        clean = job.phases[0].loss

        def loss(modules, batch):
            result = clean(modules, batch)
            result.mean = result.mean * (math.nan if batch["step"] == 2 else 1.0)
            return result

        clean_batch = job.batch
        job.batch = lambda step, rows: clean_batch(step, rows) | {"step": torch.tensor(step)}
        job.phases[0].loss = loss
        job.after_step = lambda step, batches: followed.append(step) or {}

    train_toy(tmp_path, settings(), GAME, change=spoil)
    assert followed == [0, 1, *range(3, 10)]
    assert [row["skipped_steps"] for row in curve(tmp_path)] == [0, 0] + [1] * 8


def test_two_processes_are_one(tmp_path):
    """With weights that get no gradient before a step, and a loss made of a gradient."""
    ended = start(tmp_path / "two", 2, GAME, grad_accumulation=2)
    assert ended.returncode == 0, ended.stderr
    train_toy(tmp_path / "one", settings(), GAME)
    assert 0 < GROWN_AT < 10
    for name in ("model", "model_1", "averaged"):
        mine, theirs = (
            load_file(list_checkpoints(folder / "checkpoints")[-1] / f"{name}.safetensors")
            for folder in (tmp_path / "two" / "toy", tmp_path / "one")
        )
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    for mine, theirs in zip(curve(tmp_path / "two" / "toy"), curve(tmp_path / "one"), strict=True):
        assert mine.keys() == theirs.keys()
        timings = {"time_s", "clips_per_s"}
        for name in mine.keys() - timings:  # which are float32
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
