"""Interpolation: its ends are the clips of both seeds, its noise is as likely as any, and its files.

Shapes: S steps of the walk.
"""

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.files import read_jsonl
from tokkata.gan.generate import generate
from tokkata.gan.interpolate import between, walk
from tokkata.tests.gan.tiny_gans import NUM_SAMPLES, make_gan
from tokkata.tokenize.codec import load_codec


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_normal_walk_turns_and_keeps_its_length(seed, share):
    rng = torch.Generator().manual_seed(seed)
    one = torch.randn(3, 8, generator=rng).double()
    other = torch.randn(3, 8, generator=rng).double()
    other *= one.norm(dim=-1, keepdim=True) / other.norm(dim=-1, keepdim=True)
    found = between(one, other, share, "normal")
    torch.testing.assert_close(found.norm(dim=-1), one.norm(dim=-1))
    angle = torch.arccos(torch.cosine_similarity(one, other, dim=-1).clamp(-1, 1))
    turned = torch.arccos(torch.cosine_similarity(one, found, dim=-1).clamp(-1, 1))
    torch.testing.assert_close(turned, share * angle, atol=1e-6, rtol=1e-6)


def test_steps_are_equal_and_both_ends_are_there():
    one, other = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    turned = walk(one, other, 5, "normal")
    assert torch.equal(turned[0], one)
    assert torch.equal(turned[-1], other)
    straight = walk(one, other, 5, "uniform")
    torch.testing.assert_close(straight, one + torch.linspace(0, 1, 5)[:, None, None] * (other - one))


def test_the_same_place_twice_is_no_way():
    one = torch.randn(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walk(one, one, 4, "normal"), one.expand(4, -1))
    torch.testing.assert_close(walk(one, 2 * one, 3, "normal")[1], 1.5 * one)


@pytest.mark.parametrize("kind", ["wavegan", "gansynth", "vqcpc_gan", "musika"])
def test_the_ends_are_the_clips_of_both_seeds(tokkata, tiny_codec, tmp_path, kind):
    codec = load_codec(str(tiny_codec), num_codebooks=4) if kind == "musika" else None
    model = make_gan(kind, codec)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    told = tokkata("interpolate", tmp_path, "--from", 3, "--to", 8, "--steps", 4, "--out", out)
    assert told.returncode == 0, told.stderr
    rows = read_jsonl(out / "samples.jsonl")
    assert [(row["from_seed"], row["to_seed"]) for row in rows] == [(3, 8)] * 4
    assert [row["share"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len({str(row["labels"]) for row in rows}) == 1  # all are told the same
    said = {}
    if kind == "gansynth":
        said = {"pitch": [rows[0]["labels"]["pitch"]]}
    elif kind == "vqcpc_gan":
        example = next(one for one in model.config.examples if one["id"] == rows[0]["source_id"])
        tokens = torch.eye(4)[example["told"]["tokens"]]
        said = {"pitch": [example["told"]["pitch"]], "tokens": [tokens]}
    audio = [soundfile.read(out / row["file"], dtype="float32")[0] for row in rows]
    frames = model.config.num_frames
    for found, seed in ((audio[0], 3), (audio[-1], 8)):
        latents = generate(model, frames, conditions=said, seed=seed)
        expected = latents if codec is None else codec.decode_latents(latents)
        np.testing.assert_allclose(
            found, expected[0, 0].detach().clamp(-1, 1).numpy()[: len(found)], atol=2 / 32768
        )
    assert not np.allclose(audio[0], audio[1], atol=1e-3)
    joined, _ = soundfile.read(out / "all.wav", dtype="float32")
    np.testing.assert_array_equal(joined, np.concatenate(audio))
    assert matplotlib.image.imread(out / "interpolation.png").ndim == 3


def test_mistakes_are_one_sentence(tokkata, tmp_path):
    make_gan("gansynth").save_pretrained(tmp_path / "model")
    for options, sentence in [
        (("--duration", 1), "1 s are more than the 0.256 s that this gansynth makes: ask for shorter clips"),
        (("--pitch", 61), "unknown value '61' for label 'pitch': known are 60, 62, 64"),
        (("--pitch", "60,62"), "2 values of 'pitch' for 1 clip: ask for more clips"),
    ]:
        told = tokkata("interpolate", tmp_path, *options, "--out", tmp_path / "out")
        assert (told.returncode, told.stderr.strip().endswith(sentence)) == (2, True), told.stderr
        assert not (tmp_path / "out").exists()


def test_pitch_holds_for_all_steps(tokkata, tmp_path):
    make_gan("gansynth").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    told = tokkata("interpolate", tmp_path, "--pitch", 62, "--duration", 0.2, "--steps", 2, "--out", out)
    assert told.returncode == 0, told.stderr
    assert [row["labels"] for row in read_jsonl(out / "samples.jsonl")] == [{"pitch": 62}] * 2
    assert soundfile.info(out / "all.wav").frames == 2 * 800 < 2 * NUM_SAMPLES
