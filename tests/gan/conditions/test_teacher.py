"""DarkGAN's teacher: that it learns, that soft labels are what they are said to be, and one from the hub."""

import json

import pytest
import torch

from tokkata.core.audio import resample
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.hub_classifier import load_hub_classifier
from tokkata.gan.conditions import teacher as module
from tokkata.gan.conditions.prepared import read_by_clip, soft_label_conditions
from tokkata.gan.conditions.teacher import (
    HubTeacher,
    TeacherConfig,
    TeacherNetwork,
    TrainedTeacher,
    prepare_teacher,
    soft_label_names,
    train_teacher,
)
from tokkata.tests.eval.made_classifier import RATE as HUB_RATE
from tokkata.tests.eval.made_classifier import save_classifier
from tokkata.tests.gan.made_notes import RATE, darkgan, store_of, write_notes

LABELS = ["organ", "pluck"]


def read(recipe):
    folder = recipe.folder / "teacher"
    about = json.loads((folder / "soft_labels.json").read_text())
    return read_by_clip(folder / "soft_labels.safetensors"), about


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = darkgan(tmp_path_factory.mktemp("runs"), {"steps": 40, "temperature": 2.0})
    write_notes(recipe, train=24, valid=12, test=2)
    prepare_teacher(recipe)
    return recipe


def test_it_knows_instruments_of_notes_that_it_has_not_heard(trained):
    rows = read_jsonl(trained.folder / "teacher" / "logs" / "train.jsonl")
    assert rows[-1]["valid/accuracy"] > 0.9  # by chance 0.5
    found, about = read(trained)
    assert about["names"] == LABELS
    assert not about["is_multi_label"]
    clips = store_of(trained).split("valid")
    heard = [LABELS[int(found[id].argmax())] for id in clips.column("id")]
    right = [one == family for one, family in zip(heard, clips.column("instrument_family"), strict=True)]
    assert sum(right) / len(right) == pytest.approx(rows[-1]["valid/accuracy"])
    assert len(found) == 38


def test_soft_labels_are_the_softmax_over_the_temperature(trained):
    found, _ = read(trained)
    network = TeacherNetwork.load(trained.folder / "teacher" / "model")
    split = store_of(trained).split("valid")
    for clip, id in enumerate(split.column("id")):
        logits = network(torch.from_numpy(split.latents(clip)))[0]
        torch.testing.assert_close(found[id], (logits / 2.0).softmax(0).detach(), atol=1e-4, rtol=1e-3)


def test_a_long_clip_is_heard_in_windows():
    torch.manual_seed(0)
    network = TeacherNetwork(TeacherConfig(("a", "b"), RATE, 512, 256, 64, 2000, 0.0, 1.0)).eval()
    teacher = TrainedTeacher(network, torch.device("cpu"))
    audio = torch.randn(3, 5000)
    parts = [network(audio[:, start : start + 2000]) for start in (0, 2000, 3000)]
    torch.testing.assert_close(teacher.logits(audio, RATE), torch.stack(parts).mean(0).detach())
    warm, hot = (teacher.soft_labels(audio, RATE, temperature) for temperature in (1.0, 100.0))
    assert hot.std() < warm.std()
    torch.testing.assert_close(warm.sum(1), torch.ones(3))


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_a_classifier_from_the_hub_needs_no_training(tmp_path, problem):
    saved = tmp_path / "classifier"
    save_classifier(saved)
    config = json.loads((saved / "config.json").read_text()) | {"problem_type": problem}
    (saved / "config.json").write_text(json.dumps(config))
    recipe = darkgan(tmp_path, {"source": str(saved), "temperature": 2.0})
    write_notes(recipe, train=3, valid=1)
    prepare_teacher(recipe)
    found, about = read(recipe)
    assert about["names"] == ["organ", "bass", "keys"]
    assert not (recipe.folder / "teacher" / "model").exists()
    classifier = load_hub_classifier(str(saved), device=torch.device("cpu"))
    split = store_of(recipe).split("train")
    for clip, id in enumerate(split.column("id")):
        heard = torch.from_numpy(resample(split.latents(clip), RATE, HUB_RATE))
        logits = classifier.logits(heard)[0] / 2.0
        expected = logits.sigmoid() if problem.startswith("multi") else logits.softmax(0)
        torch.testing.assert_close(found[id], expected, atol=1e-4, rtol=1e-3)
    assert HubTeacher(classifier).is_multi_label == problem.startswith("multi")


def test_training_that_was_killed_goes_on_bitwise(tmp_path, monkeypatch):
    networks = []
    for name, save_every in (("whole", 100), ("killed", 1)):
        recipe = darkgan(tmp_path / name, {"steps": 4}, save_every=save_every)
        write_notes(recipe, train=6)
        if name == "killed":
            drawn = []

            def read_until_killed(*arguments, read=module.read_audio, drawn=drawn):
                drawn.append(1)
                if len(drawn) == 5:  # examples, what is held out, and a batch a step
                    raise KeyboardInterrupt
                return read(*arguments)

            monkeypatch.setattr(module, "read_audio", read_until_killed)
            with pytest.raises(KeyboardInterrupt):
                train_teacher(recipe, store_of(recipe))
            monkeypatch.undo()
            assert (recipe.folder / "teacher" / "checkpoints" / "step-000002").exists()
        train_teacher(recipe, store_of(recipe))
        networks.append(TeacherNetwork.load(recipe.folder / "teacher" / "model").state_dict())
    for name, tensor in networks[0].items():
        assert torch.equal(networks[1][name], tensor), name


def test_names_do_not_collide_with_label_columns():
    names = soft_label_names(["organ", "pitch", "60", "-3"], "note", ["id", "pitch"])
    assert names == ["organ", "note pitch", "note 60", "note -3"]
    conditions = soft_label_conditions(names)
    assert [(one.name, one.kind, one.maximum) for one in conditions] == [(n, "number", 1.0) for n in names]


def test_a_label_with_one_value_teaches_nothing(tmp_path):
    recipe = darkgan(tmp_path, {})
    write_notes(recipe, train=1)
    with pytest.raises(UserError, match=r"model.teacher.label: 'instrument_family' has one value"):
        train_teacher(recipe, store_of(recipe))
    with pytest.raises(UserError, match="the tokens have no label 'genre'"):
        train_teacher(darkgan(tmp_path, {"label": "genre"}), store_of(recipe))
    with pytest.raises(UserError, match="holds no whole teacher"):
        TeacherNetwork.load(tmp_path)
