"""The training loop: the same result however the work is cut up, stopped or shared out.

Started as a program, this file is a stage that trains the tests' network: the tests kill it, and share it
out to several processes.
"""

import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.errors import UserError
from tokkata.core.files import PARTIAL_PREFIX, read_jsonl, write_json
from tokkata.core.guard import MAX_SKIPPED_IN_A_ROW
from tokkata.core.job import Job, Loss, Phase
from tokkata.core.loop import process_rows, train
from tokkata.core.optimizer import adamw, learning_rate
from tokkata.core.run import stage_main
from tokkata.core.schema import Train
from tokkata.tests.forked import run_forked

NUM_ROWS = 64


def settings(**changed):
    values = {"steps": 10, "batch_size": 8, "lr": 0.05, "warmup_steps": 2, "ema_decay": 0.9, "log_every": 1}
    return Train(**{**values, "save_every": 4, "validate_every": 5, **changed})


class Data:
    """A linear relation, some of whose values are masked out, so that rows have different weights."""

    def __init__(self, batch_size, at_step=lambda step: None, nan_steps=()):
        rng = np.random.default_rng(0)
        self.x = torch.tensor(rng.standard_normal((NUM_ROWS, 6)), dtype=torch.float32)
        self.y = self.x @ torch.tensor(rng.standard_normal((6, 2)), dtype=torch.float32)
        self.mask = torch.tensor(rng.uniform(size=(NUM_ROWS, 2)) < rng.uniform(size=(NUM_ROWS, 1))).float()
        self.mask[:, 0] = 1
        self.batch_size = batch_size
        self.at_step = at_step
        self.nan_steps = nan_steps

    def batch(self, step, rows):
        self.at_step(step)
        chosen = np.random.default_rng([1, step]).permutation(NUM_ROWS)[: self.batch_size]
        chosen = chosen[rows.start : rows.stop]
        x = self.x[chosen] * (math.nan if step in self.nan_steps else 1.0)
        return {"x": x, "y": self.y[chosen], "mask": self.mask[chosen]}


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))


def masked_loss(module, batch):
    weight = batch["mask"].sum()
    error = (module(batch["x"]) - batch["y"]) * batch["mask"]
    return Loss(error.square().sum() / weight, weight, {"absolute": error.abs().sum() / weight})


def job(folder, config, dropout=0.0, **faults):
    net = network(dropout)
    data = Data(config.batch_size, **faults)
    whole = {"x": data.x, "y": data.y, "mask": data.mask}

    def validate(module):
        torch.rand(3)  # whoever draws numbers here must not change the training
        device = next(module.parameters()).device
        return {"loss": masked_loss(module, {name: t.to(device) for name, t in whole.items()}).mean.item()}

    def save(module, scores):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / "averaged.safetensors")
        write_json(folder / "scores.json", scores)

    return Job(
        modules={"net": net},
        phases=[Phase("net", "net", adamw(net, config), lambda modules, b: masked_loss(modules["net"], b))],
        averaged="net",
        batch=data.batch,
        validate=validate,
        save=save,
        unit="values",
    )


class Outcome:
    """What a finished run has left in its folder."""

    def __init__(self, folder):
        self.averaged = load_file(folder / "averaged.safetensors")
        self.scores = json.loads((folder / "scores.json").read_text())
        newest = list_checkpoints(folder / "checkpoints")[-1]
        self.weights = load_file(newest / "model.safetensors")
        rows = read_jsonl(folder / "logs" / "train.jsonl")
        self.validation = [row for row in rows if "valid/loss" in row]
        self.curve = [row for row in rows if "valid/loss" not in row]
        for row in rows:
            for name in [name for name in row if name.startswith("time") or name.endswith("_per_s")]:
                del row[name]

    def assert_same(self, other):
        """Bit for bit."""
        for mine, theirs in ((self.weights, other.weights), (self.averaged, other.averaged)):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
        assert self.scores == other.scores
        assert self.curve == other.curve
        assert self.validation == other.validation

    def assert_close(self, other):
        for mine, theirs in ((self.weights, other.weights), (self.averaged, other.averaged)):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        assert len(self.curve) == len(other.curve)
        for mine, theirs in zip(self.curve, other.curve, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)


