"""Codebooks between two steps: dead entries, what they become, and that processes do not matter.

Shapes: K codebooks, V codebook size, d width of an entry, T frames.
"""

import pytest
import torch
from torch import nn

from tokkata.core.schema_trained_codecs import DeadCodes
from tokkata.tokenize.fidelity import codebook_efficiency
from tokkata.tokenize.training import codebook_upkeep
from tokkata.tokenize.training.codebook_upkeep import ASKED, CODES, CodebookUpkeep, frames_of_all
from tokkata.tokenize.training.kmeans import start_codebooks
from tokkata.tokenize.training.rvq import RvqCodec

K, V, D, T = 2, 8, 3, 5


class Codebooks(RvqCodec):
    """Nothing but codebooks."""

    def __init__(self):
        super().__init__(K, V, 1.0)
        self.entries = nn.Parameter(torch.zeros(K, V, D))

    def forward(self, audio, num_used=None):
        raise NotImplementedError

    def draw_used(self, rng, batch_size):
        raise NotImplementedError

    def find_codebooks(self, examples, least_use=0.0):
        raise NotImplementedError

    def optimizer(self, train):
        raise NotImplementedError

    def save(self, folder, store):
        raise NotImplementedError

    def replace(self, codebook, entries, values):
        with torch.no_grad():
            self.entries[codebook, entries] = values


def micro_batch(seed, num_rows=4, entries=range(V)):
    draw = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(list(entries))
    return {
        CODES: allowed[torch.randint(len(allowed), (num_rows, K, T), generator=draw)],
        ASKED: torch.randn(num_rows, K, D, T, generator=draw),
    }


def test_an_entry_out_of_use_becomes_a_frame_of_the_batch():
    codec = Codebooks()
    upkeep = CodebookUpkeep(codec, DeadCodes(below=0.5, decay=0.5), seed=0)
    used = range(5)
    assert upkeep(0, [micro_batch(0, entries=used)])["codebooks/dead"] == 0
    assert torch.count_nonzero(codec.entries) == 0
    batch = micro_batch(1, entries=used)
    assert upkeep(1, [batch])["codebooks/dead"] == K * 3
    for codebook in range(K):
        frames = batch[ASKED][:, codebook].transpose(1, 2).flatten(0, 1)
        changed = codec.entries[codebook].abs().sum(1) > 0
        assert changed.tolist() == [False] * 5 + [True] * 3
        found = (codec.entries[codebook, 5:, None] == frames[None]).all(-1)
        assert found.sum(1).tolist() == [1, 1, 1]
        assert found.any(0).sum() == 3, "different frames"
    assert (codec.use[:, 5:] == 1).all(), "time to prove themselves"


def test_without_replacement_they_are_only_counted():
    codec = Codebooks()
    upkeep = CodebookUpkeep(codec, None, seed=0)
    for step in range(400):
        told = upkeep(step, [micro_batch(step, entries=range(4))])
    assert told["codebooks/dead"] == K * 4
    assert told["codebooks/efficiency"] == pytest.approx(2 / 3, abs=0.04)
    assert torch.count_nonzero(codec.entries) == 0


def test_more_dead_entries_than_frames():
    codec = Codebooks()
    codec.use.fill_(0.01)
    batch = micro_batch(0, num_rows=1, entries=[0])
    told = CodebookUpkeep(codec, DeadCodes(below=0.5, decay=0.9), seed=0)(0, [batch])
    assert told["codebooks/dead"] == K * 7
    assert [(codec.entries[k].abs().sum(1) > 0).sum().item() for k in range(K)] == [T, T]


def test_micro_batches_are_one_batch():
    whole = micro_batch(3)
    halves = [{name: t[rows] for name, t in whole.items()} for rows in (slice(0, 2), slice(2, 4))]
    codecs = [Codebooks(), Codebooks()]
    for codec, batches in zip(codecs, ([whole], halves), strict=True):
        CodebookUpkeep(codec, DeadCodes(below=0.9, decay=0.5), seed=1)(7, batches)
    assert torch.equal(codecs[0].entries, codecs[1].entries)
    assert torch.equal(codecs[0].use, codecs[1].use)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_find_the_same_frames(monkeypatch, num_processes):
    """What each would add to the sum, added up."""
    frames = torch.randn(8, D)
    chosen = torch.tensor([7, 0, 3])
    monkeypatch.setattr(codebook_upkeep, "reduce", lambda tensor, reduction: tensor)
    parts = []
    for process, mine in enumerate(frames.chunk(num_processes)):
        state = type("State", (), {"process_index": process, "num_processes": num_processes})
        monkeypatch.setattr(codebook_upkeep, "PartialState", state)
        parts.append(frames_of_all(mine, chosen))
    assert torch.equal(torch.stack(parts).sum(0), frames[chosen])


def test_k_means_finds_the_clusters():
    torch.manual_seed(0)
    centres = 10 * torch.randn(V, D)
    frames = centres.repeat(50, 1) + 0.01 * torch.randn(50 * V, D)
    entries = torch.cat([start_codebooks(frames, V) for _ in range(3)])
    assert torch.cdist(centres, entries).amin(1).amax() < 0.1


def test_k_means_by_direction():
    """Lengths do not matter: rays are told apart that cross each other's spheres."""
    torch.manual_seed(0)
    rays = torch.nn.functional.normalize(torch.randn(V, D))
    lengths = torch.logspace(-2, 2, 50).repeat_interleave(V)[:, None]
    entries = torch.cat(
        [start_codebooks(rays.repeat(50, 1) * lengths, V, by_direction=True) for _ in range(3)]
    )
    assert (rays @ torch.nn.functional.normalize(entries).T).amax(1).amin() > 0.999


def test_k_means_that_gives_up_what_is_hardly_used_is_more_even():
    """Of normally distributed frames most are in the middle; far ones alone would each get an entry."""
    torch.manual_seed(0)
    frames = torch.randn(20000, D) ** 3

    def efficiency(least_use):
        entries = start_codebooks(frames, 64, least_use=least_use)
        codes = torch.cdist(frames, entries).argmin(1)
        return codebook_efficiency(codes[None, None], 64).efficiency

    assert efficiency(0.5) > efficiency(0.0) + 0.02


def test_k_means_of_fewer_frames_than_entries():
    entries = start_codebooks(torch.randn(3, D), V)
    assert entries.shape == (V, D)
    assert torch.isfinite(entries).all()
