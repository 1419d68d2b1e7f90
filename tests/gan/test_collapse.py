"""What is called a collapsed generator, and what becomes of the run.

Shapes: B clips, N samples.
"""

import functools

import pytest
import torch
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import SynthCorpus
from tokkata.core.schema_gan import CollapseWatch
from tokkata.gan.collapse import Collapse, CollapseStatistics, collapse_statistics
from tokkata.tokenize.corpora.synth import Synth

RATE, NUM_SAMPLES = 16000, 8000
WATCH = CollapseWatch()


@functools.cache
def notes() -> Tensor:
    corpus = Synth(SynthCorpus(kind="synth", num_clips=48, duration_s=NUM_SAMPLES / RATE, forms=["note"]))
    return torch.stack([torch.from_numpy(corpus.audio(clip).samples[0]) for clip in corpus.clips()])


def real() -> Tensor:
    return notes()[:24]


def noise(level: float = 1.0, num_clips: int = 24) -> Tensor:
    return level * torch.randn(num_clips, NUM_SAMPLES, generator=torch.Generator().manual_seed(0))


def level_of(clips: Tensor) -> float:
    return float(clips.square().mean().sqrt())


def statistics(generated: Tensor, of: Tensor | None = None) -> CollapseStatistics:
    return collapse_statistics(generated, real() if of is None else of, RATE, WATCH)


def test_other_notes_are_sound():
    found = statistics(notes()[24:])
    assert (found.silent, found.clicks) == (0, 0)
    assert found.diversity == pytest.approx(1, abs=0.25)
    assert found.what_is_wrong(WATCH) is None
    assert found.scores() == {"silent": 0, "clicks": 0, "diversity": found.diversity}


def test_real_clips_are_as_different_as_themselves_at_any_level_of_the_corpus():
    for gain in (1.0, 1e-3):
        assert statistics(gain * real(), gain * real()).diversity == pytest.approx(1)


def test_silence_is_what_lies_below_the_threshold():
    level = level_of(real())
    for decibels, share in ((-41, 1.0), (-39, 0.0)):
        clips = noise()
        clips = clips * (level * 10 ** (decibels / 20) / clips.square().mean(1, keepdim=True).sqrt())
        assert statistics(clips).silent == share
    found = statistics(torch.zeros(24, NUM_SAMPLES))
    assert found == CollapseStatistics(silent=1.0, real_silent=0.0, clicks=0.0, diversity=0.0)
    assert found.what_is_wrong(WATCH) == "100% of the clips that it makes are silent"


def test_a_corpus_that_is_mostly_silent_may_be_imitated():
    clips = notes().clone()
    clips[::3] = 0
    clips[1::3] = 0
    found = statistics(clips[:24], clips[24:])
    assert found.silent == pytest.approx(2 / 3)
    assert found.real_silent == pytest.approx(2 / 3)
    assert found.what_is_wrong(WATCH) is None


def clicks() -> Tensor:
    """Bursts of 5 ms, each somewhere else, over soft notes."""
    clips = 0.02 * notes()[24:]
    bursts = noise(0.5)[:, :80]
    for i, burst in enumerate(bursts):
        clips[i, 300 * i : 300 * i + 80] += burst
    return clips


def test_clicks_are_found_wherever_they_are():
    found = statistics(clips := clicks())
    assert found.clicks == 1
    assert found.diversity is not None
    assert found.diversity > WATCH.least_diversity  # which alone would not tell
    assert found.what_is_wrong(WATCH) == "100% of the clips that it makes are clicks"
    clips[:12] = real()[:12]
    assert statistics(clips).clicks == 0.5


def test_a_corpus_of_clicks_may_be_imitated():
    found = statistics(clicks()[:12], clicks()[12:])
    assert found.clicks <= 0.25
    assert found.what_is_wrong(WATCH) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.expand(24, -1),
        lambda note: note.expand(24, -1) + noise(0.01 * level_of(note)),
        lambda note: torch.stack([note[0].roll(5 * i) for i in range(24)]),
        lambda note: noise(level_of(note)),
    ],
    ids=["repeated", "with other noise", "with other phases", "only noise"],
)
def test_one_sound_is_found(change):
    found = statistics(change(real()[3:4]))
    assert found.diversity is not None
    assert found.diversity < 0.08
    assert "the clips that it makes differ by" in (found.what_is_wrong(WATCH) or "")