def train_in(folder, config=None, **options):
    config = config or settings()
    train(job(folder, config, **options), config, folder)
    return Outcome(folder)


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    if "gpu" not in request.keywords:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# --- what a run computes


def test_the_loop_is_adamw_with_clipping_and_schedule(tmp_path):
    """Against the same training written out for one process and one batch."""
    config = settings(clip_grad_norm=0.5)
    net = network()
    matrices = [p for p in net.parameters() if p.ndim == 2]
    vectors = [p for p in net.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    data = Data(config.batch_size)
    losses = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        loss = masked_loss(net, data.batch(step, range(config.batch_size))).mean
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    outcome = train_in(tmp_path, config)
    assert [row["step"] for row in outcome.curve] == list(range(1, 11))
    assert [row["loss"] for row in outcome.curve] == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(outcome.weights, net.state_dict(), rtol=0, atol=1e-6)


def test_micro_batches_do_not_change_the_step(tmp_path):
    whole = train_in(tmp_path / "1", settings())
    whole.assert_close(train_in(tmp_path / "4", settings(grad_accumulation=4)))


def test_the_average_is_validated_and_saved(tmp_path):
    off = train_in(tmp_path / "off", settings(ema_decay=0.0))
    torch.testing.assert_close(off.averaged, off.weights, rtol=0, atol=0)
    on = train_in(tmp_path / "on", settings())
    assert not torch.equal(on.averaged["0.weight"], on.weights["0.weight"])
    torch.testing.assert_close(on.weights, off.weights, rtol=0, atol=0)
    module = network()
    module.load_state_dict(on.averaged)
    data = Data(8)
    expected = masked_loss(module, {"x": data.x, "y": data.y, "mask": data.mask}).mean.item()
    assert on.scores == {"loss": pytest.approx(expected, abs=1e-7)}
    assert [(row["step"], row["valid/loss"]) for row in on.validation][-1] == (10, on.scores["loss"])
    assert [row["step"] for row in on.validation] == [5, 10]


def test_operational_settings_do_not_change_the_result(tmp_path):
    one = train_in(tmp_path / "1", settings(), dropout=0.3)
    other = train_in(tmp_path / "2", settings(log_every=3, validate_every=2, save_every=1), dropout=0.3)
    for name, value in one.averaged.items():
        assert torch.equal(value, other.averaged[name])
    assert one.scores == other.scores


# --- stopped and resumed


class PulledPlug(Exception):
    pass


def pull_plug(at):
    def act(step):
        if step == at:
            raise PulledPlug

    return act


@pytest.mark.parametrize("at", [2, 4, 6, 9])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, at):
    whole = train_in(tmp_path / "whole", dropout=0.3)
    with pytest.raises(PulledPlug):
        train_in(tmp_path / "cut", dropout=0.3, at_step=pull_plug(at))
    resumed = []
    cut = train_in(tmp_path / "cut", dropout=0.3, at_step=resumed.append)
    assert resumed[0] == at // 4 * 4, "not resumed from the newest checkpoint"
    cut.assert_same(whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    whole = train_in(tmp_path)
    (tmp_path / "averaged.safetensors").unlink()
    again = train_in(tmp_path, at_step=pull_plug(10))
    again.assert_same(whole)


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    whole = train_in(tmp_path / "whole", dropout=0.3)
    with pytest.raises(PulledPlug):
        train_in(tmp_path / "cut", dropout=0.3, at_step=pull_plug(7))
    root = tmp_path / "cut" / "checkpoints"
    half = root / (PARTIAL_PREFIX + "step-000006")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"ha")
    (root / "step-notes").mkdir()
    assert [path.name for path in list_checkpoints(root)] == ["step-000004"]
    train_in(tmp_path / "cut", dropout=0.3).assert_same(whole)
    assert not half.exists(), "what a killed process left behind stays forever"
    assert (root / "step-notes").exists()


def test_retention(tmp_path):
    train_in(tmp_path, settings(save_every=1, keep_checkpoints=3))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000008", "step-000009", "step-000010"]


