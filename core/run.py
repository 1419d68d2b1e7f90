"""The run folder: what has been done in it, what has to be done again, and why.

Each stage leaves a marker, `.stages/<stage>.json`, with the settings that decided its output. A stage is
done when its marker says so and records the same settings, the same state of the files it reads, and the
same stage before it. What an outdated stage wrote is moved to `old/`, never deleted; nor is anything that
lies where a stage without a marker is about to write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from .errors import UserError
from .files import write_json, write_text
from .progress import hide_library_bars
from .recipe import dump_recipe, load_recipe
from .schema import Recipe
from .stages import Stage, stages_of

State = Literal["done", "new", "unfinished", "outdated"]

# How long the other processes of a launcher wait for the first one to begin a stage: it may have to look at
# every file of a corpus on a slow disk, and start later than they do.
_PATIENCE_S = 600.0
_POLL_S = 0.2

# Settings that may name files or a folder on this machine.
_FILES = ("root", "soundfont", "id", "encoder", "init_from", "teacher")


@dataclass(frozen=True)
class StageState:
    """What a run folder holds of one stage."""

    stage: Stage
    state: State
    why: str
    """For people; empty where there is nothing to explain."""
    record: dict[str, Any] = field(repr=False)
    """Everything that the stage's output depends on, as it is now."""


def process_index() -> int:
    """Which of the processes that a launcher has started this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes a launcher has started on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """False in all but the first of the processes that a launcher has started."""
    return process_index() == 0


def is_disk_full(error: OSError) -> bool:
    """Whether `error` says that the disk, or this user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def stage_states(recipe: Recipe) -> list[StageState]:
    """The state of every stage of `recipe` in its run folder."""
    states: dict[str, StageState] = {}
    for stage in stages_of(recipe):
        marker = _read_marker(recipe, stage)
        before = states.get(stage.after) if stage.after else None
        record = _record(recipe, stage, marker, before)
        state: State
        if marker is None:
            state, why = "new", ""
        elif before and before.state != "done":
            state, why = "outdated", f"{stage.after} runs again"
        elif marker["record"] != record:
            state, why = "outdated", "; ".join(_differences(marker["record"], record))
        elif marker["status"] != "done":
            state, why = "unfinished", "was interrupted"
        else:
            state, why = "done", ""
        states[stage.name] = StageState(stage, state, why, record)
    return list(states.values())


def run_stage(recipe: Recipe, name: str, work: Callable[[Recipe], None]) -> None:
    """Do the stage `name` unless it is done: the body of every stage's program.

    Raises `UserError` if the stage before it has not been done with these settings, and if the disk is full.
    """
    try:
        _run_stage(recipe, name, work)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{name}: the disk of {recipe.folder} is full: free some space; the same command then goes on"
        ) from error


def _run_stage(recipe: Recipe, name: str, work: Callable[[Recipe], None]) -> None:
    states = {state.stage.name: state for state in stage_states(recipe)}
    if name not in states:
        raise UserError(
            f"a run with model '{recipe.model.kind}' has no stage '{name}', only {', '.join(states)}"
        )
    current = states[name]
    if current.stage.after is not None:
        before = states[current.stage.after]
        if before.state != "done":
            reason = {"new": "which has not run yet", "unfinished": "which has not finished"}.get(
                before.state, f"which is outdated ({before.why})"
            )
            raise UserError(f"{name} needs the output of {before.stage.name}, {reason}: run that first")
    if current.state == "done":
        _say(f"{name}: already done in {recipe.folder}")
        return
    if is_main_process():
        if current.state == "unfinished":
            _say(f"{name}: goes on where it was interrupted")
        else:
            reason = f"runs again, because {current.why}" if current.why else "runs for the first time"
            kept = _archive(recipe, current.stage)
            _say(f"{name}: {reason}" + (f"; what was there is kept in {kept}" if kept else ""))
        write_text(recipe.folder / "recipe.yaml", dump_recipe(recipe))
        _write_marker(recipe, current, "running", 0.0)
    else:
        _wait_for_first_process(recipe, current)
    start = time.monotonic()
    work(recipe)
    if is_main_process():
        # With the record from before the work: files that changed meanwhile may not have been read.
        _write_marker(recipe, current, "done", time.monotonic() - start)


