"""The command `tokkata`: what it prints, what it starts, and the sentence and exit code of each mistake."""

import json
import shlex
import signal
import sys

import pytest

from tokkata.core.recipe import load_recipe
from tokkata.core.run import stage_states

PROGRAMS = {
    "tokenize": "tokkata.tokenize.encode",
    "train": "tokkata.lm.train",
    "generate": "tokkata.lm.sample",
    "eval": "tokkata.eval.score",
}


@pytest.fixture
def recipe(tmp_path, write_recipe):
    return write_recipe(tmp_path)


def pretend_done(path, *stages):
    """Leave the markers of finished stages in the run folder."""
    recipe = load_recipe(path)
    for name in stages:
        record = next(state.record for state in stage_states(recipe) if state.stage.name == name)
        marker = recipe.folder / ".stages" / f"{name}.json"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"status": "done", "seconds": 1.0, "record": record}))


def started(text):
    """The commands among printed lines, each as the stage that its program is."""
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    return [name for line in lines for name, module in PROGRAMS.items() if module in line]


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run", "tokenize", "train", "generate", "eval", "codec"]),
        (["run"], ["RECIPE", "KEY=VALUE", "--stages", "--dry-run", "--launcher", "resumes"]),
        (["tokenize"], ["RECIPE", "KEY=VALUE"]),
        (["train"], ["RECIPE", "KEY=VALUE"]),
        (["generate"], ["RECIPE", "KEY=VALUE"]),
        (["interpolate"], ["MODEL", "--from", "--to", "--steps", "--pitch", "--out"]),
        (["eval"], ["RECIPE", "KEY=VALUE"]),
        (["codec"], ["train", "eval"]),
        (["codec", "train"], ["RECIPE", "KEY=VALUE"]),
        (["codec", "eval"], ["CODEC", "RECIPE", "KEY=VALUE", "--data", "Opus"]),
    ],
)
def test_help(tokkata, arguments, words):
    result = tokkata(*arguments, "--help")
    assert result.returncode == 0
    for word in words:
        assert word in result.stdout


def test_the_command_is_installed_and_starts_without_torch(shell):
    assert shell("tokkata", "--help").stdout.strip().startswith("Usage: tokkata")
    loaded = shell(sys.executable, "-c", "import sys, tokkata.cli; print(*sys.modules)").stdout.split()
    assert "tokkata.core.run" in loaded
    assert not {"torch", "transformers", "datasets"} & set(loaded)


# --------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_prints_the_commands_and_writes_nothing(tokkata, recipe, tmp_path):
    result = tokkata("run", recipe, "train.steps=3", "--dry-run")
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        line
        for name, module in PROGRAMS.items()
        for line in (f"# {name}", f"{sys.executable} -m {module} {recipe} train.steps=3")
    ]
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_dry_run_can_be_pasted_into_a_shell(tokkata, tmp_path, write_recipe):
    folder = tmp_path / "my music"
    folder.mkdir()
    path = write_recipe(folder)
    lines = tokkata("run", path, "data.kind=synth", "--dry-run").stdout.splitlines()
    assert shlex.split(lines[1], comments=True)[2:] == [
        "tokkata.tokenize.encode",
        str(path),
        "data.kind=synth",
    ]
    assert shlex.split(lines[0], comments=True) == []


def test_what_is_done_is_skipped_and_what_changed_says_why(tokkata, recipe):
    pretend_done(recipe, *PROGRAMS)
    result = tokkata("run", recipe)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [f"# {name}: already done" for name in PROGRAMS]

    lines = tokkata("run", recipe, "train.lr=0.5", "--dry-run").stdout.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# tokenize: already done",
        "# train: train.lr was 0.001 and is 0.5",
        "# generate: train runs again",
        "# eval: generate runs again",
    ]
    assert started("\n".join(lines)) == ["train", "generate", "eval"]
    # How often it logs decides nothing.
    assert started(tokkata("run", recipe, "train.log_every=1", "--dry-run").stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--stages", "tokenize,train"],
        ["--stages", "tokenize", "train"],
        ["--stages", "train", "--stages", "tokenize"],
        ["--stages", "train,tokenize", "train.lr=0.1"],
    ],
)
def test_stages_can_be_named_in_each_way(tokkata, recipe, words):
    assert started(tokkata("run", recipe, *words, "--dry-run").stdout) == ["tokenize", "train"]