def test_a_log_that_was_cut_short(tmp_path):
    whole = train_in(tmp_path / "whole")
    with pytest.raises(PulledPlug):
        train_in(tmp_path / "cut", at_step=pull_plug(6))
    with (tmp_path / "cut" / "logs" / "train.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train_in(tmp_path / "cut").assert_same(whole)


RECIPE = {
    "name": "killed",
    "data": {"kind": "synth", "num_clips": 1},
    "model": {"kind": "dac"},
    "train": settings().model_dump(mode="json", exclude_defaults=True),
}


def main():
    """The stage `prepare` of `RECIPE`; if SIGNAL_NAME is set, that signal comes in the midst of step 6."""
    fault = os.environ.get("SIGNAL_NAME")

    def at_step(step):
        if step == 6 and fault:
            os.kill(os.getpid(), signal.Signals[fault])

    def work(recipe):
        config = recipe.train
        dropout = float(os.environ["DROPOUT"])
        train(job(recipe.folder, config, dropout, at_step=at_step), config, recipe.folder)

    stage_main("prepare", work)


def start(tmp_path, *launcher, dropout=0.0, signal_name=""):
    """Run `main` in processes of its own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "runs_dir": str(tmp_path)}))
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "DROPOUT": str(dropout)}
    environment = os.environ | variables | {"SIGNAL_NAME": signal_name}
    if not launcher:
        return run_forked(tmp_path, 1, environment, __file__, recipe)
    return subprocess.run(
        [*launcher, __file__, str(recipe)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_sigkill(tmp_path):
    whole = train_in(tmp_path / "whole", dropout=0.3)
    ended = start(tmp_path, dropout=0.3, signal_name="SIGKILL")
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(tmp_path / "killed" / "checkpoints")] == ["step-000004"]
    train_in(tmp_path / "killed", dropout=0.3).assert_same(whole)


def test_sigterm(tmp_path, monkeypatch, capsys):
    """A cluster's way to say that time is up: save, exit, and go on when the same command runs again."""
    whole = train_in(tmp_path / "whole", dropout=0.3)
    ended = start(tmp_path, dropout=0.3, signal_name="SIGTERM")
    assert ended.returncode == 143
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "stopped at step 7 of 10 with a checkpoint; to resume, run the same command again"
    )
    assert (tmp_path / "killed" / "checkpoints" / "step-000007").is_dir()
    monkeypatch.setattr("sys.argv", [__file__, str(tmp_path / "recipe.yaml")])
    monkeypatch.setenv("DROPOUT", "0.3")
    main()
    assert "prepare: goes on where it was interrupted" in capsys.readouterr().err
    Outcome(tmp_path / "killed").assert_same(whole)


def test_two_processes_are_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = start(tmp_path, *torchrun)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "killed/checkpoints/step-000010/loop.json").read_text())
    assert rows == {"step": 10, "num_processes": 2}
    Outcome(tmp_path / "killed").assert_close(train_in(tmp_path / "one"))


# --- faults of numbers


def test_a_step_that_is_not_finite_is_skipped(tmp_path):
    config = settings(steps=6, ema_decay=0.0, save_every=1, keep_checkpoints=9)
    outcome = train_in(tmp_path, config, nan_steps=[3])
    assert [row["skipped_steps"] for row in outcome.curve] == [0, 0, 0, 1, 1, 1]
    assert ["loss" in row for row in outcome.curve] == [True, True, True, False, True, True]
    saved = [load_file(path / "model.safetensors") for path in list_checkpoints(tmp_path / "checkpoints")]
    changed = [not torch.equal(a["0.weight"], b["0.weight"]) for a, b in pairwise(saved)]
    assert changed == [True, True, False, True, True]
    assert all(value.isfinite().all() for value in outcome.weights.values())


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path):
    whole = train_in(tmp_path / "whole", nan_steps=[1, 5])
    with pytest.raises(PulledPlug):
        train_in(tmp_path / "cut", nan_steps=[1, 5], at_step=pull_plug(6))
    train_in(tmp_path / "cut", nan_steps=[1, 5]).assert_same(whole)
    assert whole.curve[-1]["skipped_steps"] == 2


