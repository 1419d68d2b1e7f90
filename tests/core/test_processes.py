"""Many processes train what one does: replicas and shards, stopped, resumed and lost.

FSDP runs here with gloo on a CPU: see `ShardingOnCpu` for what that needs.
"""

import json
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tokkata.core import processes
from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.errors import UserError
from tokkata.core.processes import start_accelerator
from tokkata.tests.core.toy_training import (
    FSDP,
    Outcome,
    Toy,
    environment,
    launch,
    settings,
    start,
    train_toy,
    write_recipe,
)
from tokkata.tests.forked import fork_rank, free_port

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def finished(folder, num_processes, toy=None, more=None, **changed):
    ended = start(folder, num_processes, toy, more, **changed)
    assert ended.returncode == 0, ended.stderr
    return Outcome(folder / "toy")


def alone(folder, toy=None, **changed):
    train_toy(folder, settings(**changed), toy or Toy())
    return Outcome(folder)


# --- replicas


def test_four_processes_are_one(tmp_path):
    four = finished(tmp_path / "four", 4, grad_accumulation=2)
    four.assert_close(alone(tmp_path / "one"))
    newest = list_checkpoints(tmp_path / "four" / "toy" / "checkpoints")[-1]
    assert json.loads((newest / "loop.json").read_text()) == {"step": 10, "num_processes": 4}


class PulledPlug(Exception):
    pass


def pull_plug_at(number):
    def at_step(step):
        if step == number:
            raise PulledPlug

    return at_step


@pytest.mark.parametrize("at", [5, 7])
def test_what_is_carried_is_resumed_bit_for_bit(tmp_path, at):
    """In the midst of a recording, and at the beginning of one; and it does carry something."""
    toy = Toy("recurrent")
    config = settings(batch_size=4, grad_accumulation=2, save_every=1)
    train_toy(tmp_path / "whole", config, toy)
    with pytest.raises(PulledPlug):
        train_toy(tmp_path / "cut", config, toy, pull_plug_at(at))
    saved = load_file(tmp_path / "cut" / "checkpoints" / f"step-{at:06d}" / "carried.safetensors")
    assert saved["hidden"].shape == (4, 8)
    assert saved["hidden"].abs().min() > 0
    train_toy(tmp_path / "cut", config, toy)
    Outcome(tmp_path / "cut").assert_same(Outcome(tmp_path / "whole"))
    train_toy(tmp_path / "forgetful", config, toy, change=forget)
    hidden = [[row["hidden"] for row in curve(tmp_path / name)] for name in ("whole", "forgetful")]
    same = [mine == theirs for mine, theirs in zip(*hidden, strict=True)]
    assert (same[0], any(same[1:])) == (True, False), "the first chunk alone has nothing before it"


def curve(folder):
    return [row for row in Outcome(folder).rows if "lr" in row]


def forget(job):
    loss = job.phases[0].loss
    job.phases[0].loss = lambda modules, batch: replace(loss(modules, batch), carried={})


def test_what_is_carried_outlives_a_step_that_is_not_finite(tmp_path):
    def spoil(job):
        clean = job.batch
        job.batch = lambda step, rows: {
            name: t * (float("nan") if (step, name) == (4, "x") else 1)
            for name, t in clean(step, rows).items()
        }

    train_toy(tmp_path, settings(batch_size=4), Toy("recurrent"), change=spoil)
    assert ["loss" in row for row in curve(tmp_path)] == [True] * 4 + [False] + [True] * 5


def test_what_is_carried_is_shared_out_and_resumed(tmp_path):
    """Two processes stopped in the midst of recordings, and one that goes on, are one that was never."""
    whole = alone(tmp_path / "one", Toy("recurrent"), batch_size=4)
    toy = Toy("recurrent", signal_at=6)
    ended = start(tmp_path / "cut", 2, toy, batch_size=4, grad_accumulation=2)
    assert "stopped at step 7 of 10 with a checkpoint" in ended.stderr
    folder = tmp_path / "cut" / "toy"
    assert list_checkpoints(folder / "checkpoints")[-1].name == "step-000007"
    alone(folder, Toy("recurrent"), batch_size=4).assert_close(whole)


# --- shards

SHARDED = {"grad_accumulation": 2, "activation_checkpointing": True, "ema_every": 2}


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory):
    """The folder of a finished run of two processes that hold half of the weights each."""
    folder = tmp_path_factory.mktemp("sharded")
    finished(folder, 2, Toy(dropout=0.3, fsdp_on_cpu=True), FSDP, **SHARDED)
    return folder / "toy"


@pytest.mark.slow
def test_shards_of_two_and_then_of_four_are_one_process(tmp_path):
    ended = start(tmp_path / "some", 2, Toy(fsdp_on_cpu=True, signal_at=6), FSDP, **SHARDED)
    assert "stopped at step 7 of 10 with a checkpoint" in ended.stderr
    some = finished(tmp_path / "some", 4, Toy(fsdp_on_cpu=True), FSDP, **SHARDED)
    some.assert_close(alone(tmp_path / "one", ema_every=2))


