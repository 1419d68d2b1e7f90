"""EnCodec in training: its quantiser beside transformers', its codebooks' averages, and what is saved.

Shapes: B batch, N samples, K codebooks, V codebook size, d width of an entry, T frames.
"""

import numpy as np
import pytest
import torch
from transformers import EncodecModel

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.schema import EncodecModel as EncodecSection
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.rvq_encodec import build_encodec
from tokkata.tokenize.training.train_codec import train_codec

# 50 frames/s of 6 bits: 0.3 kbit/s a codebook.
TINY = {
    "kind": "encodec",
    "sample_rate_hz": 16000,
    "num_filters": 4,
    "upsampling_ratios": [5, 4, 4, 4],
    "hidden_size": 16,
    "codebook_size": 64,
    "bandwidths_kbps": [0.6, 1.2],
}
DISCRIMINATORS = {"periods": [], "fft_sizes": [64], "bands": [[0.0, 1.0]], "start_step": 2}


@pytest.fixture
def encodec_recipe(tmp_path, tiny_recipe):
    """`encodec_recipe(train={"steps": 3})`: an EnCodec's recipe whose audio is prepared."""

    def make(name="encodec", data=None, train=None, without=(), **model):
        settings = {"steps": 4, "batch_size": 2, "crop_s": 0.2, "save_every": 2, "log_every": 1}
        recipe = tiny_recipe(
            tmp_path,
            name=name,
            codec=None,
            data=data or {"kind": "synth", "num_clips": 12, "duration_s": 0.3},
            model={key: value for key, value in {**TINY, **model}.items() if key not in without},
            train={**settings, **(train or {})},
        )
        prepare(recipe)
        return recipe

    return make


def curve(recipe, name):
    return [row[name] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if name in row]


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return build_encodec(EncodecSection(**TINY), noise(16, 1, 16000, seed=1))


def test_what_is_saved_is_a_codec_of_the_hub(encodec_recipe):
    recipe = encodec_recipe(adversarial=DISCRIMINATORS, balancer={"decay": 0.5}, stft_weight=1.0)
    train_codec(recipe)
    folder = recipe.folder / "model"
    model = EncodecModel.from_pretrained(folder)
    audio = noise(2, 1, 3200)
    for kbps, num_codebooks in ((0.6, 2), (1.2, 4)):
        codec = load_codec(str(folder), bandwidth_kbps=kbps)
        assert (codec.sample_rate, codec.hop_length, codec.num_codebooks) == (16000, 320, num_codebooks)
        theirs = model.encode(audio, bandwidth=kbps)
        codes = codec.encode(audio)
        assert torch.equal(codes, theirs.audio_codes[0])
        decoded = model.decode(theirs.audio_codes, theirs.audio_scales).audio_values
        torch.testing.assert_close(codec.decode(codes), decoded, rtol=1e-4, atol=1e-6)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "bandwidth_kbps=1.2" in card
    assert "transformers.EncodecModel.from_pretrained" in card
    assert curve(recipe, "codec/commitment")[-1] > 0
    assert len(curve(recipe, "discriminator/loss")) == 2


def test_the_pass_is_transformers(codec):
    """Each clip at its own bandwidth."""
    audio = noise(2, 1, 3200)
    codec.eval()
    with torch.no_grad():
        out = codec(audio, torch.tensor([2, 4]))
        for row, kbps in enumerate((0.6, 1.2)):
            theirs = codec.network(audio[row : row + 1], bandwidth=kbps)
            num_codebooks = theirs.audio_codes.shape[2]
            assert torch.equal(out.codes[row, :num_codebooks], theirs.audio_codes[0, 0])
            torch.testing.assert_close(out.audio[row], theirs.audio_values[0], rtol=1e-4, atol=1e-6)


def test_every_stage_moves_the_encoder(codec):
    """Unlike with the published quantiser, whose commitment terms have no gradient after the first stage."""
    last = codec.network.encoder.layers[-1].conv.bias
    first = codec(noise(1, 1, 3200), torch.tensor([1])).commitment
    (one,) = torch.autograd.grad(first, last)
    all_of_them = codec(noise(1, 1, 3200)).commitment * codec.num_codebooks
    (four,) = torch.autograd.grad(all_of_them, last)
    assert (four - one).norm() > 0.1 * one.norm()


