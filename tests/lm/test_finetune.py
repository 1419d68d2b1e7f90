"""Fine-tuning from a model that is there: what it inherits, what it adds, and what it refuses."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tokkata.core.conditions import Condition, Conditions, Given
from tokkata.core.errors import UserError
from tokkata.core.recipe import RecipeError, check_recipe, dump_recipe
from tokkata.core.schema_models import TransformerModel
from tokkata.lm import train as training
from tokkata.lm.finetune import begin_from_source, inherited_conditions, with_weights_of
from tokkata.lm.train import train_lm
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm.conftest import INFO
from tokkata.tokenize.features.clip_conditions import from_batch
from tokkata.tokenize.features.feature import FeatureInfo

PITCH = Condition("pitch", "label", values=(61, 62))
SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.1, "window_frames": 20}
SHAPE |= {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "delays": (0, 0, 2)}
TEXT = FeatureInfo(
    name="text",
    kind="text",
    dim=6,
    frame_rate=None,
    store="float32",
    versions={},
    encoder="google-t5/t5-base",
    column="caption",
    max_tokens=8,
)


def config(conditions=(PITCH,), **changed):
    codec = dataclasses.asdict(INFO)
    return TransformerConfig.for_codec(codec, Conditions(tuple(conditions)), **{**SHAPE, **changed})


@pytest.fixture
def source(tmp_path):
    """A model of Tokkata that knows two pitches, saved, with weights large enough to matter."""
    torch.manual_seed(0)
    lm = TransformerLM(config()).eval()
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lm.save_pretrained(tmp_path / "source")
    return lm


def recipe_from(tmp_path, model=None, **train):
    values = {
        "name": "tuned",
        "runs_dir": str(tmp_path),
        "data": {"kind": "synth"},
        "codec": {"kind": "pocket"},
        "model": {"kind": "transformer", "init_from": str(tmp_path / "source"), **(model or {})},
        "train": {"steps": 3, "batch_size": 8, "crop_s": 0.16, "warmup_steps": 1, "lr": 5e-3, **train},
        "generate": {"num_clips": 2, "duration_s": 0.2},
    }
    return check_recipe(values)


def begin(recipe, store):
    return begin_from_source(recipe.model, store, store.split("train"), 8)


def test_shape_and_weights_are_inherited(source, tmp_path, write_tokens):
    recipe = recipe_from(tmp_path)
    store = write_tokens(recipe, train=8, valid=2)
    lm = begin(recipe, store)
    # The corpus has the pitches 60 to 63: those that the source knows keep their rows.
    assert lm.config.conditions["pitch"].values == (61, 62, 60, 63)
    expected = dataclasses.replace(source.config, conditions=lm.config.conditions)
    assert lm.config == expected
    lm.eval()
    tokens = torch.randint(0, 17, (3, 3, 9))
    values = {"pitch": [61, 62, None]}
    found = lm.logits(tokens, lm.config.conditions.encode(values))
    assert torch.equal(found, source.logits(tokens, source.config.conditions.encode(values)))


def test_what_a_recipe_may_change(source, tmp_path, write_tokens):
    recipe = recipe_from(tmp_path, {"dropout": 0.0, "attention": "sdpa"})
    store = write_tokens(recipe, train=8, valid=2)
    assert begin(recipe, store).config.dropout == 0.0
    long = begin_from_source(recipe.model, store, store.split("train"), 30)
    assert long.config.window_frames == 30


def test_added_labels_change_nothing_before_they_are_trained(source, tmp_path, write_tokens):
    recipe = recipe_from(tmp_path, {"conditions": ["player"]})
    store = write_tokens(recipe, train=8, valid=2)
    lm = begin(recipe, store).eval()
    assert lm.config.conditions.names == ["pitch", "player"]
    tokens = torch.randint(0, 17, (2, 3, 9))
    given = lm.config.conditions.encode({"pitch": [61, 62], "player": ["player 1", "player 4"]})
    theirs = source.config.conditions.encode({"pitch": [61, 62]})
    assert torch.equal(lm.logits(tokens, given), source.logits(tokens, theirs))


@pytest.mark.parametrize("fuse", ["sum", "cross"])
def test_added_sequences_change_nothing_before_they_are_trained(source, fuse):
    added = Condition("text", "sequence", fuse, width=6)
    lm = with_weights_of(source, config((PITCH, added))).eval()
    tokens = torch.randint(0, 17, (2, 3, 9))
    pitch = {"pitch": [61, None]}
    given = lm.config.conditions.encode({**pitch, "text": [torch.randn(4, 6), torch.randn(2, 6)]})
    expected = source.logits(tokens, source.config.conditions.encode(pitch))
    found = lm.logits(tokens, given)
    assert torch.equal(found, expected)
    # … and can be trained.
    found.square().mean().backward()
    end = lm.blocks[0].cross_attention.out if fuse == "cross" else lm.conditioner.projections["text"]
    assert end.weight.grad.abs().sum() > 0


def test_training_begins_at_the_loss_of_the_source(source, tmp_path, write_tokens, monkeypatch):
    recipe = recipe_from(tmp_path, {"conditions": ["player"], "dropout": 0.0})
    write_tokens(recipe, train=8, valid=2)
    jobs = []
    monkeypatch.setattr(training, "train", lambda job, *_: jobs.append(job))
    train_lm(recipe)
    batch = jobs[0].batch(0, range(8))
    given = from_batch(batch)
    known = given["pitch"].values[:, 0] <= 2
    codes, mask = batch["codes"][known], batch["mask"][known]
    assert 0 < known.sum() < 8
    told = {name: Given(one.values[known], one.mask[known]) for name, one in given.items()}
    found = jobs[0].modules["lm"](codes, told, mask)
    assert torch.equal(found.mean, source(codes, {"pitch": told["pitch"]}, mask).mean)


def test_a_whole_run(source, tmp_path, write_tokens):
    recipe = recipe_from(tmp_path)
    write_tokens(recipe, train=8, valid=2)
    train_lm(recipe)
    tuned = TransformerLM.from_pretrained(recipe.folder / "model")
    assert tuned.config.delays == (0, 0, 2)
    assert tuned.config.norm == "layernorm"
    moved = {name for name, t in tuned.state_dict().items() if name != "conditioner.table.weight"
             and not torch.equal(t, source.state_dict()[name])}  # fmt: skip
    assert moved == source.state_dict().keys() - {"conditioner.table.weight"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"id": "pocket"},
            "the tokens do not fit model.init_from .*: codec id is made up, but pocket is needed",
        ),
        ({"sample_rate": 8000}, "codec sample_rate is 16000, but 8000 is needed"),
    ],
)
def test_another_codec(source, tmp_path, write_tokens, changed, told):
    recipe = recipe_from(tmp_path)
    store = write_tokens(recipe, train=8, valid=2)
    codec = {**dataclasses.asdict(INFO), **changed}
    TransformerLM(dataclasses.replace(source.config, codec=codec)).save_pretrained(tmp_path / "source")
    with pytest.raises(UserError, match=told):
        begin(recipe, store)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_codebooks": 2, "delays": None}, "num_codebooks is 3, but 2 is needed"),
        ({"codebook_size": 8}, "codebook_size is 16, but 8 is needed"),
        ({"frame_rate": 25.0}, "frame_rate is 50.0, but 25.0 is needed"),
    ],
)
def test_a_source_that_names_no_codec(source, tmp_path, write_tokens, changed, told):
    recipe = recipe_from(tmp_path)
    store = write_tokens(recipe, train=8, valid=2)
    TransformerLM(dataclasses.replace(source.config, codec={}, **changed)).save_pretrained(
        tmp_path / "source"
    )
    with pytest.raises(UserError, match=f"the tokens do not fit model.init_from .*: {told}"):
        begin(recipe, store)


def test_a_source_that_is_not_there(tmp_path, write_tokens, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = recipe_from(tmp_path, {"init_from": "no/model"})
    store = write_tokens(recipe, train=8, valid=2)
    with pytest.raises(UserError, match="model no/model is neither a folder nor in the Hugging Face cache"):
        begin(recipe, store)


# --- conditions


def features(**changed):
    """A store with one feature."""
    return SimpleNamespace(features={"text": dataclasses.replace(TEXT, revision="abc", **changed)})


def told_of_text(feature=True):
    condition = Condition("text", "sequence", "cross", width=6, feature=TEXT.to_json() if feature else None)
    return Conditions((condition,))


def test_a_text_is_inherited_with_the_encoder_of_the_tokens():
    # Who names no revision takes any; from then on it is that of the tokens.
    for feature in (True, False):
        found = inherited_conditions("source", told_of_text(feature), features(), None, [])
        assert found["text"].feature["revision"] == "abc"
        assert (found["text"].fuse, found["text"].width) == ("cross", 6)


@pytest.mark.parametrize(
    ("store", "feature", "told"),
    [
        (
            features(encoder="my/t5"),
            True,
            "'text' does not fit model.init_from source: encoder is my/t5, but",
        ),
        (features(kind="style"), True, "kind is style, but text is needed"),
        (features(dim=5), False, "feature 'text' has width 5, but model.init_from source needs 6"),
        (
            SimpleNamespace(features={}),
            True,
            "model.init_from source is told 'text', which the tokens do not have: add"
            r" \{kind: text, name: text, encoder: google-t5/t5-base\} to tokenize.features",
        ),
        (SimpleNamespace(features={}), False, "add a feature of width 6 with that name to tokenize.features"),
    ],
)
def test_texts_that_do_not_fit(store, feature, told):
    with pytest.raises(UserError, match=told):
        inherited_conditions("source", told_of_text(feature), store, None, [])


def test_labels_that_do_not_fit(source, tmp_path, write_tokens):
    recipe = recipe_from(tmp_path, {"conditions": ["pitch"]})
    store = write_tokens(recipe, train=8, valid=2)
    with pytest.raises(UserError, match=r"names 'pitch', which model.init_from .* is told already: remove"):
        begin(recipe, store)
    for values in (("sixty",), (60,)):
        kind = "label" if values == ("sixty",) else "tags"
        other = Conditions((Condition("pitch", kind, values=tuple(map(str, values))),))
        with pytest.raises(UserError, match="label 'pitch' is of another kind in the corpus"):
            inherited_conditions("source", other, store, store.split("train"), [])


# --- recipes


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"dim": 32}, "model: dim is that of init_from .*/source: remove it"),
        ({"norm": "layernorm"}, "norm is that of init_from"),
        ({"init_from": None, "lora": {}}, "lora adapts a model that is there: name it in init_from"),
        ({"init_from": None, "init_revision": "main"}, "init_revision belongs to init_from"),
        ({"lora": {"targets": ["head"]}}, "'model.lora.targets.0' cannot be 'head'"),
        ({"lora": {"rank": 0}}, "'model.lora.rank' cannot be 0: a number above 0"),
    ],
)
def test_recipes_that_are_refused(tmp_path, model, told):
    with pytest.raises(RecipeError, match=told):
        recipe_from(tmp_path, model)


@pytest.mark.parametrize("model", [{}, {"dropout": 0.3}, {"lora": {"rank": 2}}])
def test_a_resolved_recipe_reads_back(tmp_path, model):
    import yaml

    recipe = recipe_from(tmp_path, model)
    values = yaml.safe_load(dump_recipe(recipe))
    assert "dim" not in values["model"]
    assert check_recipe(values) == recipe
    assert TransformerModel(kind="transformer").model_dump()["dim"] == 256
