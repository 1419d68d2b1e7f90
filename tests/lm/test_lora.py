"""Adapters: what is trained, what is saved, and that peft agrees."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tokkata.core.schema_models import Lora
from tokkata.lm.lora import add_adapters, merged, save_adapters
from tokkata.lm.sample import sample
from tokkata.lm.train import train_lm
from tokkata.lm.transformer import TransformerLM
from tokkata.tests.lm.test_finetune import config, recipe_from, source  # noqa: F401  # a fixture
from tokkata.tests.lm.tiny_lm import EVERYTHING, MUSICGEN, tiny

STYLES = {"modern": {"num_kv_heads": 1}, "musicgen": MUSICGEN}


def adapted(style="musicgen", **settings):
    """A model, and the same with adapters that are not zero any more."""
    lm, same = tiny(EVERYTHING, **STYLES[style]), tiny(EVERYTHING, **STYLES[style])
    add_adapters(lm, Lora(**settings), "the source")
    for name, parameter in lm.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return same, lm.eval()


def logits(lm):
    torch.manual_seed(3)
    num_codebooks, size = lm.config.num_codebooks, lm.config.codebook_size
    with torch.no_grad():
        return lm.logits(torch.randint(0, size, (2, num_codebooks, 9)))


@pytest.mark.parametrize("style", STYLES)
def test_training_begins_from_the_very_model(style):
    lm, same = tiny(EVERYTHING, **STYLES[style]), tiny(EVERYTHING, **STYLES[style])
    add_adapters(lm, Lora(rank=2), "the source")
    assert torch.equal(logits(lm), logits(same))


@pytest.mark.parametrize("targets", [["qkv"], ["query", "key_value"], ["qkv", "out", "up", "down"]])
def test_only_adapters_are_trained(targets):
    _, lm = adapted(rank=3, targets=targets)
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    pattern = rf"blocks\.\d\.\w+\.({'|'.join(targets)})\.lora_[AB]\.default\.weight"
    assert all(re.fullmatch(pattern, name) for name in trained)
    names = tiny(EVERYTHING).state_dict()
    num_matrices = sum(bool(re.search(rf"blocks.*\.({'|'.join(targets)})\.", name)) for name in names)
    assert len(trained) == 2 * num_matrices
    assert {p.shape[0] for n, p in lm.named_parameters() if ".lora_A." in n} == {3}
    loss = lm(torch.randint(0, 11, (2, 3, 6)))
    loss.mean.backward()
    assert {name for name, p in lm.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("style", STYLES)
def test_merged_is_the_same_function(style):
    same, lm = adapted(style, rank=2, alpha=6)
    whole = merged(lm)
    assert (logits(whole) - logits(same)).abs().max() > 0.05
    torch.testing.assert_close(logits(whole), logits(lm), rtol=0, atol=1e-4)
    assert whole.state_dict().keys() == same.state_dict().keys()
    block, adapter = same.blocks[1].attention.qkv, lm.blocks[1].attention.qkv
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    torch.testing.assert_close(whole.blocks[1].attention.qkv.weight, block.weight + 6 / 2 * b @ a)
    torch.testing.assert_close(adapter.base_layer.weight, block.weight, rtol=0, atol=0)


def test_peft_loads_what_is_saved(tmp_path):
    same, lm = adapted(rank=2)
    save_adapters(lm, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "the source"
    with_peft = PeftModel.from_pretrained(same, tmp_path / "adapter")
    torch.testing.assert_close(logits(with_peft), logits(lm), rtol=0, atol=0)


def test_a_whole_run(source, tmp_path, write_tokens):  # noqa: F811
    recipe = recipe_from(tmp_path, {"lora": {"rank": 2}}, save_every=2, ema_decay=0.5)
    write_tokens(recipe, train=8, valid=2)
    train_lm(recipe)
    model = recipe.folder / "model"
    tuned = TransformerLM.from_pretrained(model)
    assert tuned.config.conditions["pitch"].values == (61, 62, 60, 63)
    before, after = source.state_dict(), tuned.state_dict()
    moved = {name for name in before if name != "conditioner.table.weight"
             and not torch.equal(before[name], after[name])}  # fmt: skip
    assert moved == {name for name in before if re.search(r"\.(qkv|out|up|down)\.weight", name)}

    # What peft makes of the source and the saved adapters is the saved model.
    tuned_by_peft = PeftModel.from_pretrained(_source_with_all_pitches(source, tuned), model / "adapter")
    torch.testing.assert_close(logits(tuned_by_peft), logits(tuned), rtol=0, atol=1e-5)

    checkpoint = recipe.folder / "checkpoints" / "step-000003"
    averaged = load_file(checkpoint / "averaged.safetensors")
    assert all(".lora_" in name for name in averaged)
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    num_trained = sum(t.numel() for t in averaged.values())
    num_kept = sum(t.numel() for one in state.values() for name, t in one.items() if name != "step")
    assert num_kept == 2 * num_trained


def test_previews_are_of_the_merged_model(source, tmp_path, write_tokens, told_codec):  # noqa: F811
    recipe = recipe_from(tmp_path, {"lora": {"rank": 2}}, previews=2)
    write_tokens(recipe, train=8, valid=2, test=4)
    train_lm(recipe)
    sample(recipe)
    (folder,) = (recipe.folder / "previews").iterdir()
    for name in ("00000.wav", "00001.wav"):
        assert (folder / name).read_bytes() == (recipe.folder / "samples" / name).read_bytes()


def _source_with_all_pitches(source, tuned):  # noqa: F811
    whole = TransformerLM(tuned.config).eval()
    whole.load_state_dict({**source.state_dict(), "conditioner.table.weight": tuned.conditioner.table.weight})
    return whole


def test_a_resumed_run_is_the_uninterrupted_one(source, tmp_path, write_tokens):  # noqa: F811
    recipe = recipe_from(tmp_path, {"lora": {"rank": 2, "dropout": 0.2}}, save_every=1)
    write_tokens(recipe, train=8, valid=2)
    train_lm(recipe)
    once = (recipe.folder / "model" / "model.safetensors").read_bytes()
    adapters = (recipe.folder / "model" / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(recipe.folder / "model")
    for step in (2, 3):
        shutil.rmtree(recipe.folder / "checkpoints" / f"step-00000{step}")
    train_lm(recipe)
    assert (recipe.folder / "model" / "model.safetensors").read_bytes() == once
    assert (recipe.folder / "model" / "adapter" / "adapter_model.safetensors").read_bytes() == adapters


def test_conditions_that_are_added_are_trained_too(source, tmp_path, write_tokens):  # noqa: F811
    recipe = recipe_from(tmp_path, {"lora": {"rank": 2}, "conditions": ["player"]})
    write_tokens(recipe, train=8, valid=2)
    train_lm(recipe)
    tuned = TransformerLM.from_pretrained(recipe.folder / "model")
    offset = tuned.conditioner.offsets["player"]
    assert tuned.conditioner.table.weight[offset + 1 :].abs().sum(1).gt(0).all()
    # The adapters alone would not be the model.
    assert not (recipe.folder / "model" / "adapter").exists()
