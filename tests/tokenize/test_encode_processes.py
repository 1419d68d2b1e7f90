"""The stage tokenize in many processes, and killed: the same set of bytes as from one undisturbed process."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from tokkata.core.recipe import load_recipe
from tokkata.core.run import run_stage
from tokkata.tests.forked import fork
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.store import TokenStore, read_rejects

NUM_CLIPS = 22
SHARD_CLIPS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, write_recipe):
    """Files of many lengths, some of them longer than a window, one silent and one cut short."""
    folder = tmp_path_factory.mktemp("processes")
    audio = folder / "audio"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUM_CLIPS):
        num_samples = [8000, 8000, int(rng.integers(4000, 70000))][i % 3]
        soundfile.write(audio / f"{i:02d}.flac", rng.uniform(-0.5, 0.5, num_samples), 16000)
    soundfile.write(audio / "05.flac", np.zeros(8000), 16000)
    whole = (audio / "11.flac").read_bytes()
    (audio / "11.flac").write_bytes(whole[: len(whole) // 2])
    return write_recipe(
        folder,
        data={"kind": "folder", "root": str(audio)},
        model={"conditions": []},
        tokenize={"shard_clips": SHARD_CLIPS, "window_s": 1.5, "batch_windows": 3, "store": "latents"},
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(recipe):
    """The bytes that one process writes."""
    values = load_recipe(recipe, ["name=undisturbed"])
    run_stage(values, "tokenize", tokenize)
    rejects = read_rejects(values.folder / "tokens")
    assert [(reject.id, reject.reason.split(":")[0]) for reject in rejects] == [
        ("05.flac", "silent"),
        ("11.flac", "damaged"),
    ]
    return files(values.folder / "tokens")


def test_three_processes_write_what_one_does(recipe, environment, undisturbed):
    """The folder is outdated at first, so the first process moves it while the others are on their way."""
    values = load_recipe(recipe, ["name=three"])
    tokens = values.folder / "tokens"
    tokens.mkdir(parents=True)
    (tokens / "data-00001-of-00008.arrow").write_bytes(b"of another recipe")
    launcher = shlex.split("-m torch.distributed.run --standalone --nproc_per_node 3")
    command = [sys.executable, *launcher, "-m", "tokkata.tokenize.encode", str(recipe), "name=three"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = process.stderr
    assert process.returncode == 0, told
    assert files(tokens) == undisturbed
    assert "tokenize: process 1 of 3: 3 of 8 shards to do" in told
    assert f"tokenize: {NUM_CLIPS - 2} clips encoded, 2 rejected" in told
    assert (values.folder / "old" / "001-tokenize" / "tokens").is_dir()
    marker = json.loads((values.folder / ".stages" / "tokenize.json").read_text())
    assert marker["status"] == "done"


def test_killed_at_any_moment(recipe, undisturbed):
    """SIGKILL several times, each a little after one more shard has appeared."""
    values = load_recipe(recipe, ["name=killed"])
    tokens = values.folder / "tokens"
    chance = random.Random(0)
    for wanted in range(5):
        process = fork(run_stage, values, "tokenize", tokenize)
        while process.is_alive() and len(list(tokens.glob("data-*"))) < wanted:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tokens / "state.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in tokens.glob("data-*")}
    assert 4 <= len(times) < 8
    run_stage(values, "tokenize", tokenize)
    assert files(tokens) == undisturbed
    # What had been done was not done again.
    assert {name: (tokens / name).stat().st_mtime_ns for name in times} == times
    assert len(TokenStore(tokens).dataset) == NUM_CLIPS - 2
