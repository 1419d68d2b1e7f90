"""Previews in training: what they are given, and that they disturb nothing."""

import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.errors import UserError
from tokkata.core.recipe import check_recipe
from tokkata.tests.core.toy_training import FSDP, Outcome, Toy, settings, start, train_toy

pytestmark = pytest.mark.usefixtures("on_the_cpu")

DROPOUT = Toy(dropout=0.3)


class PulledPlug(Exception):
    pass


def previews_in(folder):
    return sorted(path.name for path in (folder / "previews").iterdir())


def test_a_run_with_previews_is_one_without_bit_for_bit(tmp_path):
    """Resumed after a preview as well; what is previewed are the averaged weights."""

    def pull_plug(step):
        if step == 7:
            raise PulledPlug

    train_toy(tmp_path / "without", settings(save_every=6), DROPOUT)
    with pytest.raises(PulledPlug):
        train_toy(tmp_path / "with", settings(save_every=6, previews=1), DROPOUT, pull_plug)
    assert previews_in(tmp_path / "with") == ["step-000005"]
    train_toy(tmp_path / "with", settings(save_every=6, previews=1), DROPOUT)
    assert previews_in(tmp_path / "with") == ["step-000005", "step-000010"]
    assert not (tmp_path / "without" / "previews").exists()
    with_, without = Outcome(tmp_path / "with"), Outcome(tmp_path / "without")
    with_.assert_same(without)
    seen = load_file(tmp_path / "with" / "previews" / "step-000010" / "module.safetensors")
    torch.testing.assert_close(seen, without.averaged, rtol=0, atol=0)


def test_a_preview_that_fails_is_said_and_training_goes_on(tmp_path, capsys):
    def fail(module, folder):
        (folder / "half").touch()
        raise UserError("the clips are too long")

    train_toy(tmp_path, settings(previews=1), change=lambda job: setattr(job, "preview", fail))
    said = [line for line in capsys.readouterr().err.splitlines() if "previews" in line]
    assert said == [f"train: no previews of step {step}: the clips are too long" for step in (5, 10)]
    assert previews_in(tmp_path) == []
    assert Outcome(tmp_path).scores


def test_previews_of_a_job_that_has_none_are_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        train_toy(tmp_path, settings(previews=1), change=lambda job: setattr(job, "preview", None))
    assert str(caught.value) == "train.previews: this kind of model has none yet, so set it to 0"


def test_nothing_is_compiled_for_previews(tmp_path):
    """They have other shapes than crops."""
    numbers = []
    for previews in (0, 1):
        compiled = []

        def backend(graph, inputs, compiled=compiled):
            compiled.append(graph)
            return graph.forward

        torch.compiler.reset()
        config = settings(steps=6, previews=previews, compile=True)
        train_toy(tmp_path / str(previews), config, Toy(backend=backend))
        numbers.append(len(compiled))
    assert numbers[0] == numbers[1] > 0
    assert previews_in(tmp_path / "1")


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes(tmp_path, sharded):
    """One of them writes; with shards none can, which is said once."""
    toy, more = Toy(fsdp_on_cpu=sharded, previews=1), FSDP if sharded else {}
    ended = start(tmp_path / "two", 2, toy, more)
    assert ended.returncode == 0, ended.stderr
    train_toy(tmp_path / "one", settings(), Toy())
    folder = tmp_path / "two" / "toy"
    Outcome(folder).assert_close(Outcome(tmp_path / "one"))
    said = "train: no previews with FSDP, where no process has the whole model"
    assert ended.stderr.splitlines().count(said) == int(sharded)
    assert (folder / "previews").exists() == (not sharded)
    if not sharded:
        assert previews_in(folder) == ["step-000005", "step-000010"]


def test_a_codec_has_no_previews():
    values = {
        "name": "codec",
        "data": {"kind": "synth", "num_clips": 1},
        "model": {"kind": "dac"},
        "train": {"steps": 1, "previews": 4},
    }
    with pytest.raises(UserError) as caught:
        check_recipe(values)
    assert "train.previews are clips that a model makes up, and a 'dac' is a codec" in str(caught.value)
