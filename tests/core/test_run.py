"""The run folder: what runs, what is skipped, what runs again and why, and that nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from tokkata.core.errors import UserError
from tokkata.core.recipe import check_recipe, load_recipe
from tokkata.core.run import deciding_settings, run_stage, stage_states
from tokkata.core.stages import stages_of

DAC = {"kind": "dac", "id": "x/y", "num_codebooks": 2}
STAGES = ["tokenize", "train", "generate", "eval"]


class Run:
    """A run whose stages write one file each into their outputs."""

    def __init__(self, tmp_path):
        self.values = {
            "name": "tiny",
            "runs_dir": str(tmp_path / "runs"),
            "data": {"kind": "folder", "root": str(tmp_path / "audio")},
            "codec": {"kind": "pocket"},
            "model": {"kind": "transformer", "dim": 32, "num_heads": 2},
            "train": {"steps": 10},
        }
        self.folder = tmp_path / "runs" / "tiny"
        self.audio = tmp_path / "audio"
        self.audio.mkdir()
        (self.audio / "a.wav").write_bytes(b"aaaa")
        self.worked: list[str] = []

    def set(self, key, value):
        section, _, name = key.rpartition(".")
        (self.values.setdefault(section, {}) if section else self.values)[name] = value

    @property
    def recipe(self):
        return check_recipe(self.values)

    def work(self, name, meanwhile=lambda: None):
        stage = next(stage for stage in stages_of(self.recipe) if stage.name == name)

        def write(recipe):
            self.worked.append(name)
            for output in stage.outputs:
                (recipe.folder / output).mkdir(parents=True, exist_ok=True)
                (recipe.folder / output / "part.txt").write_text(str(len(self.worked)))
            meanwhile()

        run_stage(self.recipe, name, write)

    def work_all(self):
        """Run all stages; returns those whose work was done."""
        self.worked.clear()
        for name in STAGES:
            self.work(name)
        return list(self.worked)

    def states(self):
        return {state.stage.name: (state.state, state.why) for state in stage_states(self.recipe)}

    def written(self, output):
        return (self.folder / output / "part.txt").read_text()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def done(run):
    assert run.work_all() == STAGES
    return run


def test_a_new_run(run):
    assert run.states() == dict.fromkeys(STAGES, ("new", ""))
    assert not run.folder.exists(), "looking at a run writes nothing"


def test_what_is_done_is_skipped(done, capsys):
    assert done.states() == dict.fromkeys(STAGES, ("done", ""))
    capsys.readouterr()
    assert done.work_all() == []
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: already done in {done.folder}" for name in STAGES
    ]


def test_the_resolved_recipe_is_kept(done):
    assert load_recipe(done.folder / "recipe.yaml") == done.recipe


def test_an_interrupted_stage_goes_on(run, capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.work("tokenize", interrupt)
    assert run.states()["tokenize"] == ("unfinished", "was interrupted")
    capsys.readouterr()
    run.work("tokenize")
    assert capsys.readouterr().err == "tokenize: goes on where it was interrupted\n"
    assert run.states()["tokenize"] == ("done", "")
    assert not (run.folder / "old").exists(), "what an interrupted stage wrote stays in place"


def test_a_killed_stage_goes_on(run):
    """The same with a process that has no time to say goodbye."""
    script = (
        "import json, os, signal, sys\n"
        "from tokkata.core.recipe import check_recipe\n"
        "from tokkata.core.run import run_stage\n"
        "recipe = check_recipe(json.loads(sys.argv[1]))\n"
        "run_stage(recipe, 'tokenize', lambda recipe: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, json.dumps(run.values)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert run.states()["tokenize"] == ("unfinished", "was interrupted")


@pytest.mark.parametrize(
    ("key", "value", "reruns", "why"),
    [
        ("data.valid_fraction", 0.2, STAGES, "data.valid_fraction was 0.1 and is 0.2"),
        ("tokenize.shard_clips", 3, STAGES, "tokenize.shard_clips was 256 and is 3"),
        ("codec", DAC, STAGES, 'codec.kind was "pocket" and is "dac"'),
        ("model.dim", 64, STAGES[1:], "model.dim was 32 and is 64"),
        ("train.betas", [0.8, 0.9], STAGES[1:], "train.betas was [0.9, 0.95] and is [0.8, 0.9]"),
        ("generate.top_p", 0.9, STAGES[2:], "generate.top_p was null and is 0.9"),
        ("eval.seed", 1, STAGES[3:], "eval.seed was 0 and is 1"),
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it(done, key, value, reruns, why, capsys):
    done.set(key, value)
    states = done.states()
    assert [name for name in STAGES if states[name][0] == "outdated"] == reruns
    assert [name for name in STAGES if states[name] == ("done", "")] == STAGES[: -len(reruns)]
    assert states[reruns[0]][1].startswith(why)
    for name, before in zip(reruns[1:], reruns[:-1], strict=True):
        assert states[name][1] == f"{before} runs again"
    capsys.readouterr()
    assert done.work_all() == reruns
    assert f"{reruns[0]}: runs again, because {why}" in capsys.readouterr().err
    assert done.states() == dict.fromkeys(STAGES, ("done", ""))


def test_every_change_is_told(done):
    done.set("train.steps", 20)
    done.set("model.dim", 64)
    assert done.states()["train"][1] == "model.dim was 32 and is 64; train.steps was 10 and is 20"


def test_changing_back_after_a_rerun_runs_again(done):
    done.set("train.steps", 20)
    done.work_all()
    done.set("train.steps", 10)
    assert done.states()["train"] == ("outdated", "train.steps was 20 and is 10")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.log_every", 1),
        ("train.validate_every", 3),
        ("train.save_every", 7),
        ("train.keep_checkpoints", 9),
    ],
)
def test_operational_settings_rerun_nothing(done, key, value):
    done.set(key, value)
    assert done.work_all() == []


def test_a_moved_run_is_still_done(done, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    done.set("runs_dir", str(tmp_path / "elsewhere"))
    assert done.work_all() == []


def test_deciding_settings_are_flat_and_without_operational_ones(run):
    tokenize, train, *_ = stages_of(run.recipe)
    assert deciding_settings(run.recipe, tokenize)["codec.kind"] == "pocket"
    settings = deciding_settings(run.recipe, train)
    assert settings["train.betas"] == [0.9, 0.95]
    assert "train.log_every" not in settings
    assert {key.partition(".")[0] for key in settings} == {"model", "train"}


# --- files that a stage reads


@pytest.mark.parametrize("change", ["add", "rewrite", "delete"])
def test_changed_audio_is_tokenized_again(done, change, capsys):
    match change:
        case "add":
            (done.audio / "deep" / "er").mkdir(parents=True)
            (done.audio / "deep" / "er" / "b.wav").write_bytes(b"b")
        case "rewrite":
            # Of the same length: only the time of change tells.
            before = (done.audio / "a.wav").stat()
            (done.audio / "a.wav").write_bytes(b"bbbb")
            os.utime(done.audio / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        case "delete":
            (done.audio / "a.wav").unlink()
    assert done.states()["tokenize"] == ("outdated", f"the files in {done.audio} have changed")
    capsys.readouterr()
    assert done.work_all() == STAGES
    assert f"because the files in {done.audio} have changed" in capsys.readouterr().err


def test_audio_that_changes_while_it_is_read_is_read_again(run):
    run.work("tokenize", meanwhile=lambda: (run.audio / "late.wav").write_bytes(b"b"))
    assert run.states()["tokenize"] == ("outdated", f"the files in {run.audio} have changed")


def test_tokens_outlive_the_audio(done):
    (done.audio / "a.wav").unlink()
    done.audio.rmdir()
    done.set("train.steps", 20)
    assert done.work_all() == STAGES[1:]


# --- nothing is lost


def test_outdated_outputs_are_moved_never_deleted(done, capsys):
    first = done.written("model")
    assert done.written("checkpoints") == done.written("logs") == first
    done.set("train.steps", 20)
    capsys.readouterr()
    done.work("train")
    kept = done.folder / "old" / "001-train"
    assert f"; what was there is kept in {kept}" in capsys.readouterr().err
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoints", "logs", "model", "previews"]
    assert (kept / "model" / "part.txt").read_text() == first
    assert done.written("model") != first
    done.work("generate")
    done.set("train.steps", 30)
    done.work("train")
    assert sorted(path.name for path in (done.folder / "old").iterdir()) == [
        "001-train",
        "002-generate",
        "003-train",
    ]


def test_other_things_in_old_do_not_matter(done):
    (done.folder / "old" / "my-notes").mkdir(parents=True)
    (done.folder / "old" / "041-train").mkdir()
    done.set("train.steps", 20)
    done.work("train")
    assert (done.folder / "old" / "042-train" / "model").is_dir()


def test_what_lies_where_a_new_stage_writes_is_kept(run, capsys):
    (run.folder / "tokens").mkdir(parents=True)
    (run.folder / "tokens" / "part.txt").write_text("precious")
    run.work("tokenize")
    kept = run.folder / "old" / "001-tokenize"
    assert (kept / "tokens" / "part.txt").read_text() == "precious"
    assert str(kept) in capsys.readouterr().err


# --- refusals


def test_a_stage_needs_the_one_before(run):
    with pytest.raises(UserError) as caught:
        run.work("train")
    assert str(caught.value) == ("train needs the output of tokenize, which has not run yet: run that first")
    assert run.worked == []
    assert not run.folder.exists()


def test_a_stage_needs_the_one_before_to_be_finished(run):
    with pytest.raises(ZeroDivisionError):
        run.work("tokenize", lambda: 1 // 0)
    with pytest.raises(UserError, match="needs the output of tokenize, which has not finished"):
        run.work("train")


def test_a_stage_needs_the_one_before_with_these_settings(done):
    done.set("data.valid_fraction", 0.2)
    done.worked.clear()
    with pytest.raises(UserError) as caught:
        done.work("train")
    assert str(caught.value) == (
        "train needs the output of tokenize, which is outdated"
        " (data.valid_fraction was 0.1 and is 0.2): run that first"
    )
    assert done.worked == []
    assert not (done.folder / "old").exists()


def test_an_unknown_stage(run):
    with pytest.raises(UserError) as caught:
        run_stage(run.recipe, "prepare", lambda recipe: None)
    assert str(caught.value) == (
        "a run with model 'transformer' has no stage 'prepare', only tokenize, train, generate, eval"
    )


# --- many processes


def test_only_the_first_process_writes(run, monkeypatch, capsys):
    """The others work while it does, and neither archive nor mark anything."""

    def second():
        before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
        capsys.readouterr()
        monkeypatch.setenv("RANK", "1")
        run_stage(run.recipe, "tokenize", lambda recipe: run.worked.append("second"))
        monkeypatch.setenv("RANK", "0")
        assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
        assert capsys.readouterr().err == ""

    run.work("tokenize", meanwhile=second)
    assert run.worked == ["tokenize", "second"]


def test_the_others_wait_until_the_first_has_moved_away_what_is_outdated(done, monkeypatch):
    """A second process that comes first must not write into a folder that is about to be moved."""
    done.set("tokenize.shard_clips", 3)
    done.worked.clear()

    def first_begins(_):
        monkeypatch.setattr("tokkata.core.run.time.sleep", lambda _: pytest.fail("waited on"))
        monkeypatch.setenv("RANK", "0")
        assert not (done.folder / "old").exists()
        with pytest.raises(KeyboardInterrupt):
            done.work("tokenize", meanwhile=interrupt)
        assert (done.folder / "old" / "001-tokenize" / "tokens").is_dir()
        monkeypatch.setenv("RANK", "1")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("tokkata.core.run.time.sleep", first_begins)
    monkeypatch.setenv("RANK", "1")
    run_stage(done.recipe, "tokenize", lambda recipe: done.worked.append("second"))
    assert done.worked == ["tokenize", "second"]


def test_a_first_process_that_never_begins(done, monkeypatch):
    done.set("tokenize.shard_clips", 3)
    monkeypatch.setattr("tokkata.core.run._PATIENCE_S", 0.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError) as caught:
        done.work("tokenize")
    assert str(caught.value) == (
        "tokenize: the first of the 4 processes has not begun within 0 s with what process 2 finds in"
        f" {done.folder} (tokenize.shard_clips was 256 and is 3): all machines must see the same files, with"
        " the same times of change, in a shared folder"
    )


# --- a full disk


def test_a_full_disk_is_one_sentence(run):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError) as caught:
        run.work("tokenize", meanwhile=full)
    assert str(caught.value) == (
        f"tokenize: the disk of {run.folder} is full: free some space; the same command then goes on"
    )
    assert run.states()["tokenize"] == ("unfinished", "was interrupted")


def test_other_faults_of_the_disk_are_not_called_full(run):
    def broken():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run.work("tokenize", meanwhile=broken)
