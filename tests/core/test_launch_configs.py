"""The files in recipes/launch: Accelerate understands them, and the SLURM script does what it says.

No cluster is at hand, so SLURM's commands are stand-ins that note how they were called.
"""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from tokkata.core.launcher import asked_processes

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"


@pytest.fixture
def launched_environment(monkeypatch):
    """`launched_environment("ddp.yaml", "--num_processes", "4")`: what a process is told."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("accelerate.commands.launch.torch.cuda.device_count", lambda: 8)

    def environment(name, *options):
        words = ["--config_file", str(LAUNCH / name), *options, "-m", "tokkata.lm.train", "recipe.yaml"]
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        return args, prepare_multi_gpu_env(args)

    return environment


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_loads_each_file(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == asked_processes(["accelerate", "launch", "--config_file", str(path)]) == 8


def test_replicas(launched_environment):
    args, environment = launched_environment("ddp.yaml", "--num_processes", "4")
    assert (args.num_processes, args.multi_gpu, args.use_fsdp) == (4, True, False)
    assert environment.get("ACCELERATE_USE_FSDP", "false") == "false"


def test_shards(launched_environment, monkeypatch):
    machines = ("--num_machines", "2", "--num_processes", "16", "--machine_rank", "1")
    args, environment = launched_environment(
        "fsdp.yaml", *machines, "--main_process_ip", "10.0.0.1", "--main_process_port", "29500"
    )
    assert (args.num_machines, args.num_processes, args.machine_rank, args.use_fsdp) == (2, 16, 1, True)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.transformer_cls_names_to_wrap is None
    assert not plugin.cpu_ram_efficient_loading


# --- SLURM

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> calls; if [[ $1 == show ]]; then echo node7; echo node8; fi',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat srun.pid)"',
    # Ends by itself, or by the signal after it has saved a checkpoint.
    "srun": """
echo $$ > srun.pid
trap 'echo saved >> calls; exit "$AFTER_SIGNAL"' TERM
shift
SLURM_NODEID=1 "$@"
touch started
if [[ $AFTER_SIGNAL ]]; then while :; do sleep 0.05; done; fi
exit "$STATUS"
""",
    "tokkata": 'for word in "$@"; do echo "$word" >> words; done',
}


@pytest.fixture
def slurm(tmp_path):
    """`slurm(STATUS="3")` starts the script, with stand-ins for SLURM's commands, in `tmp_path`."""
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(*arguments, **more):
        variables = {"SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
        variables |= {"SLURM_JOB_NODELIST": "node[7-8]", "AFTER_SIGNAL": "", "STATUS": "0"}
        return subprocess.Popen(
            ["bash", str(LAUNCH / "slurm.sh"), *arguments],
            cwd=tmp_path,
            env=os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | more,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_script_parses():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True)


def test_each_machine_starts_its_processes(slurm, tmp_path):
    script = slurm("my recipe.yaml", "train.steps=9", "name=a b")
    assert (script.communicate(timeout=30)[1], script.returncode) == ("", 0)
    *words, launcher = (tmp_path / "words").read_text().splitlines()
    assert words == ["run", "my recipe.yaml", "train.steps=9", "name=a b", "--stages", "train", "--launcher"]
    assert shlex.split(launcher) == shlex.split(
        "accelerate launch --config_file recipes/launch/fsdp.yaml --num_machines 2 --num_processes 16"
        " --machine_rank 1 --main_process_ip node7 --main_process_port 20041"
    )
    assert asked_processes(shlex.split(launcher)) == 16
    assert (tmp_path / "calls").read_text() == "scontrol show hostnames node[7-8]\n"


def test_a_failed_job_is_not_queued_again(slurm, tmp_path):
    script = slurm("recipe.yaml", STATUS="3")
    script.communicate(timeout=30)
    assert script.returncode == 3
    assert "requeue" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(("after_signal", "queued"), [("143", True), ("0", False)])
def test_a_preempted_job_saves_and_is_queued_again(slurm, tmp_path, after_signal, queued):
    script = slurm("recipe.yaml", AFTER_SIGNAL=after_signal)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert script.poll() is None, script.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == int(after_signal)
    calls = (tmp_path / "calls").read_text().splitlines()[1:]
    assert calls == ["scancel --signal=TERM 41", "saved", *(["scontrol requeue 41"] if queued else [])]


def test_without_a_recipe(slurm):
    script = slurm()
    assert script.communicate(timeout=30)[1] == "usage: sbatch slurm.sh RECIPE [KEY=VALUE …]\n"
    assert script.returncode == 2
