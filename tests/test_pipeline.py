"""A recipe from audio to report, undisturbed and killed in every stage: the results are equal, bit for bit.

The processes are real ones. What makes a kill land at the same place every time is `sitecustomize.py`, which
Python imports at its start: there the test's processes learn to end themselves when a certain file is about
to get its name, so that it lies there finished but for the renaming, the worst moment there is.
"""

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

_FAULTS = """
import os, re, signal, sys, time

pattern, fault = os.environ.get("FAULT_AT"), os.environ.get("FAULT")

def watch(event, arguments):
    global pattern
    if event != "os.rename" or not pattern or not re.search(pattern, str(arguments[1])):
        return
    pattern = None
    if fault == "SIGKILL":
        os.killpg(0, signal.SIGKILL)
    # SIGTERM goes to the command, which has to pass it on; this process waits until it has come.
    handler, seen = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda *a: (seen.append(a), handler(*a)))
    os.kill(os.getppid(), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)

if pattern:
    sys.addaudithook(watch)
"""


@dataclass
class Attempt:
    """One run of the command."""

    code: int
    text: str


@dataclass
class Runs:
    """The same recipe in two folders."""

    undisturbed: Path
    disturbed: Path
    first: Attempt
    """The undisturbed run."""
    attempts: dict[str, Attempt]
    """The others, by the stage in which each was stopped."""
    recipe: Path
    faults: Path
    """Where `sitecustomize.py` is."""
    left: dict[str, set[str]]
    """What lay in the disturbed run's folder after each fault."""


