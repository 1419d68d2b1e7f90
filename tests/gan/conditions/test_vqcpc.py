"""The encoder of VQCPC-GAN: that it learns, what its tokens tell apart, and that it goes on when killed."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl, write_text
from tokkata.core.recipe import dump_recipe
from tokkata.gan.conditions import vqcpc as module
from tokkata.gan.conditions.prepared import read_by_clip
from tokkata.gan.conditions.vqcpc import Vqcpc, VqcpcConfig, prepare_encoder, train_encoder
from tokkata.tests.forked import run_forked
from tokkata.tests.gan.made_notes import RATE, store_of, vqcpc_gan, write_notes

CONFIG = VqcpcConfig(RATE, 256, 100, 16, 8, 6, 3, 0.0, 1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose encoder is trained; what is heard in its clips; its tokens."""
    recipe = vqcpc_gan(tmp_path_factory.mktemp("runs"), {"steps": 60}, validate_every=30)
    heard = write_notes(recipe, train=24, valid=8, test=2)
    prepare_encoder(recipe)
    return recipe, heard, read_by_clip(recipe.folder / "encoder" / "tokens.safetensors")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Vqcpc(CONFIG)


def inputs(num_clips=2, num_frames=7, num_wrong=5):
    generator = torch.Generator().manual_seed(1)
    audio = 0.3 * torch.randn(num_clips, num_frames * CONFIG.hop, generator=generator)
    return audio, torch.rand(num_clips, num_frames, num_wrong, generator=generator)


def test_every_clip_has_a_token_for_each_hop_begun(trained):
    recipe, heard, tokens = trained
    assert tokens.keys() == heard.keys()
    assert {(found.dtype, tuple(found.shape)) for found in tokens.values()} == {(torch.uint8, (40,))}
    encoder = Vqcpc.load(recipe.folder / "encoder" / "model")
    split = store_of(recipe).split("valid")
    for clip in range(2):
        alone = encoder.tokens(torch.from_numpy(split.latents(clip)))[0]
        assert (alone == tokens[split.column("id")[clip]]).float().mean() > 0.95  # but for rounding


def test_a_frame_ahead_is_told_from_others_in_clips_it_has_not_heard(trained):
    recipe, _, _ = trained
    rows = [row for row in read_jsonl(recipe.folder / "encoder/logs/train.jsonl") if "valid/loss" in row]
    assert len(rows) == 2
    assert rows[-1]["valid/accuracy"] > 0.8  # by chance 0.5
    assert rows[-1]["valid/loss"] < 0.85 * math.log(1 + 8)  # by chance log 9
    assert rows[-1]["valid/tokens_used"] > 3


def test_tokens_say_what_is_heard_in_clips_they_were_not_learned_from(trained):
    """Breath, tone and rest: the token alone gives it for most frames, its commonest meaning."""
    _, heard, tokens = trained
    table = np.zeros((3, 8))
    for id, what in heard.items():
        if not id.startswith("train"):
            np.add.at(table, (what[50::100], tokens[id].numpy()), 1)
    commonest = table.sum(1).max() / table.sum()
    assert commonest < 0.7
    assert table.max(0).sum() / table.sum() > 0.9


def test_the_prediction_is_infonce_by_hand(encoder):
    """arXiv:1807.03748, eq. 4, one prediction after another."""
    audio, draws = inputs()
    encoder.start_codebook(audio)
    out = encoder.eval()(audio, draws)
    entries = encoder.quantizer.codebook.detach()[out.tokens]
    context, _ = encoder.context(entries)
    predicted = encoder.predictors(context).reshape(2, 7, 3, 8)
    losses, won, compared = [], 0, 0
    for b in range(2):
        for t in range(7):
            for k in range(1, min(3, 6 - t) + 1):
                right = t + k
                wrong = [(right + 1 + int(u * 6)) % 7 for u in draws[b, right]]
                assert right not in wrong
                scores = entries[b, [right, *wrong]] @ predicted[b, t, k - 1]
                losses.append(-scores.log_softmax(0)[0])
                for i, other in enumerate(wrong):
                    if out.tokens[b, other] != out.tokens[b, right]:
                        compared += 1
                        won += bool(scores[0] > scores[i + 1])
    assert out.num_predictions == len(losses)
    torch.testing.assert_close(out.prediction, torch.stack(losses).mean())
    assert float(out.accuracy) == pytest.approx(won / compared)


