"""What all families share: the configuration, and models as files."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokkata.core.conditions import Conditions
from tokkata.core.errors import UserError
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm.tiny_lm import CODEC, EVERYTHING, LABELS, STYLES, K, V, random_codes, shifted, tiny

GIVEN = LABELS.encode({"pitch": [60, 62, 64, None], "form": ["chord", "note", "chord", None]})


def test_a_saved_model_loads_bit_for_bit(tmp_path: Path) -> None:
    lm = tiny()
    lm.save_pretrained(tmp_path / "model")
    loaded = TransformerLM.from_pretrained(tmp_path / "model")
    assert loaded.config == lm.config
    assert loaded.config.conditions == LABELS
    assert loaded.config.codec == CODEC
    assert not loaded.training
    _, inputs = shifted(lm, random_codes())
    assert torch.equal(loaded.logits(inputs, GIVEN), lm.logits(inputs, GIVEN))
    copy.deepcopy(lm).save_pretrained(tmp_path / "copy")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_saving_keeps_a_model_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    tiny().save_pretrained(tmp_path / "new")
    assert "conditions: pitch, form" in (tmp_path / "new" / "README.md").read_text()


def test_weights_load_strictly(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["blocks.0.attention.query.weight"] = weights.pop("blocks.0.attention.qkv.weight")
    weights["norm.weight"] = torch.ones(17)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        TransformerLM.from_pretrained(tmp_path)
    assert "missing: blocks.0.attention.qkv.weight;" in str(caught.value)
    assert "unexpected: blocks.0.attention.query.weight;" in str(caught.value)
    assert "of another shape: norm.weight" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folders_without_a_whole_model_are_refused(tmp_path: Path, name: str) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{name} is (not JSON|damaged)"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"holds no model: {name} is missing"):
        TransformerLM.from_pretrained(tmp_path)


def test_a_path_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="no model at 'runs/no/model': it is neither a folder here"):
        TransformerLM.from_pretrained("runs/no/model")
    with pytest.raises(UserError, match="no model at 'nobody/nothing'"):
        TransformerLM.from_pretrained("nobody/nothing", local_files_only=True)


def test_settings_of_something_else_are_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["hidden_size"] = values.pop("codebook_size")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"unknown settings \['hidden_size'\].*missing.*'codebook_size'"):
        TransformerLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_a_configuration_survives_json(style: str) -> None:
    feature = {"name": "text", "dim": 6, "encoder": "t5-base"}
    text = dataclasses.replace(EVERYTHING["text"], feature=feature)
    config = TransformerConfig.for_codec(
        CODEC, Conditions((*LABELS, text)), delays=(0, 2, 1), window_frames=500, num_heads=2, **STYLES[style]
    )
    written = json.loads(json.dumps(config.to_dict()))
    assert written["kind"] == "transformer"
    found = TransformerConfig.from_dict(written)
    assert found == config
    assert found.conditions["text"].feature == feature
    assert found.make_pattern() == config.make_pattern()


@pytest.mark.parametrize("name", ["num_codebooks", "codebook_size", "frame_rate"])
def test_a_codec_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    tiny().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["codec"][name] += 1
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"{name} is \S+ for the model but \S+ for its codec"):
        TransformerLM.from_pretrained(tmp_path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="must be a multiple of 2"):
        TransformerConfig.for_codec(CODEC, dim=18, num_layers=1, num_heads=2)
    with pytest.raises(UserError, match="codebook_size is 12 for the model but 11 for its codec"):
        TransformerConfig(num_codebooks=K, codebook_size=12, frame_rate=50.0, delays=(0, 1, 2), codec=CODEC)
    with pytest.raises(UserError, match="must be 3 numbers"):
        TransformerConfig(num_codebooks=K, codebook_size=V, frame_rate=50.0, delays=(0, 1))
    with pytest.raises(UserError, match="num_heads 4 must be a multiple of num_kv_heads 3"):
        TransformerConfig.for_codec(CODEC, num_heads=4, num_kv_heads=3)
    with pytest.raises(UserError, match="pattern and delays of the model: only the pattern 'delay' has del"):
        TransformerConfig.for_codec(CODEC, pattern="flatten", delays=(0, 1, 2))
    with pytest.raises(UserError, match="pattern and delays of the model: delays must be at least 0, the"):
        TransformerConfig.for_codec(CODEC, delays=(1, 2, 3))
