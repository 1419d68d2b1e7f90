"""Making clips: noise by seed and number, lengths, what is told and what is filled in, and the command line.

Shapes: B batch, D latent width of the codec, T frames.
"""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.conditions import Given
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.gan.clips import Clips, write_clips
from tokkata.gan.conditions.examples import fill_in, lengthened
from tokkata.gan.generate import clip_noise, generate
from tokkata.gan.load import codec_of, load_gan
from tokkata.tests.gan.tiny_gans import EXAMPLES, NUM_SAMPLES, NUM_TOKENS, PITCHES, RATE, SECTIONS, make_gan
from tokkata.tokenize.codec import load_codec

KINDS = [kind for kind in SECTIONS if kind != "musika"]


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return load_codec(str(tiny_codec), num_codebooks=4)


@pytest.fixture(scope="module")
def models(codec):
    return {kind: make_gan(kind, codec if kind == "musika" else None) for kind in SECTIONS}


# --------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_clip_does_not_depend_on_its_batch(models, kind):
    model = models[kind]
    frames = model.config.num_frames
    together = generate(model, frames, batch_size=3, seed=5)
    alone = torch.cat([generate(model, frames, seed=5, first_clip=clip) for clip in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(together, 2))
    assert not torch.allclose(generate(model, frames, seed=6)[0], together[0])


# A VQCPC-GAN makes as many frames as are asked for, without those to come.
@pytest.mark.parametrize("kind", [kind for kind in SECTIONS if kind != "vqcpc_gan"])
def test_shorter_clips_are_the_beginning(models, kind):
    model = models[kind]
    frames = model.config.num_frames
    short = generate(model, frames // 2, seed=1)
    assert short.shape == (1, model.config.codec_info.latent_dim, frames // 2)
    torch.testing.assert_close(
        short, generate(model, frames, seed=1)[..., : frames // 2], atol=1e-5, rtol=1e-4
    )


def test_generation_leaves_training_mode_as_it_was(models):
    model = models["wavegan"]
    model.train()
    generate(model, 8)
    assert model.training
    model.eval()


# --------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vqcpc_gan"])
def test_clips_of_one_length_cannot_be_longer(models, kind):
    with pytest.raises(
        UserError, match=rf"^0.512 s are more than the 0.256 s that this {kind} makes: ask for shorter clips$"
    ):
        generate(models[kind], 2 * NUM_SAMPLES)
    with pytest.raises(UserError, match="a frame at least"):
        generate(models[kind], 0)


@pytest.mark.parametrize("kind", ["vqcpc_gan", "musika"])
def test_clips_of_any_length(models, kind):
    model = models[kind]
    frames = model.config.num_frames
    for num_frames in (1, frames + 1, 5 * frames):
        latents = generate(model, num_frames, batch_size=2, seed=1)
        assert latents.shape == (2, model.config.codec_info.latent_dim, num_frames)
        assert bool(latents.isfinite().all())


def test_a_longer_musika_begins_like_a_shorter_one(models):
    short, long = (generate(models["musika"], frames, seed=2) for frames in (21, 200))
    torch.testing.assert_close(long[..., :21], short)


@given(st.integers(1, 40), st.integers(1, 200))
def test_a_sequence_is_drawn_out_in_order_from_the_attack_on(states, length):
    values = torch.arange(states).float().reshape(1, states, 1)
    found = lengthened(Given(values, torch.ones(1, states, dtype=torch.bool)), length)
    assert found.values.shape == (1, length, 1)
    assert found.mask.shape == (1, length)
    places = found.values[0, :, 0].long()
    if length <= states:
        assert places.tolist() == list(range(length))
        return
    steps = places.diff()
    assert bool(((steps == 0) | (steps == 1)).all())  # in order, and none is left out
    assert places[: states // 4].tolist() == list(range(states // 4))
    assert (places[0], places[-1]) == (0, states - 1)


# ---------------------------------------------------------------------------------------------- what is told


def test_what_is_not_said_is_that_of_a_training_clip(models):
    conditions, examples = models["vqcpc_gan"].config.conditions, EXAMPLES["vqcpc_gan"]
    filled = fill_in(conditions, examples, {"pitch": [62, None, 60, 62]}, 4, seed=3)
    assert filled.inputs["pitch"][0] == 62
    for clip, source in enumerate(filled.sources):
        example = next(one for one in examples if one["id"] == source)
        assert filled.inputs["pitch"][clip] == example["told"]["pitch"]  # those that agree come first
        tokens = filled.inputs["tokens"][clip]
        assert tokens.shape == (len(example["told"]["tokens"]), NUM_TOKENS)
        assert tokens.argmax(1).tolist() == example["told"]["tokens"]


def test_what_is_filled_in_depends_on_seed_and_clip_alone(models):
    conditions, examples = models["gansynth"].config.conditions, EXAMPLES["gansynth"]
    whole = fill_in(conditions, examples, {}, 40, seed=1)
    parts = [fill_in(conditions, examples, {}, 10, seed=1, first_clip=first) for first in range(0, 40, 10)]
    assert whole.sources == [source for part in parts for source in part.sources]
    assert set(whole.inputs["pitch"]) == set(PITCHES)
    assert fill_in(conditions, examples, {}, 40, seed=2).sources != whole.sources


def test_what_is_said_stays(models):
    conditions, examples = models["drumgan"].config.conditions, EXAMPLES["drumgan"]
    filled = fill_in(conditions, examples, {"warmth": [0.9, 0.1]}, 2, seed=0)
    assert filled.inputs["warmth"] == [0.9, 0.1]
    assert all(value in (0, 0.25, 0.5, 0.75, 1) for value in filled.inputs["brightness"])
    filled = fill_in(conditions, examples, {"warmth": [0.9], "brightness": [0.3]}, 1, seed=0)
    assert filled.sources == [None]


def test_what_is_told_is_heard(models):
    made = generate(models["gansynth"], NUM_SAMPLES, conditions={"pitch": list(PITCHES)}, seed=0)
    again = generate(
        models["gansynth"],
        NUM_SAMPLES,
        conditions=models["gansynth"].config.conditions.encode({"pitch": list(PITCHES)}),
        seed=0,
    )
    assert made.shape[0] == 3
    torch.testing.assert_close(made, again)
    other = generate(models["gansynth"], NUM_SAMPLES, conditions={"pitch": [64, 62, 60]}, seed=0)
    assert not torch.allclose(made[0], other[0])
    torch.testing.assert_close(made[1], other[1])


def test_missing_and_unknown_conditions_are_named():
    model = make_gan("drumgan", examples=False)
    with pytest.raises(UserError, match="'brightness' is missing: this model needs brightness, warmth"):
        generate(model, NUM_SAMPLES, conditions={"warmth": [0.5]})
    with pytest.raises(UserError, match="'warmth' is missing: this model needs brightness, warmth"):
        generate(
            model, NUM_SAMPLES, conditions={"brightness": Given(torch.ones(1, 1), torch.ones(1, 1).bool())}
        )
    with pytest.raises(UserError, match="unknown condition 'pitch'"):
        generate(model, NUM_SAMPLES, conditions={"pitch": [60]})
    with pytest.raises(UserError, match="one value a clip: 3, not 1 of 'warmth'"):
        generate(model, NUM_SAMPLES, conditions={"warmth": [0.5]}, batch_size=3)


# -------------------------------------------------------------------------------------------------- wav files


def test_a_musika_is_written_in_windows(models, codec, tmp_path, monkeypatch):
    model = models["musika"]
    monkeypatch.setattr("tokkata.gan.clips._WINDOW_S", 1.5)
    monkeypatch.setattr("tokkata.gan.clips._WINDOWS_AT_ONCE", 2)
    sizes, make = [], type(model.generator).make_in_windows
    monkeypatch.setattr(
        type(model.generator),
        "make_in_windows",
        lambda self, noise, told, frames, *rest: (
            sizes.append(len(frames)) or make(self, noise, told, frames, *rest)
        ),
    )
    heard = []
    write_clips(
        tmp_path / "a",
        model,
        codec,
        Clips([{"labels": {}}] * 2, 3.01, {}),
        seed=4,
        heard=lambda path, after_s: heard.append((path.name, after_s)),
    )
    assert max(sizes) <= 2 * 24 < 3.01 * codec.frame_rate
    assert [name for name, _ in heard] == [".partial-00000.wav"]
    num_samples = round(3.01 * codec.sample_rate)
    latents = generate(model, codec.num_frames(num_samples), batch_size=2, seed=4)
    expected = codec.decode_latents(latents, num_samples).detach().numpy()
    for clip, row in enumerate(read_jsonl(tmp_path / "a" / "samples.jsonl")):
        found, rate = soundfile.read(tmp_path / "a" / row["file"], dtype="float32")
        assert (rate, len(found)) == (codec.sample_rate, num_samples)
        np.testing.assert_allclose(found, expected[clip, 0].clip(-1, 1), atol=2 / 32768)


def test_what_is_not_finite_is_no_wav(tmp_path):
    model = make_gan("wavegan")
    with torch.no_grad():
        next(model.generator.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite: lower train\.lr"):
        write_clips(tmp_path / "a", model, codec_of(model), Clips([{}], 0.1, {}))
    assert not (tmp_path / "a" / "samples.jsonl").exists()


def test_another_codec_is_refused(models, codec, tmp_path):
    with pytest.raises(UserError, match="the model's latents are of another codec"):
        write_clips(tmp_path / "a", models["wavegan"], codec, Clips([{}], 0.1, {}))


# ------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """`folder(kind)`: the model's, which is a run's."""
    root = tmp_path_factory.mktemp("runs")
    for kind, model in models.items():
        model.save_pretrained(root / kind / "model")
    return lambda kind: root / kind


def test_a_folder_is_all_that_it_needs(tokkata, folder, models, tmp_path):
    out = tmp_path / "out"
    told = tokkata(
        *("generate", folder("gansynth"), "--num", 3, "--pitch", "60,64", "--duration", 0.2),
        *("--seed", 7, "--batch-size", 2, "--out", out),
    )
    assert told.returncode == 0, told.stderr
    assert "\n3 clips of 0.2 s in " in told.stderr
    rows = read_jsonl(out / "samples.jsonl")
    assert [row["labels"] for row in rows] == [{"pitch": 60}, {"pitch": 64}, {"pitch": 60}]
    assert all("source_id" not in row for row in rows)
    expected = generate(models["gansynth"], 800, conditions={"pitch": [60, 64, 60]}, seed=7)
    for row, latents in zip(rows, expected, strict=True):
        found, rate = soundfile.read(out / row["file"], dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(found, latents[0].clamp(-1, 1).numpy(), atol=2 / 32768)


@pytest.mark.parametrize("kind", SECTIONS)
def test_nothing_need_be_said(tokkata, folder, models, kind, tmp_path):
    told = tokkata("generate", folder(kind), "--num", 2, "--out", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    config = models[kind].config
    for row in read_jsonl(tmp_path / "out" / "samples.jsonl"):
        frames = soundfile.info(tmp_path / "out" / row["file"]).frames
        assert frames == config.num_frames * config.codec_info.hop_length
        words = [c.name for c in config.conditions if c.kind != "sequence"]
        assert list(row["labels"]) == words
        assert ("source_id" in row) == bool(len(config.conditions))


def test_longer_clips_on_the_command_line(tokkata, folder, tmp_path):
    told = tokkata(
        "generate", folder("vqcpc_gan"), "--label", "pitch=62", "--duration", 1, "--out", tmp_path / "a"
    )
    assert told.returncode == 0, told.stderr
    (row,) = read_jsonl(tmp_path / "a" / "samples.jsonl")
    assert (row["labels"], row["source_id"]) == ({"pitch": 62}, "clip 1")
    assert soundfile.info(tmp_path / "a" / "00000.wav").frames == RATE
    told = tokkata("generate", folder("musika"), "--duration", 2, "--stream", "--out", tmp_path / "b")
    assert told.returncode == 0, told.stderr
    assert "first audio after" in told.stderr
    assert soundfile.info(tmp_path / "b" / "00000.wav").frames == 32000


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("gansynth", ("--steps", 5), "is an adversarial model, which has no --steps: see tokkata generate"),
        ("gansynth", ("--cfg-scale", 2, "--text", "a"), "which has no --cfg-scale, --text: see tokkata gen"),
        ("gansynth", ("--top-k", 5), "is an adversarial model, which has no --top-k: see tokkata generate"),
        ("gansynth", ("--stream",), "is a gansynth, which makes a clip at once: leave out --stream"),
        ("gansynth", ("--pitch", 61), "unknown value '61' for label 'pitch': known are 60, 62, 64"),
        ("gansynth", ("--duration", 1), "1 s are more than the 0.256 s that this gansynth makes: ask for"),
        ("gansynth", ("--duration", -1), "--duration -1 must be positive"),
        ("wavegan", ("--pitch", 60), "this model was trained without conditions"),
        ("drumgan", ("--label", "warmth=2"), "'warmth' goes from 0 to 1 in this model, which does not reach"),
        ("drumgan", ("--label", "warmth=hot"), "--label warmth=hot: a number is needed"),
        ("drumgan", ("--label", "warm=1"), "unknown condition 'warm' (did you mean 'warmth'?)"),
        (
            "vqcpc_gan",
            ("--label", "tokens=1"),
            "'tokens' is not of kind label: give it by tensors, in Python",
        ),
    ],
)
def test_mistakes_are_one_sentence(tokkata, folder, tmp_path, kind, options, sentence):
    told = tokkata("generate", folder(kind), *options, "--out", tmp_path / "out")
    assert told.returncode == 2
    assert sentence in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_such_model_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="holds no model"):
        load_gan(tmp_path)
    changed = tmp_path / "model"
    changed.mkdir()
    config = json.loads((folder("wavegan") / "model" / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"kind": "diffusion"}))
    with pytest.raises(UserError, match=r"is no adversarial model: its config\.json says kind 'diffusion'"):
        load_gan(changed)


def test_noise_of_a_clip_is_that_of_its_number(models):
    for model in models.values():
        frames = model.config.num_frames
        whole = clip_noise(model, frames, 3, range(4))
        assert torch.equal(whole[2:], clip_noise(model, frames, 3, range(2, 4)))
        assert whole.unique(dim=0).shape[0] == 4
