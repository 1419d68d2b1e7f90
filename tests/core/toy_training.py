"""A small network of blocks and a small recurrent one, to train in the loop.

Started as a program this is a stage that trains one of them, so that tests can kill it, cut its network and
share it out to many processes. The environment variable `TOY` holds its options as JSON.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator, DistributedType
from accelerate.state import PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from tokkata.core import processes
from tokkata.core.files import read_jsonl, write_json
from tokkata.core.job import Job, Loss, Phase
from tokkata.core.loop import train
from tokkata.core.optimizer import adamw
from tokkata.core.run import stage_main
from tokkata.core.schema import Train
from tokkata.tests.core.toy_game import game_job
from tokkata.tests.forked import run_forked

NUM_ROWS = 64
CHUNK = 5  # steps of a recurrent network in one training step
CHUNKS_PER_RECORDING = 3


@dataclass
class Toy:
    """What a run does, beside its settings."""

    kind: str = "blocks"
    num_blocks: int = 2
    dropout: float = 0.0
    fsdp_on_cpu: bool = False
    signal_at: int | None = None
    """SIGTERM comes in the midst of this step, to the first process."""
    touch_at: int | None = None
    """In this step every process makes a file `reached-<process>` beside the run's folder, and waits."""
    backend: str = "inductor"
    """What compiles the blocks."""
    previews: int = 0
    """As a program, whose recipe is that of a codec: its `train.previews`."""


def settings(**changed):
    values = {"steps": 10, "batch_size": 8, "lr": 0.02, "warmup_steps": 2, "ema_decay": 0.9, "log_every": 1}
    return Train(**{**values, "save_every": 4, "validate_every": 5, **changed})


class Block(nn.Module):
    """A residual layer."""

    def __init__(self, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, shift):
        return x + self.dropout(self.down(torch.tanh(self.up(self.norm(x)) + shift)))


class BlockNet(nn.Module):
    """6 numbers to 2."""

    def __init__(self, num_blocks=2, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.input = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(num_blocks))
        self.output = nn.Linear(8, 2)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        x = self.input(x)
        for block in self.blocks:
            x = block(x, self.scale)
        return self.output(x)


