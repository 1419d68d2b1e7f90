"""A DAC's codebooks: as moving averages instead of by gradient, and found anew in a codec that is there.

Shapes: B batch, N samples, K codebooks, V codebook size, d width of an entry, T frames.
"""

import pytest
import torch

from tokkata.core.schema import DacModel, Train
from tokkata.tokenize.families.codec_dac import build_original, to_hub
from tokkata.tokenize.fidelity import codebook_counts, codebook_efficiency
from tokkata.tokenize.training.kmeans import LEAST_USE
from tokkata.tokenize.training.rvq_dac import RvqDac, build_dac

K, V = 4, 64


@pytest.fixture
def make(tiny_dac):
    """`make(codebook_decay=0.9)`: a small codec with random weights, and its settings."""

    def make(**changed):
        torch.manual_seed(0)
        config = DacModel(
            **{**tiny_dac, "num_codebooks": K, "codebook_size": V, "start": "random", **changed}
        )
        return RvqDac(build_original(config), config)

    return make


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entries_of(codec, number):
    return codec.network.quantizer.quantizers[number].codebook.weight


def test_entries_are_averages_of_what_they_stood_for(make):
    """With no memory, each entry that is used is the mean of what it stood for, and no other one moves."""
    codec = make(codebook_decay=0.0)
    out = codec(noise(8, 1, 6400))
    before = [entries_of(codec, k).clone() for k in range(K)]
    codec.follow(codebook_counts(out.codes, V).float(), out.codes, out.asked.detach())
    for k in range(K):
        frames = out.asked[:, k].detach().transpose(1, 2).flatten(0, 1)
        codes = out.codes[:, k].flatten()
        for entry in range(V):
            expected = frames[codes == entry].mean(0) if (codes == entry).any() else before[k][entry]
            torch.testing.assert_close(entries_of(codec, k)[entry], expected, rtol=1e-4, atol=1e-6)


def test_averages_decay(make):
    """However many frames a step has: an even use is what its counts are related to."""
    codec = make(codebook_decay=0.9)
    before = entries_of(codec, 0)[3].detach().clone()
    counts = torch.zeros(K, V)
    counts[:, 3], counts[:, 4] = 5, 15
    codes = torch.cat([torch.full((1, K, 5), 3), torch.full((1, K, 15), 4)], 2)
    codec.follow(counts, codes, torch.ones(1, K, 8, 20))
    use = V * 0.25
    assert codec.use_average[0, 3] == pytest.approx(0.9 + 0.1 * use)
    torch.testing.assert_close(
        entries_of(codec, 0)[3].detach(), (0.9 * before + 0.1 * use) / (0.9 + 0.1 * use)
    )


def test_a_replaced_entry_stays_where_it_was_put(make):
    codec = make(codebook_decay=0.9)
    codec.replace(1, torch.tensor([5]), torch.full((1, 8), 3.0))
    counts = torch.zeros(K, V)
    counts[:, 0] = 1
    codec.follow(counts, torch.zeros(1, K, 1).long(), torch.zeros(1, K, 8, 1))
    torch.testing.assert_close(entries_of(codec, 1)[5].detach(), torch.full((8,), 3.0))


@pytest.mark.parametrize("decay", [None, 0.99])
def test_they_learn_by_gradient_or_by_averages(make, decay):
    codec = make(codebook_decay=decay)
    optimized = {id(p) for group in codec.optimizer(Train(steps=1)).param_groups for p in group["params"]}
    entries = entries_of(codec, 0)
    out = codec(noise(2, 1, 3200))
    (out.audio.square().sum() + codec.codebook_weight * out.codebook + out.commitment).backward()
    has_gradient = entries.grad is not None and bool(entries.grad.abs().sum() > 0)
    assert (id(entries) in optimized, has_gradient) == ((True, True) if decay is None else (False, False))
    assert all(p.grad is not None for p in codec.parameters() if p.requires_grad)


def test_codebooks_are_found_anew(make, tiny_dac, tmp_path):
    """They stand for more of what the encoder makes than those of the source, and are used more evenly."""
    to_hub(make().network).save_pretrained(tmp_path)
    audio = noise(64, 1, 6400) * torch.logspace(-2, 0, 64)[:, None, None]
    unheard = noise(16, 1, 6400, seed=1) * torch.logspace(-2, 0, 16)[:, None, None]
    missed, evenness = [], []
    for refit in (False, True):
        codec = build_dac(DacModel(kind="dac", source=str(tmp_path)), audio).eval()
        if refit:
            codec.find_codebooks(audio, LEAST_USE)
        with torch.no_grad():
            out = codec(unheard)
            latents = codec.network.encoder(unheard)
            missed.append(float((codec.network.quantizer.from_codes(out.codes)[0] - latents).square().mean()))
        evenness.append(codebook_efficiency(out.codes, V).efficiency)
    assert missed[1] < 0.9 * missed[0]
    assert evenness[1] > evenness[0] + 0.05


@pytest.mark.parametrize("setting", ["codebook_weight", "codebook_lr_scale"])
def test_what_is_about_gradients_is_refused_beside_averages(setting):
    with pytest.raises(ValueError, match=f"{setting} is about entries that learn by gradient"):
        DacModel(kind="dac", codebook_decay=0.9, **{setting: 2.0})


def test_a_resolved_recipe_of_averages_can_be_read_again():
    config = DacModel(kind="dac", codebook_decay=0.9, source="pocket")
    assert DacModel.model_validate(config.model_dump()) == config


def test_codebooks_of_nothing_are_not_found_anew():
    with pytest.raises(ValueError, match="refit_codebooks is about those of source, which is not given"):
        DacModel(kind="dac", refit_codebooks=True)