def test_a_sharded_run_goes_on_after_sigterm_bit_for_bit(tmp_path, sharded_run):
    toy = Toy(dropout=0.3, fsdp_on_cpu=True)
    ended = launch(tmp_path, 2, Toy(dropout=0.3, fsdp_on_cpu=True, signal_at=6), FSDP, **SHARDED)
    assert ended.returncode != 0
    assert "stopped at step 7 of 10 with a checkpoint" in ended.stderr
    assert "Traceback" not in ended.stderr.partition("stopped at step 7")[0]
    finished(tmp_path, 2, toy, FSDP, **SHARDED).assert_same(Outcome(sharded_run))


def test_every_process_writes_its_shards(sharded_run):
    newest = list_checkpoints(sharded_run / "checkpoints")[-1]
    for name in ("averaged", "pytorch_model_fsdp_0"):
        files = {path.name: path.stat().st_size for path in (newest / name).glob("*.distcp")}
        assert files.keys() == {"__0_0.distcp", "__1_0.distcp"}
        assert max(files.values()) < 1.5 * min(files.values())


def test_a_sharded_run_is_not_resumed_without_shards(sharded_run):
    with pytest.raises(UserError) as caught:
        alone(sharded_run, steps=11, **SHARDED)
    newest = sharded_run / "checkpoints" / "step-000010"
    assert str(caught.value) == (
        f"{newest} was written with FSDP and can only be resumed so: start the run as before, or under"
        " another name"
    )


def test_shards_in_bf16(tmp_path):
    """Weights and the loss keep their digits: only the arithmetic is in bf16."""
    toy = Toy(fsdp_on_cpu=True)
    two = finished(tmp_path / "two", 2, toy, FSDP, precision="bf16", steps=6)
    one = alone(tmp_path / "one", steps=6)
    losses, exact = (torch.tensor([row["loss"] for row in run.rows if "loss" in row]) for run in (two, one))
    torch.testing.assert_close(losses, exact, rtol=2e-2, atol=0)
    assert not torch.equal(losses, losses.bfloat16().float())
    assert all(value.dtype == torch.float32 for value in two.averaged.values())


@pytest.mark.parametrize("sharded", [False, True])
def test_compiled_in_two_processes(tmp_path, sharded):
    """Dynamo and autograd's compiler; that inductor's code is right is not this project's to test."""
    changed = {"grad_accumulation": 2, "activation_checkpointing": True, "steps": 5}
    toy, more = Toy(fsdp_on_cpu=sharded, backend="aot_eager"), FSDP if sharded else {}
    two = finished(tmp_path / "two", 2, toy, more, compile=True, **changed)
    two.assert_close(alone(tmp_path / "one", **changed), atol=1e-5)


@pytest.mark.parametrize(
    ("more", "changed", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "FSDP version 1 is not supported: set fsdp_version: 2 in Accelerate's"),
        (FSDP, {"precision": "fp16"}, "train.precision cannot be 'fp16' with FSDP: choose 'bf16'"),
    ],
)
def test_settings_that_fsdp_has_not(monkeypatch, more, changed, message):
    for name, value in {**FSDP, **more}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        start_accelerator(settings(**changed))


def test_fsdp_that_accelerate_would_ignore(monkeypatch):
    class OneOfTwo(Accelerator):
        """Without GPUs, Accelerate goes on with replicas."""

        num_processes = 2

    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "Accelerator", OneOfTwo)
    with pytest.raises(UserError) as caught:
        start_accelerator(settings())
    assert str(caught.value) == (
        "Accelerate has no FSDP on cpu and would train whole copies of the model instead: start the run"
        " without ACCELERATE_USE_FSDP"
    )


# --- lost


def test_a_process_that_is_lost(tmp_path):
    """The second one dies without a word, and comes back."""
    recipe, said = write_recipe(tmp_path), [tmp_path / "first.txt", tmp_path / "second.txt"]

    def both(toy):
        port, program = free_port(), sys.modules[Toy.__module__].__file__
        return [fork_rank(said[rank], rank, 2, port, environment(toy), program, recipe) for rank in (0, 1)]

    first, second = both(Toy(touch_at=6))
    wait_for(tmp_path / "reached-1", first)
    second.kill()
    for process in (first, second):
        process.join(timeout=60)
    folder = tmp_path / "toy" / "checkpoints"
    assert said[0].read_text().splitlines()[-1] == (
        "process 1 of 2 has lost another one (a machine or the network failed, or it was silent for"
        f" train.timeout_s = 600 s): the newest checkpoint is kept in {folder}; to resume, run the same"
        " command again"
    )
    assert (first.exitcode, second.exitcode) == (2, -signal.SIGKILL)
    assert [path.name for path in list_checkpoints(folder)] == ["step-000004"]
    for process in both(Toy()):
        process.join(timeout=60)
        assert process.exitcode == 0
    Outcome(tmp_path / "toy").assert_close(alone(tmp_path / "one"))


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_that_accelerate_does_not_see(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started 2 processes, but Accelerate sees 1"):
        start_accelerator(settings())
