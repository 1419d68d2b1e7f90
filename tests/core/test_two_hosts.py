"""Two hosts, made of network namespaces on this machine, train together; the cable is pulled and put back.

Needs root and the command `ip`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest

from tokkata.core.checkpoint import list_checkpoints
from tokkata.tests.core import toy_training
from tokkata.tests.core.toy_training import (
    TORCHRUN,
    Outcome,
    Toy,
    environment,
    settings,
    train_toy,
    write_recipe,
)

TIMEOUT_S = 15


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """The names of two namespaces joined by a cable, whose ends are called v0 and v1."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and the command ip")
    names = [f"tk{os.getpid()}h{i}" for i in (0, 1)]
    with contextlib.ExitStack() as undo:
        try:
            for name in names:
                ip("netns", "add", name)
                undo.callback(ip, "netns", "delete", name)
            cable = f"link add v0 netns {names[0]} type veth peer name v1 netns {names[1]}"
            ip(*cable.split())
            for i, name in enumerate(names):
                ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"v{i}")
                for device in (f"v{i}", "lo"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
        yield names


def launch(hosts, recipe, toy):
    """The same command on both hosts, as a cluster would start it."""
    return [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", host, *TORCHRUN, "--nnodes", "2", "--node_rank", str(rank)),
                *("--nproc_per_node", "1", "--master_addr", "10.77.0.1", "--master_port", "29511"),
                *(toy_training.__file__, str(recipe)),
            ],
            env=environment(toy, GLOO_SOCKET_IFNAME=f"v{rank}"),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank, host in enumerate(hosts)
    ]


def end(launched):
    for process in launched:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_a_cable_that_is_pulled_and_put_back(tmp_path, hosts):
    recipe = write_recipe(tmp_path, timeout_s=TIMEOUT_S)
    launched = launch(hosts, recipe, Toy(touch_at=6))
    try:
        deadline = time.monotonic() + 90
        while not all((tmp_path / f"reached-{rank}").exists() for rank in (0, 1)):
            assert all(process.poll() is None for process in launched), launched[0].communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ip("-n", hosts[0], "link", "set", "v0", "down")
        told = [process.communicate(timeout=TIMEOUT_S + 60)[1] for process in launched]
    finally:
        end(launched)
    folder = tmp_path / "toy" / "checkpoints"
    for rank, text in enumerate(told):
        assert (
            f"process {rank + 1} of 2 has lost another one (a machine or the network failed, or it was silent"
            f" for train.timeout_s = {TIMEOUT_S} s): the newest checkpoint is kept in {folder};"
            " to resume, run the same command again\n"
        ) in text
    assert all(process.returncode for process in launched)
    assert [path.name for path in list_checkpoints(folder)] == ["step-000004"]

    ip("-n", hosts[0], "link", "set", "v0", "up")
    launched = launch(hosts, recipe, Toy())
    try:
        told = [process.communicate(timeout=90)[1] for process in launched]
    finally:
        end(launched)
    assert [process.returncode for process in launched] == [0, 0], told
    train_toy(tmp_path / "one", settings())
    Outcome(tmp_path / "toy").assert_close(Outcome(tmp_path / "one"))
