"""How many processes a launcher was asked for, and whether they came.

`accelerate launch --cpu --num_processes 2` starts one process and says nothing, for example.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from .errors import UserError

ASKED_FOR = "TOKKATA_LAUNCHER"
"""The environment variable by which `tokkata run` tells a stage what has started it."""


def asked_processes(launcher: Sequence[str]) -> int | None:
    """The number of processes, on all machines, that the words of a launcher's command ask for.

    None where they do not say: that is then for the launcher to decide.
    """
    options: dict[str, str] = {}
    for word, following in zip(launcher, [*launcher, ""][1:], strict=True):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value or following
    if "config_file" in options and Path(options["config_file"]).is_file():
        text = Path(options["config_file"]).read_text(encoding="utf-8")
        options.setdefault("num_processes", str(yaml.safe_load(text).get("num_processes")))
    if "num_processes" in options:  # accelerate launch: of all machines together
        return _count(options["num_processes"])
    each, machines = _count(options.get("nproc_per_node", "")), _count(options.get("nnodes", "1"))
    return each * machines if each and machines else None


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() else None  # not 'gpu', 'auto' or '1:4'


def check_num_processes(found: int) -> None:
    """Raise `UserError` if `tokkata run --launcher` asked for another number of processes than `found`."""
    launcher = os.environ.get(ASKED_FOR, "")
    asked = asked_processes(launcher.split())
    if asked is not None and asked != found:
        raise UserError(
            f"'{launcher}' was asked for {asked} processes and has started {found}: on a CPU set"
            f" ACCELERATE_USE_CPU=true and use --launcher 'torchrun --nproc_per_node {asked}'; on GPUs see"
            " 'accelerate env'"
        )
