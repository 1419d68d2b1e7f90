"""Classifiers, on tiny random models in the hub's layout, against transformers' own."""

import json

import numpy as np
import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.eval import classifier as module
from tokkata.eval.classifier import load_classifier
from tokkata.tests.eval.made_classifier import RATE, save_classifier


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "classifier"
    return folder, save_classifier(folder)


def test_probabilities_are_the_softmax_of_transformers_logits(saved):
    folder, model = saved
    classifier = load_classifier(str(folder), device="cpu")
    assert classifier.labels == ("organ", "bass", "keys")
    assert (classifier.info.width, classifier.info.sample_rate) == (3, RATE)
    audio = 0.3 * torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0))
    found = classifier.embed(audio)
    with torch.no_grad():
        expected = torch.softmax(model(input_values=audio[:, 0]).logits, dim=-1)
    assert found.shape == (2, 1, 3)
    torch.testing.assert_close(found[:, 0], expected)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_long_clip_is_cut_into_windows_that_cover_it(saved, monkeypatch):
    folder, _ = saved
    monkeypatch.setattr(module, "WINDOW_S", 1.0)
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", 2)
    classifier = load_classifier(str(folder), device="cpu")
    audio = torch.randn(2, 1, 2 * RATE + 100, generator=torch.Generator().manual_seed(0))
    found = classifier.embed(audio)
    assert found.shape == (2, 3, 3) == (2, classifier.frames(2 * RATE + 100), 3)
    alone = torch.cat([classifier.embed(audio[..., s : s + RATE]) for s in (0, RATE, RATE + 100)], dim=1)
    torch.testing.assert_close(found, alone)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)


def test_what_is_no_classifier_is_refused(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(UserError, match=r"not a model in the hub's layout, it lacks config\.json"):
        load_classifier(str(tmp_path))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    with pytest.raises(UserError, match="of type 'clip', which transformers has no audio classifier for"):
        load_classifier(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"classifier_proj_size": 9}))
    with pytest.raises(UserError, match=r"classifier .* do not fit its config.json; of another shape"):
        load_classifier(str(tmp_path))