def _wait_for_first_process(recipe: Recipe, current: StageState) -> None:
    """Wait until the first process has begun (or ended) the stage with the same record as this one.

    Before that it may still move away what an outdated stage has left. Raises `UserError` if it does not
    begin, or has found other settings or files.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (marker := _read_marker(recipe, current.stage)) is None or marker["record"] != current.record:
        if time.monotonic() > deadline:
            found = "; ".join(_differences(marker["record"], current.record)) if marker else "no sign of it"
            raise UserError(
                f"{current.stage.name}: the first of the {num_processes()} processes has not begun within"
                f" {_PATIENCE_S:.0f} s with what process {process_index() + 1} finds in"
                f" {recipe.folder} ({found}): all machines must see the same files, with the same times of"
                " change, in a shared folder"
            )
        time.sleep(_POLL_S)


def stage_main(name: str, work: Callable[[Recipe], None]) -> None:
    """`python -m MODULE RECIPE [key=value …]`: what each stage's module does when it is started."""
    if len(sys.argv) < 2:
        program = getattr(sys.modules["__main__"].__spec__, "name", "MODULE")
        print(f"usage: python -m {program} RECIPE [key=value …]   (stage {name})", file=sys.stderr)
        raise SystemExit(UserError.exit_code)
    hide_library_bars()
    try:
        run_stage(load_recipe(Path(sys.argv[1]), sys.argv[2:]), name, work)
        if num_processes() > 1:
            # Without the libraries' own clearing up, in which a process whose work was done has been seen to
            # abort: Gloo's threads outlive the interpreter.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    except UserError as error:
        error.end_process()
    except KeyboardInterrupt:
        _say(f"{name}: interrupted; to resume, run the same command again")
        raise SystemExit(128 + signal.SIGINT) from None


def deciding_settings(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The settings that decide the output of `stage`, as flat dotted keys; operational ones are left out."""
    return {
        key: value
        for section in stage.sections
        for key, value in _flatten(section, attrgetter(section)(recipe))
    }


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        for name, setting in type(value).model_fields.items():
            extra = setting.json_schema_extra
            if not (isinstance(extra, dict) and extra.get("operational")):
                yield from _flatten(f"{prefix}.{name}", getattr(value, name))
    elif isinstance(value, list | tuple) and any(isinstance(item, BaseModel) for item in value):
        for i, item in enumerate(value):
            yield from _flatten(f"{prefix}.{i}", item)
    else:
        yield prefix, json.loads(json.dumps(value, default=str))


def _record(
    recipe: Recipe, stage: Stage, marker: dict[str, Any] | None, before: StageState | None
) -> dict[str, Any]:
    """Everything that the output of `stage` depends on, in JSON's types."""
    settings = deciding_settings(recipe, stage)
    known = marker["record"]["files"] if marker else {}
    files = {}
    for key, value in settings.items():
        if value is not None and key.rpartition(".")[2] in _FILES:
            if Path(value).exists():
                files[key] = _state_of_files(Path(value))
            elif key in known:
                files[key] = known[key]  # tokens outlive the audio that they were made from
    earlier = hashlib.sha256(json.dumps(before.record, sort_keys=True).encode()).hexdigest() if before else ""
    return {"settings": settings, "files": files, "before": earlier}


def _state_of_files(path: Path) -> str:
    """A hash of the names, sizes and times of change of all files at and below `path`."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        status = file.stat()
        digest.update(
            f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    told = []
    before, after = old["settings"], new["settings"]
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            told.append(f"{key} was {json.dumps(before.get(key))} and is {json.dumps(after.get(key))}")
    for key, state in new["files"].items():
        if old["files"].get(key) != state and before.get(key) == after[key]:
            told.append(f"the files in {after[key]} have changed")
    return told or ["the stage before it ran again"]


def _marker_path(recipe: Recipe, stage: Stage) -> Path:
    return recipe.folder / ".stages" / f"{stage.name}.json"


def _read_marker(recipe: Recipe, stage: Stage) -> dict[str, Any] | None:
    path = _marker_path(recipe, stage)
    if not path.exists():
        return None
    marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return marker


def _write_marker(recipe: Recipe, current: StageState, status: str, seconds: float) -> None:
    marker = {"status": status, "seconds": round(seconds, 1), "record": current.record}
    write_json(_marker_path(recipe, current.stage), marker)


def _archive(recipe: Recipe, stage: Stage) -> Path | None:
    """Move the outputs of `stage` to the next free folder `old/<number>-<stage>`; None if there are none."""
    outputs = [recipe.folder / name for name in stage.outputs if (recipe.folder / name).exists()]
    if not outputs:
        return None
    old = recipe.folder / "old"
    numbers = [int(found.group()) for path in old.glob("*") if (found := re.match(r"\d+(?=-)", path.name))]
    folder = old / f"{max(numbers, default=0) + 1:03d}-{stage.name}"
    folder.mkdir(parents=True)
    for output in outputs:
        output.replace(folder / output.name)
    return folder


def _say(text: str) -> None:
    if is_main_process():
        print(text, file=sys.stderr, flush=True)
