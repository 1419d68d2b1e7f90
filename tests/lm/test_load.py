"""Language models and their codecs by name."""

import dataclasses
import json

import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.core.hub_cache import Snapshot
from tokkata.lm import load as module
from tokkata.lm.load import codec_of, load_lm
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm.tiny_lm import tiny
from tokkata.tokenize.codec import load_codec


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def same(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_a_folder_and_a_run_hold_the_same_model(folder):
    for source in (folder, folder.parent, str(folder)):
        lm = load_lm(source)
        assert isinstance(lm, TransformerLM)
        assert not lm.training
        assert same(lm, tiny())


def test_a_hub_id_is_looked_up_in_the_cache_first(folder, monkeypatch):
    asked = []

    def snapshot(id, revision, layouts, what):
        asked.append((id, revision, layouts))
        return Snapshot(folder, "abc")

    monkeypatch.setattr(module, "hub_snapshot", snapshot)
    assert same(load_lm("someone/notes", revision="v1"), tiny())
    assert asked == [
        ("someone/notes", "v1", [("config.json",)]),
        ("someone/notes", "v1", [("config.json", "model.safetensors")]),
    ]


@pytest.mark.parametrize("model_type", ["musicgen", "musicgen_melody", "musicgen_decoder"])
def test_a_musicgen_is_one_of_ours(tmp_path, monkeypatch, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    asked = []
    monkeypatch.setattr(
        TransformerLM, "from_musicgen", lambda source, revision: asked.append((source, revision)) or tiny()
    )
    assert same(load_lm(tmp_path), tiny())
    assert asked == [(str(tmp_path), None)]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"kind": "tranformer"}, "its config.json says kind 'tranformer', known are 'transformer'"),
        ({"model_type": "bert"}, "is no language model that is known here: its config.json says kind None"),
    ],
)
def test_other_models_are_refused(tmp_path, config, sentence):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        load_lm(tmp_path)


def test_no_model(tmp_path):
    with pytest.raises(
        UserError, match=r"holds no model: neither config.json nor model/config.json is there"
    ):
        load_lm(tmp_path)


def test_neither_a_folder_nor_on_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model someone/nothing is neither a folder nor in"):
        load_lm("someone/nothing")


# --- its codec


def over(codec):
    return TransformerLM(
        TransformerConfig.for_codec(dataclasses.asdict(codec.info), dim=8, num_layers=1, num_heads=1)
    )


def test_the_codec_is_the_one_that_the_configuration_describes(tiny_codec, tmp_path):
    codec = load_codec(str(tiny_codec), num_codebooks=3)
    over(codec).save_pretrained(tmp_path)
    found = codec_of(load_lm(tmp_path))
    assert found.info == codec.info
    codes = torch.randint(64, (1, 3, 10))
    assert torch.equal(found.decode(codes), codec.decode(codes))


def test_a_codec_that_is_not_pinned_is_taken_as_it_is(tiny_codec):
    lm = over(load_codec(str(tiny_codec)))
    lm.config = dataclasses.replace(lm.config, codec={**lm.config.codec, "revision": None})
    assert codec_of(lm).num_codebooks == 4


def test_a_codec_that_has_changed_is_refused(tiny_codec):
    lm = over(load_codec(str(tiny_codec)))
    lm.config = dataclasses.replace(lm.config, codec={**lm.config.codec, "revision": "000000000000"})
    with pytest.raises(UserError, match="as it is now: codec revision is"):
        codec_of(lm)


def test_a_model_that_does_not_describe_a_codec():
    lm = tiny()
    with pytest.raises(UserError, match=r"the codec in the model's config.json does not describe a codec"):
        codec_of(lm)
    lm.config = dataclasses.replace(lm.config, codec={})
    with pytest.raises(UserError, match="does not say which codec its tokens are of"):
        codec_of(lm)
