"""A launcher that starts fewer processes than it was asked for is found out."""

import shlex

import pytest
import yaml

from tokkata.core.errors import UserError
from tokkata.core.launcher import ASKED_FOR, asked_processes, check_num_processes


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("accelerate launch --cpu --num_processes 2", 2),
        ("accelerate launch --num_machines=2 --num-processes=16", 16),
        ("torchrun --nproc_per_node 2", 2),
        ("torchrun --nnodes 3 --nproc-per-node=4", 12),
        ("/usr/bin/python -m torch.distributed.run --standalone --nproc_per_node 4", 4),
        ("torchrun --nproc_per_node gpu", None),
        ("torchrun --nnodes 1:4 --nproc_per_node 2", None),
        ("accelerate launch", None),
        ("accelerate launch --config_file not-there.yaml", None),
        ("accelerate launch --num_processes", None),
        ("", None),
    ],
)
def test_asked_processes(command, asked):
    assert asked_processes(shlex.split(command)) == asked


def test_the_config_file_of_accelerate_counts(tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump({"num_processes": 2}))
    assert asked_processes(["accelerate", "launch", "--config_file", str(config)]) == 2
    assert asked_processes(["accelerate", "launch", f"--config_file={config}", "--num_processes", "3"]) == 3


def test_fewer_processes_than_asked_for(monkeypatch):
    monkeypatch.setenv(ASKED_FOR, "accelerate launch --cpu --num_processes 2")
    check_num_processes(2)
    with pytest.raises(UserError) as caught:
        check_num_processes(1)
    assert str(caught.value) == (
        "'accelerate launch --cpu --num_processes 2' was asked for 2 processes and has started 1: on a CPU"
        " set ACCELERATE_USE_CPU=true and use --launcher 'torchrun --nproc_per_node 2'; on GPUs see"
        " 'accelerate env'"
    )


def test_without_a_launcher_one_process_is_right(monkeypatch):
    monkeypatch.delenv(ASKED_FOR, raising=False)
    check_num_processes(1)


def test_accelerate_starts_one_process_on_a_cpu(tmp_path, write_recipe, tokkata, shell):
    """The silent fault that this is about, from the command line."""
    recipe = write_recipe(tmp_path)
    assert tokkata("tokenize", recipe).returncode == 0
    launcher = "accelerate launch --cpu --num_processes 2"
    result = shell("tokkata", "run", recipe, "--stages", "train", "--launcher", launcher)
    assert result.returncode == 1
    assert f"'{launcher}' was asked for 2 processes and has started 1: on a CPU set" in result.stderr
