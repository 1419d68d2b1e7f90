"""Measuring codecs: figures in closed form, with Opus and without, and what is left out."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokkata.core.audio import AudioError, Samples
from tokkata.core.errors import UserError
from tokkata.eval.embedding import embed_clips, load_embedding
from tokkata.eval.fidelity.measure import Item, measure
from tokkata.eval.fidelity.table import table
from tokkata.eval.frechet import GaussianStats, frechet_distance
from tokkata.tests.eval.fidelity.made_codecs import INFO, K, NoisyCodec, V
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.fidelity import codebook_efficiency


def run(codecs, items, embedding, **settings):
    return measure(codecs, items, embedding, data="three tones", **settings)


def test_the_figures_of_a_known_codec(waves, as_items, noisy_codec, no_opus, quick_embedding):
    scores = run({"noisy": noisy_codec}, as_items(waves), quick_embedding).fidelity
    assert (scores.num_clips, scores.rejected) == (3, [])
    assert scores.duration_s == pytest.approx(3 * 0.4)
    (row,) = scores.rows
    assert (row.name, row.codec, row.sample_rate, row.channels) == ("noisy", "noisy", 16000, 1)
    assert row.bitrate_kbps == pytest.approx(50 * K * math.log2(V) / 1000)
    assert row.si_sdr_db == pytest.approx(20.0, abs=1e-3)
    assert row.mel_distance == pytest.approx(np.mean([one.mel_distance for one in row.clips.values()]))
    assert row.stft_distance > 0
    assert list(row.clips) == ["a", "b", "c"]
    assert min(row.encode_speed, row.decode_speed) > 0
    assert row.codebooks.used == [1, 2]
    assert row.unused == [15, 14]
    assert row.codebooks.entropy_bits == pytest.approx([0.0, 1.0])
    assert row.codebooks.efficiency == pytest.approx(1 / (K * math.log2(V)))
    assert row.effective_kbps == pytest.approx(50 * 1.0 / 1000)
    assert (row.sounding_share, row.sounding_efficiency) == (1.0, row.codebooks.efficiency)
    assert row.latents is None


def test_silent_frames_are_told_apart(waves, as_items, tiny_codec, no_opus, quick_embedding):
    codec = load_codec(str(tiny_codec))
    halves = [np.concatenate([wave, np.zeros_like(wave)]) for wave in waves]
    (row,) = run({"tiny": codec}, as_items(halves), quick_embedding).fidelity.rows
    # A frame that holds a single sound sample sounds.
    codes = [codec.encode(torch.from_numpy(half)[None, None])[0] for half in halves]
    sounding = torch.cat([one[:, : one.shape[1] // 2] for one in codes], dim=1)
    assert row.sounding_share == pytest.approx(0.5)
    assert row.sounding_efficiency == pytest.approx(
        codebook_efficiency(sounding[None], codec.codebook_size).efficiency
    )


def test_the_frechet_distance_is_that_of_the_sets(waves, as_items, tiny_codec, no_opus, quick_embedding):
    codec = load_codec(str(tiny_codec))
    (row,) = run({"tiny": codec}, as_items(waves), quick_embedding).fidelity.rows
    decoded = [codec.reconstruct(torch.from_numpy(wave)[None, None])[0].numpy() for wave in waves]
    real = [wave[None] for wave in waves]
    sets = [
        GaussianStats.from_embeddings(np.concatenate(embed_clips(quick_embedding, clips, 16000)))
        for clips in (decoded, real)
    ]
    assert row.fad == pytest.approx(frechet_distance(*sets), rel=1e-6)


def test_the_floor_is_the_distance_of_halves(waves, as_items, noisy_codec, no_opus, quick_embedding):
    same = [waves[0]] * 4
    scores = run({"noisy": noisy_codec}, as_items(same), quick_embedding).fidelity
    assert scores.floor == pytest.approx(0.0, abs=1e-6)
    assert scores.rows[0].fad > 0
    assert run({"noisy": noisy_codec}, as_items(waves), quick_embedding).fidelity.floor > 0
    assert run({"noisy": noisy_codec}, as_items(waves[:1]), quick_embedding).fidelity.floor is None


def test_a_vae_tells_its_latents(waves, as_items, mean_vae, copying_opus, quick_embedding):
    scores = run({"means": mean_vae}, as_items(waves), quick_embedding).fidelity
    (row,) = scores.rows
    assert (row.bitrate_kbps, row.effective_kbps, row.codebooks, row.unused) == (None, None, None, None)
    assert row.latents.numbers_per_s == pytest.approx(2 * 200)
    assert row.latents.mean == pytest.approx([0.0, 2.0], abs=1e-3)
    assert row.latents.std[1] == 0.0
    assert (row.sample_rate, row.channels) == (8000, 2)
    assert "means has latents and no bitrate" in scores.notes[0]
    assert "means: 400 numbers a second; of its 2 latents, means" in table(scores)


def test_without_opus_the_table_says_so(waves, as_items, noisy_codec, no_opus, quick_embedding):
    lines = table(run({"noisy": noisy_codec}, as_items(waves), quick_embedding).fidelity).splitlines()
    assert lines[0] == "3 clips of three tones, 1 s"
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| codec", "| noisy"]
    assert lines[-1] == ("no rows for Opus: opusenc and opusdec are not installed (Debian: opus-tools)")


def test_half_of_opus_is_not_enough(waves, as_items, noisy_codec, monkeypatch, quick_embedding):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "opusdec" else name)
    scores = run({"noisy": noisy_codec}, as_items(waves), quick_embedding).fidelity
    assert len(scores.rows) == 1
    assert scores.notes == ["no rows for Opus: opusdec is not installed (Debian: opus-tools)"]


def test_opus_is_measured_on_the_same_clips(waves, as_items, copying_opus, quick_embedding):
    codec = NoisyCodec(replace(INFO, frame_rate=1000.0))
    scores = run({"noisy": codec}, as_items(waves), quick_embedding).fidelity
    assert scores.notes == []
    assert [row.name for row in scores.rows] == ["noisy", "Opus 8 kbit/s", "Opus 16 kbit/s"]
    for row in scores.rows[1:]:
        # 16 bits a sample and 44 bytes of header in 0.4 s.
        assert row.bitrate_kbps == pytest.approx(16 * 16 + 44 * 8 / 0.4 / 1000)
        assert row.codec is None
        assert row.si_sdr_db > 60
        assert row.mel_distance < scores.rows[0].mel_distance
        assert row.fad == pytest.approx(0.0, abs=1e-3)
    encoders = [command for command in copying_opus if command[0] == "opusenc"]
    bitrates = [command[command.index("--bitrate") + 1] for command in encoders]
    assert bitrates == ["8", "16"] * 3
    assert len(copying_opus) == 12


@pytest.mark.skipif(not (shutil.which("opusenc") and shutil.which("opusdec")), reason="needs opus-tools")
def test_real_opus(waves, as_items, quick_embedding):
    codec = NoisyCodec(replace(INFO, frame_rate=750.0))
    rows = run(
        {"noisy": codec}, as_items([np.tile(wave, 5) for wave in waves]), quick_embedding
    ).fidelity.rows
    low, high = rows[1:]
    assert (low.name, high.name) == ("Opus 6 kbit/s", "Opus 12 kbit/s")
    assert high.mel_distance < low.mel_distance
    assert high.si_sdr_db > low.si_sdr_db
    assert low.bitrate_kbps < high.bitrate_kbps < 30


def test_codecs_of_other_rates_are_measured_at_their_own(
    waves, as_items, noisy_codec, mean_vae, no_opus, quick_embedding
):
    codecs = {"noisy": noisy_codec, "means": mean_vae}
    scores = run(codecs, as_items(waves), quick_embedding, num_players=2)
    rows = scores.fidelity.rows
    assert [(row.sample_rate, row.channels) for row in rows] == [(16000, 1), (8000, 2)]
    assert any("at its own sample rate and channels" in note for note in scores.fidelity.notes)
    assert "| means | 8 stereo | – | – |" in table(scores.fidelity)
    assert len(scores.excerpts) == 2
    for excerpt in scores.excerpts:
        assert excerpt.original.shape == (1, 6400)
        assert {name: audio.shape for name, audio in excerpt.decoded.items()} == {
            "noisy": (1, 6400),
            "means": (2, 3200),
        }


def test_a_codec_is_not_judged_by_itself_unsaid(waves, as_items, no_opus):
    scores = run({"mine": load_codec("pocket")}, as_items(waves[:1]), load_embedding("pocket")).fidelity
    assert any("is mine's own encoder" in note for note in scores.notes)


def test_bad_clips_are_left_out_with_their_reasons(waves, as_items, noisy_codec, no_opus, quick_embedding):
    def broken():
        raise AudioError("no audio")

    items = as_items(waves)
    items[1:1] = [
        Item("broken", broken),
        Item("silent", lambda: Samples(np.zeros((1, 8000), np.float32), 16000)),
    ]
    scores = run({"noisy": noisy_codec}, items, quick_embedding).fidelity
    assert [(one.name, one.reason) for one in scores.rejected] == [
        ("broken", "no audio"),
        ("silent", "silent"),
    ]
    assert list(scores.rows[0].clips) == ["a", "b", "c"]
    assert "left out: 2; broken: no audio" in table(scores)
    with pytest.raises(
        UserError, match=r"^three tones: none of the 2 clips can be used, the first \(broken\)"
    ):
        run({"noisy": noisy_codec}, items[1:3], quick_embedding)


def test_the_same_again_gives_the_same(waves, as_items, tiny_codec, no_opus, quick_embedding):
    codec = load_codec(str(tiny_codec))
    first, second = (run({"t": codec}, as_items(waves), quick_embedding, seed=3).fidelity for _ in range(2))
    assert (first.floor, first.rows[0].fad, first.rows[0].clips) == (
        second.floor,
        second.rows[0].fad,
        second.rows[0].clips,
    )


def test_a_codec_that_decodes_to_nan_is_told_of(
    waves, as_items, noisy_codec, no_opus, quick_embedding, monkeypatch
):
    monkeypatch.setattr(noisy_codec, "_decode", lambda codes: torch.full_like(noisy_codec.audio, math.nan))
    with pytest.raises(UserError, match=r"^broken decodes to NaN or infinite samples: train or download it"):
        run({"broken": noisy_codec}, as_items(waves), quick_embedding)
