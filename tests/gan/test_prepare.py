"""What the stage `prepare` has written, as conditions of crops."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tokkata.core.conditions import Conditions
from tokkata.core.errors import UserError
from tokkata.gan.conditions.prepared import load_prepared
from tokkata.gan.prepare import prepare
from tokkata.gan.representation import make_representation
from tokkata.tests.gan.made_notes import NUM_SAMPLES, RATE, darkgan, store_of, vqcpc_gan, write_notes


@pytest.fixture
def tokens(tmp_path):
    """Tokens of two clips, with a hop of 100 samples; token 5 is silence."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    found = {"long": torch.arange(40) % 5, "short": torch.tensor([4, 3])}
    save_file({id: one.to(torch.uint8) for id, one in found.items()}, folder / "tokens.safetensors")
    (folder / "tokens.json").write_text(json.dumps({"num_tokens": 6, "hop": 100, "silence": 5}))
    return load_prepared(tmp_path, vqcpc_gan(tmp_path, {}).model)


def test_a_crop_has_the_tokens_of_the_frames_nearest_to_its_own(tokens):
    given = tokens.given(["long", "long", "short", "long"], [0, 1260, 0, 3890], 250)["tokens"]
    assert given.values.argmax(-1).tolist() == [[0, 1, 2], [3, 4, 0], [4, 3, 5], [4, 5, 5]]
    assert given.values.sum(-1).eq(1).all()
    assert given.mask.all()
    Conditions(tokens.conditions).check({"tokens": given})


def test_there_is_a_token_for_each_frame_of_an_image(tmp_path):
    recipe = vqcpc_gan(tmp_path, {"steps": 1})
    write_notes(recipe, train=3, test=1)
    prepare(recipe)
    prepared = load_prepared(recipe.folder, recipe.model)
    ids = store_of(recipe).split("train").column("id")
    for num_samples in (NUM_SAMPLES, NUM_SAMPLES - 1, 1234):
        image = make_representation(recipe.model.representation, RATE, num_samples).shape(num_samples)
        given = prepared.given(ids, [0] * len(ids), num_samples)["tokens"]
        assert given.values.shape == (3, image.num_frames, 8)
    assert prepared.given(["test-00"], [500], 800)["tokens"].values.shape == (1, 8, 8)
    with pytest.raises(UserError, match="knows nothing of the clip 'valid-00': run the stage prepare again"):
        prepared.given(["valid-00"], [0], 800)


def test_soft_labels_are_a_number_for_each_label(tmp_path):
    recipe = darkgan(tmp_path, {"steps": 1})
    write_notes(recipe, train=4, valid=2)
    prepare(recipe)
    prepared = load_prepared(recipe.folder, recipe.model)
    given = prepared.given(["valid-01", "train-03", "valid-01"], [0, 10, 999], 500)
    assert list(given) == [one.name for one in prepared.conditions] == ["organ", "pluck"]
    torch.testing.assert_close(given["organ"].values + given["pluck"].values, torch.ones(3, 1))
    assert given["organ"].values[0] == given["organ"].values[2]  # whatever the crop
    Conditions(prepared.conditions).check(given)


def test_what_is_not_there_or_damaged_is_said(tmp_path):
    for recipe, folder in ((darkgan(tmp_path, {}), "teacher"), (vqcpc_gan(tmp_path, {}), "encoder")):
        with pytest.raises(UserError, match="cannot be read: run the stage prepare first"):
            load_prepared(recipe.folder, recipe.model)
        (recipe.folder / folder).mkdir(parents=True)
        name = "soft_labels" if folder == "teacher" else "tokens"
        about = {"names": ["a"]} if folder == "teacher" else {"num_tokens": 2, "hop": 1, "silence": 0}
        (recipe.folder / folder / f"{name}.json").write_text(json.dumps(about))
        (recipe.folder / folder / f"{name}.safetensors").write_bytes(b"broken")
        with pytest.raises(UserError, match="cannot be read: run the stage prepare again"):
            load_prepared(recipe.folder, recipe.model)