def test_diversity_grows_with_the_number_of_sounds():
    found = [statistics(real()[:n].repeat(24 // n, 1)).diversity for n in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert len(set(found)) == 4


def test_where_there_is_nothing_to_compare_with_diversity_is_left_out():
    for of in (real()[:1], real()[:1].expand(5, -1)):
        found = statistics(real(), of)
        assert found.diversity is None
        assert found.scores() == {"silent": 0, "clicks": 0}
        assert found.what_is_wrong(WATCH) is None


# -------------------------------------------------------------------------------------------------- the run

SOUND = CollapseStatistics(silent=0.1, real_silent=0.0, clicks=0.0, diversity=0.8)
SILENT = CollapseStatistics(silent=0.75, real_silent=0.0, clicks=0.0, diversity=0.8)
ALIKE = CollapseStatistics(silent=0.0, real_silent=0.0, clicks=0.0, diversity=0.031)


class Run:
    """Validations and checkpoints as `core/loop.py` has them: first the one, then the other."""

    def __init__(self, folder, keep=10, **settings):
        self.watch = Collapse(CollapseWatch(**settings), folder)
        self.folder, self.keep, self.step = folder, keep, 0

    def see(self, *validations):
        for found in validations:
            self.step += 100
            self.watch.see(found)
            (self.folder / f"step-{self.step:06d}").mkdir()
            for old in sorted(self.folder.iterdir())[: -self.keep]:
                old.rmdir()


def test_a_collapse_is_told_of_once_with_the_checkpoint_from_before(tmp_path, capsys):
    run = Run(tmp_path)
    run.see(SOUND, SOUND, ALIKE)
    assert capsys.readouterr().err == ""
    run.see(ALIKE)
    assert capsys.readouterr().err == (
        "train: the generator has collapsed: the clips that it makes differ by 3.1% of what real ones do, in"
        f" 2 validations in a row (step-000200 in {tmp_path} is from before; to go on from there, delete"
        " those that are newer, lower train.lr or model.discriminator_lr, and run the same command again)\n"
    )
    run.see(ALIKE, SILENT)
    assert capsys.readouterr().err == ""
    run.see(SOUND, SILENT, SILENT)
    assert "75% of the clips that it makes are silent, in 2" in capsys.readouterr().err


def test_a_run_that_may_stop_does(tmp_path):
    run = Run(tmp_path, stop=True)
    with pytest.raises(
        UserError, match=r"has collapsed: 75% of .* silent.* \(step-000100 in .* is from before"
    ):
        run.see(SOUND, SILENT, SILENT)
    assert run.step == 300


def test_where_no_checkpoint_from_before_is_left(tmp_path):
    run = Run(tmp_path, keep=1, stop=True)
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is from before: .* raise train.keep_checkpoints"
    ):
        run.see(SOUND, SILENT, SILENT)


def test_one_bad_validation_is_none(tmp_path, capsys):
    Run(tmp_path, stop=True).see(*[SOUND, SILENT, SOUND, ALIKE] * 3)
    assert capsys.readouterr().err == ""


def test_a_run_that_is_never_sound_is_told_of_once_and_goes_on(tmp_path, capsys):
    run = Run(tmp_path, stop=True)
    run.see(*[ALIKE] * 9)
    assert capsys.readouterr().err == ""
    run.see(*[ALIKE] * 10)
    assert capsys.readouterr().err == (
        "train: after 10 validations the generator is not yet of use: the clips that it makes differ by 3.1%"
        " of what real ones do\n"
    )


def test_thresholds_are_the_recipes(tmp_path):
    run = Run(tmp_path, stop=True, least_diversity=0.01)
    run.see(SOUND, ALIKE, ALIKE)
    quiet = 0.02 * noise() * level_of(real())  # 34 dB below
    for silence_db, share in ((-40.0, 0.0), (-30.0, 1.0)):
        watch = CollapseWatch(silence_db=silence_db)
        assert collapse_statistics(quiet, real(), RATE, watch).silent == share
