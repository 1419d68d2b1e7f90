"""The model card: what it tells of a model, and how the scores come into it."""

import dataclasses
import shlex

import pytest
import torch
import yaml

from tokkata.core.card import fill_scores
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.recipe import dump_recipe
from tokkata.core.schema_models import TransformerModel
from tokkata.lm.build import transformer_config
from tokkata.lm.card import write_card
from tokkata.lm.transformer import TransformerLM
from tokkata.tests.lm.tiny_lm import tiny
from tokkata.tokenize.features.clip_conditions import conditions_of
from tokkata.tokenize.origin import Origin, write_origins

TABLE = "| set | FAD |\n|---|---|\n| generated | 1.25 |"


@pytest.fixture
def recipe(lm_recipe):
    return lm_recipe(model={"conditions": ["pitch"]}, train={"steps": 321})


@pytest.fixture
def lm(recipe, write_tokens):
    store = write_tokens(recipe, train=3)
    torch.manual_seed(0)
    conditions = conditions_of(store, store.split("train"), recipe.model.conditions)
    return TransformerLM(transformer_config(recipe.model, store, conditions, 8))


@pytest.fixture
def card(tmp_path, recipe, lm):
    path = tmp_path / "README.md"
    write_card(path, recipe, lm, {"loss": 2.5, "codebook_0": 1.25})
    return path


def test_what_the_card_tells(card, recipe, lm):
    text = card.read_text()
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "tokkata"
    assert "music-generation" in front["tags"]
    for fact in [
        "# run\n",
        "`made up`",
        "16000 Hz, 50 frames/s, 3 codebooks of 16",
        "- Tokkata's synthesiser, corpus of kind `synth`. Licence: none needed",
        "- `pitch`: one of `60`, `61`, `62`\n",
        "tokkata generate MODEL_FOLDER_OR_HUB_ID --num 4 --duration 0.2 --label pitch=60\n",
        "321 steps of 8 clips of 0.16 s",
        f"| parameters | {sum(p.numel() for p in lm.parameters()):,} |",
        "| loss | 2.5000 |\n| codebook_0 | 1.2500 |",
        "## Scores\nNot evaluated yet.",
        'load_lm("MODEL_FOLDER_OR_HUB_ID")',
        "num_frames=10",
    ]:
        assert fact in text
    assert text.split("```yaml\n")[1] == dump_recipe(recipe) + "```\n"


def test_the_data_carries_the_licence_that_its_tokens_have(recipe, lm, tmp_path):
    origin = Origin("folder", "Field recordings", "CC BY 4.0", "cc-by-4.0", "https://example.org")
    write_origins(recipe.folder / "tokens", [origin, dataclasses.replace(origin, name="Other", licence=None)])
    write_card(tmp_path / "README.md", recipe, lm, {})
    text = (tmp_path / "README.md").read_text()
    assert (
        "- Field recordings, corpus of kind `folder` (https://example.org). Licence: CC BY 4.0\n"
        "- Other, corpus of kind `folder` (https://example.org). Licence: not told by the corpus\n"
    ) in text


def test_conditions_of_every_kind_have_a_line_and_an_option(recipe, tmp_path):
    features = {
        "text": {"kind": "text", "encoder": "google-t5/t5-base"},
        "tune": {"kind": "melody", "encoder": None},
    }
    many = Conditions(
        (
            Condition("player", "label", values=tuple(f"player {i}" for i in range(15))),
            Condition("mood", "tags", values=("calm", "glad")),
            *(Condition(name, "sequence", width=3, feature=one) for name, one in features.items()),
        )
    )
    model = tiny(many)
    config = dataclasses.replace(
        model.config, codec={**model.config.codec, "revision": None, "sample_rate": 16000}
    )
    model.config = config
    write_card(tmp_path / "README.md", recipe, model, {})
    text = (tmp_path / "README.md").read_text()
    assert "`player 10`, `player 11` and 3 more\n- `mood`: tags of `calm`, `glad`\n" in text
    assert "- `text`: text by `google-t5/t5-base`\n- `tune`: melody\n" in text
    command = next(line for line in text.splitlines() if line.startswith("tokkata generate"))
    assert shlex.split(command)[3:] == [
        *("--num", "4", "--duration", "0.2", "--label", "player=player 0", "--tags", "mood=calm"),
        *("--text", "what it should sound like", "--melody", "melody.wav"),
    ]


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ({"init_from": "facebook/musicgen-small"}, "of 0.16 s, all weights |"),
        (
            {"init_from": "facebook/musicgen-small", "lora": {"rank": 8}},
            "of 0.16 s, low-rank adapters of rank 8, merged into the weights |",
        ),
    ],
)
def test_what_is_fine_tuned_says_from_what(lm_recipe, lm, tmp_path, model, how):
    section = {"kind": "transformer", **model}
    recipe = lm_recipe()
    recipe = recipe.model_copy(update={"model": TransformerModel.model_validate(section)})
    write_card(tmp_path / "README.md", recipe, lm, {})
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "facebook/musicgen-small"
    assert "fine-tuned from `facebook/musicgen-small` with Tokkata." in text
    assert how in text
    assert "- What `facebook/musicgen-small` was trained on before. Its licence binds" in text


def test_a_model_from_a_folder_of_this_machine_has_no_base_on_the_hub(lm_recipe, lm, tmp_path):
    section = TransformerModel.model_validate({"kind": "transformer", "init_from": str(tmp_path)})
    write_card(tmp_path / "README.md", lm_recipe().model_copy(update={"model": section}), lm, {})
    text = (tmp_path / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert f"fine-tuned from `{tmp_path}`" in text


def test_no_validation_is_told(tmp_path, recipe, lm):
    write_card(tmp_path / "README.md", recipe, lm, {})
    assert "## Validation" in (tmp_path / "README.md").read_text()
    assert "There was no held-out clip to validate on.\n\n## Scores" in (tmp_path / "README.md").read_text()


def test_scores_replace_their_section_alone(card):
    before = card.read_text()
    fill_scores(card, TABLE)
    filled = card.read_text()
    assert filled == before.replace("Not evaluated yet.", TABLE)
    fill_scores(card, TABLE.replace("1.25", "0.5"))
    assert card.read_text() == filled.replace("generated | 1.25", "generated | 0.5")
    fill_scores(card, TABLE)
    assert card.read_text() == filled


def test_backslashes_are_no_groups(card):
    fill_scores(card, r"FAD \1 \g<0>")
    assert r"FAD \1 \g<0>" in card.read_text()


def test_scores_as_the_last_section(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Mine\n\n## Scores\nold\n")
    fill_scores(card, TABLE)
    assert card.read_text() == f"# Mine\n\n## Scores\n{TABLE}\n"


def test_a_card_that_was_rewritten_by_hand_gets_its_scores_too(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Mine\nThe scores are fine.\n")
    fill_scores(card, TABLE)
    fill_scores(card, TABLE)
    assert card.read_text() == f"# Mine\nThe scores are fine.\n\n## Scores\n{TABLE}\n"
