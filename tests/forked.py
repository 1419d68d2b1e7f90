"""Processes forked from one that has done the imports, which take longer than what most tests do then."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
# There is one such server a process, so that all that is forked anywhere must be named here.
_CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",  # what an optimizer's first step imports
        "tokkata.tests.core.toy_training",
        "tokkata.tokenize.encode",
        "tokkata.tokenize.training.train_codec",
        "tokkata.tokenize.training.train_vae",
        "tokkata.gan.train",
        "tokkata.diffusion.distill",
        "tokkata.diffusion.train",
    ]
)


def fork(work, *arguments):
    """A process that does `work(*arguments)`, a function of a module."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def fork_rank(said, rank, num_processes, port, environ, program, *arguments):
    """`python program *arguments` as torchrun would start it; what it says is added to the file `said`."""
    ranks = {"RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": num_processes}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables = {name: str(value) for name, value in (ranks | master).items()} if num_processes > 1 else {}
    return fork(_run_program, str(said), {**environ, **variables}, str(program), *map(str, arguments))


def run_forked(folder, num_processes, environ, program, *arguments):
    """As many such processes, to their end; like a command's, the result has `returncode` and `stderr`."""
    said, port = Path(folder) / "said.txt", free_port()
    said.unlink(missing_ok=True)
    processes = [
        fork_rank(said, rank, num_processes, port, environ, program, *arguments)
        for rank in range(num_processes)
    ]
    try:
        for process in processes:
            process.join(timeout=300)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert None not in codes, said.read_text()
    return subprocess.CompletedProcess(program, next(filter(None, codes), 0), stderr=said.read_text())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run_program(said, environ, program, *arguments):
    import torch

    os.environ.clear()
    os.environ.update(environ)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
