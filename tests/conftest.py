"""What the tests of several rooms share: a tiny codec in the hub's layout, and a recipe that uses it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

BIN = Path(sys.executable).parent

# Whoever compiles is spared ten processes that find out whether what the CPU can do is there.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# Started in the background of a script, this process and all that it starts would be deaf to SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps a process's settings for ever; a test may want others."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_dac():
    """The section `model` of a codec of 50 frames/s with 4 codebooks of 64, quick to train."""
    return {
        "kind": "dac",
        "encoder_dim": 8,
        "encoder_rates": [4, 4, 4, 5],
        "decoder_dim": 128,
        "num_codebooks": 4,
        "codebook_size": 64,
    }


@pytest.fixture(scope="session")
def tiny_codec(tiny_dac, tmp_path_factory):
    """The folder of such a codec with random weights."""
    import torch

    from tokkata.core.schema import DacModel
    from tokkata.tokenize.families.codec_dac import build_original, save_dac

    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    save_dac(build_original(DacModel(**tiny_dac)), folder, "float32")
    return folder


@pytest.fixture(scope="session")
def tiny_values(tiny_codec):
    """`tiny_values(runs_dir, train={"steps": 3})`: a recipe that runs in seconds, with settings changed.

    A section that names its kind replaces the whole section; None removes it.
    """

    def values(runs_dir, **changes):
        recipe = {
            "name": "tiny",
            "runs_dir": str(runs_dir),
            "data": {"kind": "synth", "num_clips": 24, "duration_s": 0.5},
            "codec": {"kind": "dac", "id": str(tiny_codec), "num_codebooks": 4},
            "tokenize": {"shard_clips": 6},
            "model": {
                "kind": "transformer",
                "dim": 32,
                "num_layers": 1,
                "num_heads": 2,
                "conditions": ["instrument_family"],
            },
            "train": {
                "steps": 12,
                "batch_size": 4,
                "crop_s": 0.4,
                "warmup_steps": 2,
                "log_every": 2,
                "validate_every": 6,
                "save_every": 4,
            },
            "generate": {"num_clips": 4, "duration_s": 0.5},
            "eval": {"num_players": 2},
        }
        for name, change in changes.items():
            if change is None:
                del recipe[name]
            elif isinstance(change, dict) and "kind" not in change:
                recipe[name] = {**recipe.get(name, {}), **change}
            else:
                recipe[name] = change
        return recipe

    return values


@pytest.fixture(scope="session")
def tiny_recipe(tiny_values):
    """The same as a checked `Recipe`."""
    from tokkata.core.recipe import check_recipe

    return lambda runs_dir, **changes: check_recipe(tiny_values(runs_dir, **changes))


@pytest.fixture(scope="session")
def write_recipe(tiny_values):
    """The same as an executable file: `write_recipe(folder, train={"steps": 3})` returns its path."""

    def write(folder, **changes):
        path = folder / "recipe.yaml"
        text = yaml.safe_dump(tiny_values(folder / "runs", **changes), sort_keys=False)
        path.write_text("#!/usr/bin/env -S tokkata run\n" + text, encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(scope="session")
def environment():
    """For processes of their own: the command `tokkata` is on the path, and nothing asks the network."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }


@pytest.fixture
def shell(environment):
    """Run a command to its end; the result has `returncode`, `stdout` and `stderr`."""

    def run(*command, **more):
        return subprocess.run(
            [str(part) for part in command],
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def tokkata(monkeypatch, capsys):
    """Run the command `tokkata` inside this process: `tokkata("run", path)` returns the same three."""

    def run(*arguments):
        from tokkata.cli import main

        monkeypatch.setattr(sys, "argv", ["tokkata", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, out, err)

    return run
