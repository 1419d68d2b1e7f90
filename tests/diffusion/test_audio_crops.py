"""Training from audio with the codec in the loop.

Shapes: D latent width, T frames.
"""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import check_recipe
from tokkata.core.stages import stages_of
from tokkata.diffusion import train as module
from tokkata.diffusion.prepare import prepare
from tokkata.diffusion.train import audio_crops, train_diffusion
from tokkata.tests.made_networks import save_oobleck
from tokkata.tokenize.codec import load_codec_from_info
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.store import TokenStore
from tokkata.tokenize.training.audio_store import AudioStore


@pytest.fixture
def recipe(diffusion_recipe, tmp_path):
    """`recipe(name, **model)`: over notes and a tiny VAE, whose stages before `train` are done."""

    def make(name="run", **model):
        values = diffusion_recipe(name=name).model_dump()
        values["data"] = {"kind": "synth", "num_clips": 12, "duration_s": 0.1}
        values["codec"] = {"kind": "oobleck", "id": str(save_oobleck(tmp_path / "vae", channels=1))}
        shape = {"kind": "dit", "dim": 16, "num_layers": 1, "num_heads": 2}
        values["model"] = shape | {"from_audio": True} | model
        values["train"] |= {"steps": 4, "batch_size": 4, "crop_s": 0.05, "save_every": 2}
        found = check_recipe(values)
        tokenize(found)
        prepare(found)
        return found

    return make


@pytest.fixture
def job_of(monkeypatch):
    def job(recipe):
        handed = []
        monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
        train_diffusion(recipe)
        monkeypatch.undo()
        return handed[0]

    return job


def test_the_stages(recipe):
    names = [stage.name for stage in stages_of(recipe())]
    assert names == ["tokenize", "prepare", "train", "generate", "eval"]


def test_a_batch_is_a_function_of_its_rows(recipe, job_of):
    batch = job_of(recipe(sample_posterior=True, conditions=["pitch", "seconds_start"])).batch
    whole = batch(3, range(4))
    assert whole.keys() >= {"audio", "posterior", "noise", "time", "values/pitch"}
    assert "latents" not in whole
    for ends in ([0, 1, 4], [0, 2, 3, 4]):
        parts = [batch(3, range(start, stop)) for start, stop in pairwise(ends)]
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name


@pytest.mark.parametrize("drawn", [False, True])
def test_what_is_encoded_is_the_clips_audio(recipe, job_of, drawn):
    found = recipe(sample_posterior=drawn, conditions=["seconds_start"], condition_dropout=0.0)
    store = TokenStore(found.folder / "tokens")
    split = store.split("train")
    job = job_of(found)
    num_frames = job.modules["model"].network.max_frames
    crops = audio_crops(found, store, split, num_frames)
    samples = AudioStore(found.folder / "audio")
    codec = crops.codec
    between = 0
    for step in range(3):
        batch = job.batch(step, range(4))
        latents = crops.encoded(batch)["latents"]
        assert latents.shape == (4, store.info.latent_dim, num_frames)
        for row in range(4):
            posterior = codec.encode_posterior(batch["audio"][row : row + 1])
            wanted = posterior.mean + (posterior.scale * batch["posterior"][row] if drawn else 0)
            torch.testing.assert_close(latents[row : row + 1], wanted, atol=1e-4, rtol=1e-4)
            crop = batch["audio"][row].numpy()
            starts = [
                start
                for clip in samples.split("train")
                for start in range(clip.num_samples - crop.shape[1] + 1)
                if samples.crop_channels(clip, start, 4)[0].tolist() == crop[0, :4].tolist()
                and (samples.crop_channels(clip, start, crop.shape[1]) == crop).all()
            ]
            assert starts
            between += starts[0] % codec.hop_length > 0
            told = batch["values/seconds_start"][row, 0].item() * store.info.frame_rate
            assert any(round(told) == start // codec.hop_length for start in starts)
    assert between  # crops begin where no stored frame does


def test_stopped_and_resumed_is_bitwise_undisturbed(recipe, monkeypatch):
    whole, parts = (recipe(name, sample_posterior=True) for name in ("whole", "parts"))
    train_diffusion(whole)
    loop_loss, calls = module.loss, []

    def fail(modules, batch):
        if modules["model"].training:
            calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("gone away")
        return loop_loss(modules, batch)

    monkeypatch.setattr(module, "loss", fail)
    with pytest.raises(RuntimeError, match="gone away"):
        train_diffusion(parts)
    monkeypatch.undo()
    train_diffusion(parts)
    one, two = (load_file(one.folder / "model" / "model.safetensors") for one in (whole, parts))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    assert any("valid/loss" in row for row in read_jsonl(whole.folder / "logs" / "train.jsonl"))


def test_clips_that_are_not_there_are_missed(recipe):
    found = recipe()
    clips = found.folder / "audio" / "clips.json"
    clips.write_text(clips.read_text().replace('"id": "', '"id": "other'))
    with pytest.raises(UserError, match=r"audio/ lacks clips that tokens/ has: run the stage prepare again"):
        train_diffusion(found)


def test_previews_are_heard_through_the_codec_of_the_loop(recipe, monkeypatch):
    """Which is not loaded again, and is not changed."""
    without, with_ = recipe("without"), recipe("with")
    changes = {
        "train": with_.train.model_copy(update={"previews": 2}),
        "generate": with_.generate.model_copy(update={"duration_s": 0.05}),
    }
    with_ = with_.model_copy(update=changes)
    loaded = []

    def load(info):
        loaded.append(info)
        return load_codec_from_info(info)

    monkeypatch.setattr(module, "load_codec_from_info", load)
    train_diffusion(without)
    train_diffusion(with_)
    assert len(loaded) == 2
    one, two = (load_file(one.folder / "model" / "model.safetensors") for one in (without, with_))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    (folder,) = (with_.folder / "previews").iterdir()
    assert sorted(path.name for path in folder.glob("*.wav")) == ["00000.wav", "00001.wav"]