def test_entries_are_averages_of_what_they_stood_for(codec):
    """With no memory, each entry that is used is the mean of what it stood for."""
    codec._decay = 0.0
    out = codec(noise(8, 1, 3200))
    counts = torch.stack([torch.bincount(out.codes[:, k].flatten(), minlength=64) for k in range(4)]).float()
    codec.follow(counts, out.codes, out.asked.detach())
    for k, layer in enumerate(codec.network.quantizer.layers):
        frames = out.asked[:, k].detach().transpose(1, 2).flatten(0, 1)
        codes = out.codes[:, k].flatten()
        for entry in codes.unique():
            mean = frames[codes == entry].mean(0)
            torch.testing.assert_close(layer.codebook.embed[entry], mean, rtol=1e-3, atol=1e-6)


def test_averages_decay(codec):
    book = codec.network.quantizer.layers[0].codebook
    before = book.embed[3].clone()
    codes = torch.full((1, 4, 5), 3)
    asked = torch.ones(1, 4, 16, 5)
    counts = torch.zeros(4, 64)
    counts[:, 3] = 5
    codec.follow(counts, codes, asked)
    assert book.cluster_size[3] == pytest.approx(0.99 + 0.05)
    expected = (0.99 * before + 0.05) / (0.99 + 0.05)
    torch.testing.assert_close(book.embed[3], expected, rtol=1e-3, atol=1e-5)


def test_a_replaced_entry_stays_where_it_was_put(codec):
    """The published update puts it back in the next step."""
    codec.replace(1, torch.tensor([5]), torch.full((1, 16), 3.0))
    codec.follow(torch.zeros(4, 64), torch.zeros(0, 4, 5).long(), torch.zeros(0, 4, 16, 5))
    torch.testing.assert_close(codec.network.quantizer.layers[1].codebook.embed[5], torch.full((16,), 3.0))


def test_clips_are_coded_at_the_bandwidths(codec):
    drawn = codec.draw_used(np.random.default_rng(0), 1000)
    numbers, times = np.unique(drawn, return_counts=True)
    assert numbers.tolist() == [2, 4]
    assert times.min() > 400


def test_it_learns(encodec_recipe):
    recipe = encodec_recipe(train={"steps": 40, "lr": 3e-3, "batch_size": 4, "save_every": 40}, num_filters=8)
    train_codec(recipe)
    values = curve(recipe, "mel")
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_resumed_is_bitwise_undisturbed(encodec_recipe):
    changed = {"dead_codes": {"below": 0.5, "decay": 0.5}}
    whole, parts = encodec_recipe("whole", **changed), encodec_recipe("parts", **changed)
    train_codec(whole)
    half = parts.model_copy(update={"train": parts.train.model_copy(update={"steps": 2})})
    train_codec(half)
    train_codec(parts)
    one, other = ((recipe.folder / "model" / "model.safetensors").read_bytes() for recipe in (whole, parts))
    assert one == other
    assert sum(curve(whole, "codebooks/dead")) > 0


def test_training_begins_from_weights_that_are_there(encodec_recipe, codec, tmp_path):
    codec.save(tmp_path / "source", "float16")
    shape = ("num_filters", "upsampling_ratios", "hidden_size", "codebook_size", "bandwidths_kbps")
    recipe = encodec_recipe(
        source=str(tmp_path / "source"), without=shape, dead_codes=None, train={"steps": 1, "lr": 1e-12}
    )
    train_codec(recipe)
    before, after = (
        EncodecModel.from_pretrained(folder, dtype=torch.float32)
        for folder in (tmp_path / "source", recipe.folder / "model")
    )
    audio = noise(1, 1, 3200)
    with torch.no_grad():
        torch.testing.assert_close(after.encoder(audio), before.encoder(audio), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codebook_size": 60}, "codebook_size 60 is no power of 2"),
        (
            {"bandwidths_kbps": [0.1]},
            r"bandwidths_kbps \[0\.1\] must grow by at least one codebook each, which takes 0\.3 kbit/s",
        ),
        ({"bandwidths_kbps": [0.6, 0.7]}, "must grow by at least one codebook each"),
        ({"source": "pocket"}, "num_filters is that of source pocket: remove it"),
    ],
)
def test_settings_that_cannot_be(encodec_recipe, changed, message):
    with pytest.raises(UserError, match=message):
        encodec_recipe(**changed)


def test_a_source_that_is_none(encodec_recipe):
    shape = ("num_filters", "upsampling_ratios", "hidden_size", "codebook_size", "bandwidths_kbps")
    with pytest.raises(UserError, match=r"model\.source pocket is not an EnCodec of one channel"):
        train_codec(encodec_recipe(source="pocket", without=shape))