def test_tokens_are_the_nearest_entries_and_need_the_frames_around_them_only(encoder):
    audio, _ = inputs(1, 30)
    encoder.start_codebook(audio)
    tokens = encoder.eval().tokens(audio)
    distances = torch.cdist(encoder.frames(audio)[0], encoder.quantizer.codebook)
    assert torch.equal(tokens[0], distances.argmin(1))
    assert len(tokens.unique()) == CONFIG.num_tokens  # entries began as centres of these frames
    changed = audio.clone()
    changed[:, 2000:] = 0
    assert torch.equal(encoder.tokens(changed)[0, :17], tokens[0, :17])
    assert encoder.tokens(audio[:, :2950]).shape == (1, 30)


def test_both_the_encoder_and_all_entries_in_use_learn(encoder):
    audio, draws = inputs()
    out = encoder.train()(audio, draws)
    (out.prediction + out.commitment).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    moved = encoder.quantizer._codebook.embed.grad[0].abs().sum(1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(out.tokens.unique().tolist())


def test_a_forward_pass_changes_nothing_and_draws_nothing(encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    encoder.train()(*inputs())
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_batch_in_parts_has_the_same_gradient(encoder):
    """So it does not matter how many processes share it."""
    audio, draws = inputs(4)

    def gradient(parts):
        encoder.zero_grad()
        for part in parts:
            loss = module.loss({"encoder": encoder}, {"audio": audio[part], "draws": draws[part]})
            (loss.mean * loss.weight).backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    torch.testing.assert_close(
        gradient([slice(0, 4)]), gradient([slice(0, 1), slice(1, 4)]), rtol=1e-4, atol=1e-3
    )


def test_training_that_was_killed_goes_on_bitwise(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        write_notes(vqcpc_gan(tmp_path / name, {"steps": 6}), train=6)
    whole = vqcpc_gan(tmp_path / "whole", {"steps": 6})
    train_encoder(whole, store_of(whole))
    killed = vqcpc_gan(tmp_path / "killed", {"steps": 6}, save_every=2)
    read, drawn = module.read_audio, []

    def read_until_killed(*arguments):
        drawn.append(1)
        if len(drawn) == 6:  # the examples, then a batch a step: in step 4 of 6
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(module, "read_audio", read_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(killed, store_of(killed))
    monkeypatch.undo()
    assert sorted(p.name for p in (killed.folder / "encoder/checkpoints").iterdir())[-1] == "step-000004"
    assert not (killed.folder / "encoder" / "model").exists()
    train_encoder(killed, store_of(killed))
    found, expected = (
        load_file(recipe.folder / "encoder" / "model" / "model.safetensors") for recipe in (killed, whole)
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_two_processes_train_what_one_does_and_the_first_writes_tokens(tmp_path, environment):
    one = vqcpc_gan(tmp_path, {"steps": 4})
    write_notes(one, train=6)
    shutil.copytree(one.folder, tmp_path / "two")
    prepare_encoder(one)
    write_text(tmp_path / "two.yaml", dump_recipe(one.model_copy(update={"name": "two"})))
    program = (
        "import sys, pathlib; from tokkata.core.recipe import load_recipe;"
        " from tokkata.gan.prepare import prepare; prepare(load_recipe(pathlib.Path(sys.argv[1])))"
    )
    write_text(tmp_path / "program.py", program)
    environ = {**environment, "ACCELERATE_USE_CPU": "true"}
    result = run_forked(tmp_path, 2, environ, tmp_path / "program.py", tmp_path / "two.yaml")
    assert result.returncode == 0, result.stderr
    folders = [tmp_path / name / "encoder" for name in ("run", "two")]
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
    assert len(read_by_clip(folders[1] / "tokens.safetensors")) == 6


def test_settings_of_the_generator_do_not_change_the_encoder(tmp_path):
    found = []
    for name, train in {"a": {}, "b": {"seed": 7, "batch_size": 2, "lr": 0.1, "crop_s": 0.1}}.items():
        recipe = vqcpc_gan(tmp_path / name, {"steps": 2}, **train)
        write_notes(recipe, train=4)
        train_encoder(recipe, store_of(recipe))
        found.append(load_file(recipe.folder / "encoder" / "model" / "model.safetensors"))
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name


def test_what_cannot_be_predicted_or_read_is_said(tmp_path):
    recipe = vqcpc_gan(tmp_path, {"predicted_steps": 50})
    write_notes(recipe, train=2)
    with pytest.raises(UserError, match="predicted_steps is 50, but the longest clip has 40 frames"):
        train_encoder(recipe, store_of(recipe))
    Vqcpc(CONFIG).save(tmp_path)
    assert Vqcpc.load(tmp_path).config == CONFIG
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"dim": 9}))
    with pytest.raises(UserError, match="holds no whole encoder"):
        Vqcpc.load(tmp_path)