def test_numbers_that_stay_not_finite_end_the_run(tmp_path):
    with pytest.raises(UserError) as caught:
        train_in(tmp_path, settings(steps=500), nan_steps=range(5, 500))
    assert str(caught.value) == (
        f"the gradient has not been finite for {MAX_SKIPPED_IN_A_ROW} steps (now 54): lower train.lr or look"
        f" at the data; the newest checkpoint is kept in {tmp_path / 'checkpoints'}"
    )


def test_one_of_two_phases_that_stays_not_finite_ends_the_run(tmp_path):
    config = settings(steps=500)
    two = job(tmp_path, config)
    other = nn.Linear(6, 2)
    two.modules["other"] = other

    def broken(modules, batch):
        return masked_loss(modules["other"], batch | {"x": batch["x"] * math.nan})

    two.phases.append(Phase("broken", "other", adamw(other, config), broken))
    with pytest.raises(UserError, match=f"not been finite for {MAX_SKIPPED_IN_A_ROW} steps"):
        train(two, config, tmp_path)
    rows = read_jsonl(tmp_path / "logs" / "train.jsonl")
    assert all("net/loss" in row or "valid/loss" in row for row in rows)


def test_a_precision_that_the_machine_has_not(tmp_path):
    with pytest.raises(UserError) as caught:
        train_in(tmp_path, settings(precision="fp16"))
    assert str(caught.value) == "train.precision cannot be 'fp16' on cpu: choose 'bf16'"


class HalfPrecisionOnCpu(Accelerator):
    """What Accelerate does on a GPU for fp16: autocast, and a scaled loss that overflows at first."""

    def __init__(self, **options):
        super().__init__(**options)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)


def test_fp16_lowers_a_scale_that_overflows_and_learns(tmp_path, monkeypatch):
    monkeypatch.setattr("tokkata.core.processes.Accelerator", HalfPrecisionOnCpu)
    config = settings(steps=40, precision="fp16")
    whole = train_in(tmp_path / "whole", config)
    losses = [row["loss"] for row in whole.curve if "loss" in row]
    assert 1 <= whole.curve[-1]["skipped_steps"] <= 20
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(PulledPlug):
        train_in(tmp_path / "cut", config, at_step=pull_plug(22))
    train_in(tmp_path / "cut", config).assert_same(whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path, precision):
    outcome = train_in(tmp_path, settings(steps=60, precision=precision))
    losses = [row["loss"] for row in outcome.curve if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.curve[-1]["skipped_steps"] < 20


# --- the parts


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate(schedule):
    config = settings(steps=110, warmup_steps=10, lr=2.0, final_lr_fraction=0.1, schedule=schedule)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    if schedule == "constant":
        assert rates[10:] == [2.0] * 101
    else:
        # A straight line in the angle: 0° at the end of the warm-up, 180° after the last step.
        assert [rates[s] for s in (10, 60, 110)] == pytest.approx([2.0, 1.1, 0.2])
        assert rates[35] == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
        assert all(a > b for a, b in pairwise(rates[10:]))


def test_learning_rate_without_or_within_the_warm_up():
    assert learning_rate(settings(warmup_steps=0, lr=1.0), 0) == 1.0
    assert learning_rate(settings(steps=5, warmup_steps=20, lr=1.0), 4) == 0.25


@hypothesis_settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 6), num_processes=st.integers(1, 6), num_micro=st.integers(1, 6))
def test_process_rows_share_out_the_batch(size, num_processes, num_micro):
    batch_size = size * num_processes * num_micro
    shares = [process_rows(batch_size, num_processes, p, num_micro) for p in range(num_processes)]
    assert [len(rows) for share in shares for rows in share] == [size] * (num_processes * num_micro)
    assert [row for share in shares for rows in share for row in rows] == list(range(batch_size))


def test_a_batch_that_cannot_be_shared_out():
    with pytest.raises(UserError) as caught:
        process_rows(16, 3, 0, 2)
    assert str(caught.value) == (
        "train.batch_size 16 cannot be shared evenly by 3 processes with 2 micro-batches each:"
        " make it a multiple of 6"
    )


def test_weight_decay_is_for_matrices_only():
    groups = adamw(network(), settings(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.3, {2}),
        (0.0, {1}),
    ]


if __name__ == "__main__":
    main()