def test_a_recipe_is_a_program(shell, recipe):
    result = shell(recipe, "--stages", "tokenize", "train", "train.steps=3", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert started(result.stdout) == ["tokenize", "train"]
    assert f"{recipe} train.steps=3" in result.stdout


def test_the_launcher_starts_training_alone(tokkata, recipe):
    result = tokkata("run", recipe, "--launcher", "torchrun --nproc_per_node 2", "--dry-run")
    commands = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    assert commands[1] == f"torchrun --nproc_per_node 2 -m tokkata.lm.train {recipe}"
    assert [command.split()[0] == sys.executable for command in commands] == [True, False, True, True]


# -------------------------------------------------------------------------------------------- mistakes


def sentences(result):
    """The lines that a user's mistake has ended in."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()


def test_each_fault_of_a_recipe_is_one_sentence(tokkata, recipe):
    changes = ["train.warmpu_steps=3", "train.lr=fast", "data.num_clips=0", "codec.kind=dca"]
    assert sorted(sentences(tokkata("run", recipe, *changes))) == [
        "'codec.kind' cannot be 'dca', did you mean 'dac'?",
        "'data.num_clips' cannot be 0: a number above 0 is expected",
        "'train.lr' cannot be 'fast': a number is expected",
        "unknown key 'train.warmpu_steps', did you mean 'train.warmup_steps'?",
    ]


def test_the_same_sentence_from_the_installed_command(shell, recipe):
    result = shell("tokkata", "run", recipe, "train.lr=fast")
    assert sentences(result) == ["'train.lr' cannot be 'fast': a number is expected"]


def test_a_missing_recipe(tokkata, tmp_path):
    (line,) = sentences(tokkata("run", tmp_path / "none.yaml"))
    assert line == f"recipe {tmp_path / 'none.yaml'} cannot be read: no such file or directory"


def test_an_unknown_stage(tokkata, recipe):
    for words in (["--stages", "tokenise"], ["--stages", "tokenize", "tokenise"]):
        (line,) = sentences(tokkata("run", recipe, *words))
        assert line == "no stage 'tokenise': this recipe has tokenize, train, generate, eval"


def test_a_name_without_a_value_is_no_setting(tokkata, recipe):
    (line,) = sentences(tokkata("run", recipe, "tokenize"))
    assert line == "'tokenize' is not an override: write key=value, such as train.steps=200"


def test_an_unknown_option(tokkata, recipe):
    result = tokkata("run", recipe, "--stage", "train")
    assert result.returncode == 2
    assert "--stages" in result.stderr


def test_training_needs_tokens(tokkata, recipe):
    (line,) = sentences(tokkata("train", recipe))
    assert line == "train needs the output of tokenize, which has not run yet: run that first"


def test_what_a_recipe_does_not_prepare(tokkata, recipe):
    (line,) = sentences(tokkata("prepare", recipe))
    assert line.startswith("a run with model 'transformer' has no stage 'prepare'")


def test_preparing_needs_tokens(tokkata, tmp_path, write_recipe):
    path = write_recipe(
        tmp_path,
        model={"kind": "darkgan"},
        codec={"kind": "linear", "sample_rate_hz": 16000},
        tokenize={"store": "latents"},
    )
    (line,) = sentences(tokkata("prepare", path))
    assert line == "prepare needs the output of tokenize, which has not run yet: run that first"


@pytest.mark.parametrize("stage", ["generate", "eval"])
def test_each_stage_names_the_one_that_it_needs(tokkata, recipe, stage):
    (line,) = sentences(tokkata(stage, recipe))
    needed = {"generate": "train", "eval": "generate"}[stage]
    assert line.startswith(f"{stage} needs the output of {needed}, which has not run yet")


def test_a_codec_is_not_sampled(tokkata, tmp_path, write_recipe, tiny_dac):
    path = write_recipe(tmp_path, model=tiny_dac, codec=None)
    (line,) = sentences(tokkata("generate", path))
    assert line == "a run with model 'dac' has no stage 'generate'"


# ----------------------------------------------------------------------------------- processes of stages


def run_training_as(shell, recipe, program):
    """`tokkata run --stages train` with a Python `program` in the place of the training."""
    launcher = shlex.join([sys.executable, "-c", program])
    return shell("tokkata", "run", recipe, "--stages", "train", "--launcher", launcher)


def test_a_failed_stage_ends_the_run_with_its_exit_code(shell, recipe):
    result = run_training_as(shell, recipe, "import sys; print(sys.argv[1:]); sys.exit(5)")
    assert result.returncode == 5
    assert result.stdout.strip() == str(["-m", "tokkata.lm.train", str(recipe)])


def test_a_killed_stage_is_told(shell, recipe):
    result = run_training_as(shell, recipe, "import os; os.kill(os.getpid(), 9)")
    assert result.returncode == 128 + signal.SIGKILL
    assert result.stderr.splitlines()[-1] == (
        "train: ended by SIGKILL; to resume, run the same command again"
    )


def test_sigterm_is_passed_on(shell, recipe):
    program = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(143)))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    result = run_training_as(shell, recipe, program)
    assert (result.returncode, result.stdout) == (143, "saved\n")


def test_an_interrupted_run_waits_for_its_stage(shell, recipe):
    program = """
import os, signal, time
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.3)
print("saved")
"""
    result = run_training_as(shell, recipe, program)
    assert (result.returncode, result.stdout) == (130, "saved\n")
    assert "Traceback" not in result.stderr


def test_a_launcher_that_is_not_there(tokkata, recipe):
    result = tokkata("run", recipe, "--stages", "train", "--launcher", "accelerato launch")
    assert sentences(result)[-1] == "'accelerato' cannot be started: No such file or directory"