def files(folder):
    """Every file below `folder`, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_recipe, environment):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "sitecustomize.py").write_text(_FAULTS)
    # Single notes would be judged by their pitch, and loading the tracker takes longer than all the rest.
    data = {"kind": "synth", "num_clips": 24, "duration_s": 0.5, "forms": ["phrase", "chord"]}
    recipe = write_recipe(folder, data=data, train={"log_every": 1})

    def start(name, **fault):
        log = (folder / "output.txt").open("w+") if fault else (folder / f"{name}.txt").open("w+")
        process = subprocess.Popen(
            [recipe, f"name={name}"],
            env={**environment, "PYTHONPATH": str(folder), **fault},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return process, log

    def finish(process, log):
        process.wait()
        log.seek(0)
        with log:
            return Attempt(process.returncode, log.read())

    undisturbed = start("undisturbed")
    disturbed = folder / "runs" / "disturbed"
    attempts, left = {}, {}
    for stage, pattern in [
        ("tokenize", r"/data-00002-of-00004\.arrow$"),
        ("train", r"/step-000008$"),
        ("generate", r"/00002\.wav$"),
        ("eval", r"/report\.html$"),
    ]:
        attempts[stage] = finish(*start("disturbed", FAULT="SIGKILL", FAULT_AT=pattern))
        left[stage] = {str(path.relative_to(disturbed)) for path in disturbed.rglob("*")}
    attempts["end"] = finish(*start("disturbed"))
    return Runs(
        folder / "runs" / "undisturbed", disturbed, finish(*undisturbed), attempts, recipe, folder, left
    )


def test_the_run_folder(runs):
    assert runs.first.code == 0, runs.first.text
    run = runs.undisturbed
    assert {path.name for path in run.iterdir()} == {
        ".stages", "recipe.yaml", "tokens", "checkpoints", "model", "samples", "eval", "logs"
    }  # fmt: skip
    assert {path.name for path in (run / "tokens").iterdir()} == {
        *(f"data-0000{i}-of-00004.arrow" for i in range(4)),
        "codec.json", "origin.json", "rejects.jsonl", "shards.json", "dataset_info.json", "state.json",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "step-000004", "step-000008", "step-000012"
    }  # fmt: skip
    assert {path.name for path in (run / "model").iterdir()} == {
        "model.safetensors", "config.json", "README.md"
    }  # fmt: skip
    assert {path.name for path in (run / "eval").iterdir()} == {"scores.json", "report.html"}
    logs = {path.name.split(".")[0] for path in (run / "logs").iterdir()}
    assert logs == {"train", "events"}
    wavs = {f"{i:05d}.wav" for i in range(4)}
    for samples in (run / "samples", run / "samples" / "untrained"):
        names = {path.name for path in samples.iterdir()} - {"untrained"}
        assert names == {*wavs, "samples.jsonl", "codes.safetensors"}
        lines = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
        assert {line["file"] for line in lines} == wavs
    info = soundfile.info(run / "samples" / "00000.wav")
    assert (info.samplerate, info.channels, info.frames) == (16000, 1, 8000)


def test_what_the_run_says(runs):
    text = runs.first.text
    headings = re.findall(r"^# (.*)\n.* -m (\S+) \S+ name=undisturbed$", text, flags=re.MULTILINE)
    assert headings == [
        ("tokenize", "tokkata.tokenize.encode"),
        ("train", "tokkata.lm.train"),
        ("generate", "tokkata.lm.sample"),
        ("eval", "tokkata.eval.score"),
    ]
    assert "24 clips encoded, none rejected" in text
    assert str(runs.undisturbed / "eval" / "report.html") in text
    # Nothing of what libraries say to themselves.
    assert "Warning" not in text
    assert "it/s" not in text


def test_the_scores_reach_the_report_and_the_model_card(runs):
    scores = json.loads((runs.undisturbed / "eval" / "scores.json").read_text())
    names = [row["name"] for row in scores["rows"]]
    assert names == ["real, other", "reconstructed", "generated", "untrained", "white noise"]
    assert "<audio" in (runs.undisturbed / "eval" / "report.html").read_text()
    card = (runs.undisturbed / "model" / "README.md").read_text()
    assert "Not evaluated yet" not in card
    for name in names:
        assert f"| {name} |" in card


@pytest.mark.parametrize("stage", ["tokenize", "train", "generate", "eval"])
def test_sigkill_hits_its_stage(runs, stage):
    attempt = runs.attempts[stage]
    assert attempt.code == -signal.SIGKILL, attempt.text
    assert re.findall("^# (.*)$", attempt.text, flags=re.MULTILINE)[-1].startswith(stage)
    left = runs.left[stage]
    absent = {
        "tokenize": "tokens/data-00002-of-00004.arrow",
        "train": "checkpoints/step-000008",
        "generate": "samples",
        "eval": "eval/report.html",
    }[stage]
    assert absent not in left
    present = {
        "tokenize": "tokens/data-00001-of-00004.arrow",
        "train": "checkpoints/step-000004",
        "generate": "model/model.safetensors",
        "eval": "eval/scores.json",
    }[stage]
    assert present in left


def test_the_same_command_goes_on(runs):
    assert "tokenize: goes on where it was interrupted" in runs.attempts["train"].text
    assert "# tokenize: already done" in runs.attempts["generate"].text
    assert "train: goes on where it was interrupted" in runs.attempts["generate"].text
    assert "generate: goes on where it was interrupted" in runs.attempts["eval"].text
    assert "eval: goes on where it was interrupted" in runs.attempts["end"].text
    assert runs.attempts["end"].code == 0, runs.attempts["end"].text


@pytest.mark.parametrize("folder", ["tokens", "samples"])
def test_killed_and_resumed_is_bitwise_undisturbed(runs, folder):
    assert files(runs.disturbed / folder) == files(runs.undisturbed / folder)


def test_the_model_is_bitwise_the_undisturbed_one(runs):
    for name in ("model.safetensors", "config.json"):
        assert (runs.disturbed / "model" / name).read_bytes() == (
            runs.undisturbed / "model" / name
        ).read_bytes()
    last = "checkpoints/step-000012/averaged.safetensors"
    assert (runs.disturbed / last).read_bytes() == (runs.undisturbed / last).read_bytes()


def test_scores_and_curves_are_the_undisturbed_ones(runs):
    def curve(run):
        rows = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.endswith(("time_s", "per_s", "mfu"))} for row in rows]

    assert curve(runs.disturbed) == curve(runs.undisturbed)
    scores, expected = (
        json.loads((run / "eval" / "scores.json").read_text()) for run in (runs.disturbed, runs.undisturbed)
    )
    assert scores == expected


def test_nothing_half_written_is_left(runs):
    for run in (runs.disturbed, runs.undisturbed):
        assert list(run.rglob(".partial-*")) == []

    def lasting(run):
        return {path for path in files(run) if not path.startswith("logs/events")}  # one a process

    assert lasting(runs.disturbed) == lasting(runs.undisturbed)


def test_the_same_command_again_does_nothing(runs, shell):
    before = {path: path.stat().st_mtime_ns for path in runs.undisturbed.rglob("*")}
    result = shell(runs.recipe, "name=undisturbed")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        *(f"# {stage}: already done" for stage in ("tokenize", "train", "generate", "eval")),
        f"report: {runs.undisturbed / 'eval' / 'report.html'}",
    ]
    assert {path: path.stat().st_mtime_ns for path in runs.undisturbed.rglob("*")} == before


def test_a_changed_setting_runs_again_what_it_decides(runs, shell, tokkata):
    """Runs last: it changes the undisturbed run."""
    run = runs.undisturbed
    before = {name: files(run / name) for name in ("tokens", "model", "samples", "eval")}
    changed = (runs.recipe, "name=undisturbed", "train.lr=0.01")
    fault = {"PYTHONPATH": str(runs.faults), "FAULT": "SIGTERM", "FAULT_AT": r"/step-000008$"}
    result = shell("tokkata", "run", *changed, "--stages", "tokenize", "train", **fault)
    why = "train.lr was 0.001 and is 0.01"
    assert f"# tokenize: already done\n# train: {why}\n" in result.stderr
    assert f"train: runs again, because {why}; what was there is kept in" in result.stderr
    # SIGTERM to the command lets the training save what it has.
    assert result.returncode == 143
    stopped = re.search(
        r"stopped at step (\d+) of 12 with a checkpoint; to resume, run the same", result.stderr
    )
    assert stopped is not None, result.stderr
    assert 8 <= int(stopped.group(1)) < 12
    assert (run / "checkpoints" / f"step-{int(stopped.group(1)):06d}").is_dir()
    assert not (run / "model").exists()
    result = tokkata("train", *changed)
    assert result.returncode == 0, result.stderr
    assert "train: goes on where it was interrupted" in result.stderr
    dry = shell("tokkata", "run", *changed, "--dry-run").stdout
    assert [line for line in dry.splitlines() if line.startswith("#")] == [
        "# tokenize: already done",
        "# train: already done",
        "# generate: the stage before it ran again",
        "# eval: generate runs again",
    ]
    for stage in ("generate", "eval"):
        result = tokkata(stage, *changed)
        assert result.returncode == 0, result.stderr
        assert f"{stage}: runs again, because the stage before it ran again" in result.stderr
    assert files(run / "tokens") == before["tokens"]
    for number, stage, folder in [(1, "train", "model"), (2, "generate", "samples"), (3, "eval", "eval")]:
        assert files(run / "old" / f"{number:03d}-{stage}" / folder) == before[folder]
        assert files(run / folder) != before[folder]