class Recurrent(nn.Module):
    """A sequence of 6 numbers to one of 2."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.output = nn.Linear(8, 2)

    def forward(self, x, hidden):
        y, hidden = self.gru(x, hidden[None])
        return self.output(y), hidden[0]


def masked_loss(prediction, batch):
    weight = batch["mask"].sum()
    error = (prediction - batch["y"]) * batch["mask"]
    mean = error.square().sum() / weight
    return Loss(mean, weight, {"codebook_0": mean})


def block_job(config, toy, at_step=lambda step: None):
    """Rows of a linear relation; some values are masked out, so that rows have different weights."""
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((NUM_ROWS, 6)), dtype=torch.float32)
    y = x @ torch.tensor(rng.standard_normal((6, 2)), dtype=torch.float32)
    mask = torch.tensor(rng.uniform(size=(NUM_ROWS, 2)) < rng.uniform(size=(NUM_ROWS, 1))).float()
    mask[:, 0] = 1
    whole = {"x": x, "y": y, "mask": mask}

    def batch(step, rows):
        at_step(step)
        chosen = np.random.default_rng([1, step]).permutation(NUM_ROWS)[: config.batch_size]
        return {name: t[chosen[rows.start : rows.stop]] for name, t in whole.items()}

    def validate(module):
        device = next(module.parameters()).device
        rows = {name: t.to(device) for name, t in whole.items()}
        return {"loss": masked_loss(module(rows["x"]), rows).mean.item()}

    net = BlockNet(toy.num_blocks, toy.dropout)
    return _job(net, config, batch, validate, lambda modules, b: masked_loss(modules["net"](b["x"]), b))


def recurrent_job(config, toy, at_step=lambda step: None):
    """Each row of the global batch reads recordings from front to back, a chunk in each step."""

    def recording(row, number):
        x = np.random.default_rng([2, row, number]).standard_normal((CHUNK * CHUNKS_PER_RECORDING, 6))
        return torch.tensor(x, dtype=torch.float32)

    def batch(step, rows):
        at_step(step)
        number, chunk = divmod(step, CHUNKS_PER_RECORDING)
        x = torch.stack([recording(row, number) for row in rows])
        y = x[..., :2].cumsum(1).tanh()  # known only to those who remember the chunks before
        here = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        return {"x": x[:, here], "y": y[:, here], "first": torch.full((len(rows), 1), float(chunk == 0))}

    def loss(modules, b):
        prediction, hidden = modules["net"](b["x"], b["hidden"] * (1 - b["first"]))
        result = masked_loss(prediction, {**b, "mask": torch.ones_like(b["y"])})
        return Loss(result.mean, result.weight, {"hidden": hidden.abs().mean()}, carried={"hidden": hidden})

    job = _job(Recurrent(), config, batch, lambda module: {}, loss)
    job.carried = {"hidden": torch.zeros(config.batch_size, 8)}
    return job


def _job(net, config, batch, validate, loss):
    return Job(
        modules={"net": net},
        phases=[Phase("net", "net", adamw(net, config), loss)],
        averaged="net",
        batch=batch,
        validate=validate,
        save=lambda module, scores: None,
        unit="values",
    )


def write_preview(module, folder):
    """What it is given, and as much disturbance as a family may make."""
    module(torch.randn(3, 6))
    save_file(module.state_dict(), folder / "module.safetensors")


def train_toy(folder, config, toy=None, at_step=lambda step: None, change=lambda job: None):
    """Train in `folder`; returns what a finished run has left there."""
    toy = toy or Toy()
    jobs = {"blocks": block_job, "recurrent": recurrent_job, "game": game_job}
    job = jobs[toy.kind](config, toy, at_step)
    job.preview = write_preview if config.previews else None
    change(job)

    def save(module, scores):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / "averaged.safetensors")
        write_json(folder / "scores.json", scores)

    job.save = save
    with contextlib.ExitStack() as undo:
        if toy.fsdp_on_cpu:
            undo.callback(setattr, processes, "Accelerator", processes.Accelerator)
            processes.Accelerator = ShardingOnCpu
        undo.callback(setattr, torch, "compile", torch.compile)
        torch.compile = functools.partial(torch.compile, backend=toy.backend)
        train(job, config, folder)


class Outcome:
    """What a finished run has left in its folder."""

    def __init__(self, folder):
        self.averaged = load_file(folder / "averaged.safetensors")
        self.scores = json.loads((folder / "scores.json").read_text())
        self.rows = read_jsonl(folder / "logs" / "train.jsonl")
        for row in self.rows:
            for name in [n for n in row if n.startswith("time") or n.endswith("_per_s") or n == "mfu"]:
                del row[name]

    def assert_same(self, other):
        """Bit for bit."""
        assert self.averaged.keys() == other.averaged.keys()
        for name, value in self.averaged.items():
            assert torch.equal(value, other.averaged[name]), name
        assert (self.scores, self.rows) == (other.scores, other.rows)

    def assert_close(self, other, atol=1e-6):
        torch.testing.assert_close(self.averaged, other.averaged, rtol=0, atol=atol)
        assert len(self.rows) == len(other.rows)
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            # A perplexity is off by as much of itself as the loss is off.
            assert mine == pytest.approx(theirs, rel=10 * atol, abs=10 * atol)


class ShardingOnCpu(Accelerator):
    """Accelerate turns its FSDP on where there are GPUs; this does the same on a CPU, with gloo."""

    def __init__(self, *, fsdp_plugin, **options):
        super().__init__(fsdp_plugin=fsdp_plugin, **options)
        assert self.distributed_type == DistributedType.MULTI_CPU
        self.state._shared_state["distributed_type"] = DistributedType.FSDP
        self.state._shared_state["fsdp_plugin"] = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def prepare(self, *objects):
        module, *others = super().prepare(*objects)
        assert all(isinstance(block, FSDPModule) for block in (module, *module.blocks))
        return module, *others


# --- as a program

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def write_recipe(folder, **changed):
    recipe = {
        "name": "toy",
        "runs_dir": str(folder),
        "data": {"kind": "synth", "num_clips": 1},
        "model": {"kind": "dac"},
        "train": settings(**changed).model_dump(mode="json", exclude_defaults=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def environment(toy, **more):
    ours = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TOY": json.dumps(asdict(toy))}
    return os.environ | ours | more


def launch(folder, num_processes, toy=None, more=None, **changed):
    """Train a toy in `folder` with as many processes, to its end, as users do: by torchrun."""
    return subprocess.run(
        [
            *(*TORCHRUN, "--standalone", "--nproc_per_node", str(num_processes)),
            *(__file__, str(write_recipe(folder, **changed))),
        ],
        env=environment(toy or Toy(), **(more or {})),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(folder, num_processes, toy=None, more=None, **changed):
    """The same without torchrun and without the time that imports take."""
    recipe = write_recipe(folder, **changed)
    return run_forked(folder, num_processes, environment(toy or Toy(), **(more or {})), __file__, recipe)


def main():
    toy = Toy(**json.loads(os.environ["TOY"]))
    rank = os.environ.get("RANK", "0")

    def at_step(step):
        if step == toy.signal_at and rank == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        if step == toy.touch_at:
            (Path(sys.argv[1]).parent / f"reached-{rank}").touch()
            time.sleep(3)

    def work(recipe):
        train_toy(recipe.folder, recipe.train.model_copy(update={"previews": toy.previews}), toy, at_step)

    stage_main("prepare", work)


if __name__ == "__main__":
    main()
