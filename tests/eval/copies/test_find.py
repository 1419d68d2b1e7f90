"""Calibration, flags, and what the report shows of them."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import jinja2
import numpy as np
import pytest
from markupsafe import Markup

from tokkata.core.audio import AudioError
from tokkata.eval import report
from tokkata.eval.copies.find import MIN_HELD_OUT, Queries, Training, find_copies, threshold_of
from tokkata.eval.copies.pairs import beside, copy_section, flagged_pairs

RATE = 8000


def melody(seed, seconds=3.0):
    """Notes of 0.25 s at random pitches, [1, N]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(0.25 * RATE)) / RATE
    notes = [
        np.sin(2 * np.pi * 220 * 2 ** (rng.integers(24) / 12) * time) * np.exp(-6 * time)
        for _ in range(round(seconds / 0.25))
    ]
    return (0.3 * np.concatenate(notes))[None].astype(np.float32)


def tokens(seed, num_frames=150):
    return np.random.default_rng(seed).integers(0, 64, (2, num_frames))


def queries(seeds, **more):
    return Queries([f"q{seed}.wav" for seed in seeds], [melody(seed) for seed in seeds],
                   [tokens(seed) for seed in seeds], **more)  # fmt: skip


TRAINING = Training(
    names=[f"train/{i}" for i in range(6)],
    sample_rate=RATE,
    audio=melody,
    heard=range(6),
    codes=tokens,
    frame_rate=50.0,
)
HELD_OUT = queries(range(100, 160))
# The third is clip 4 of the training set, and its name is nasty.
GENERATED = queries([200, 201, 4, 203])
GENERATED = replace(GENERATED, names=["a.wav", "b.wav", "<b>&.wav", "d.wav"])


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return find_copies(GENERATED, HELD_OUT, TRAINING, tmp_path_factory.mktemp("copies"))


def test_a_copy_is_flagged_by_both_and_the_rest_by_neither(scores):
    assert {(item.statistic, item.index, item.training_clip) for item in scores.flagged} == {
        ("tokens", 2, "train/4"),
        ("sound", 2, "train/4"),
    }
    assert (scores.num_generated, scores.num_flagged) == (4, 1)
    for statistic in scores.statistics:
        assert statistic.generated.max == pytest.approx(1.0, abs=1e-5)
        assert statistic.threshold == statistic.held_out.max
        assert statistic.flagged_share == 0.25
    assert (scores.tokens.exact_share, scores.tokens.partial_share) == (0.25, 0.25)
    assert (scores.tokens.longest_run_s, scores.tokens.window_s) == (3.0, 3.0)
    assert scores.held_out_tokens.exact_share == 0.0
    assert scores.notes == []


def test_the_same_search_gives_the_same_scores(scores, tmp_path):
    again = find_copies(GENERATED, HELD_OUT, TRAINING, tmp_path)
    assert asdict(again) == asdict(scores)


def test_the_threshold_is_a_value_that_occurred():
    values = np.random.default_rng(0).random(1000)
    threshold = threshold_of(values.tolist())
    assert threshold in values
    assert 0.005 <= (values > threshold).mean() <= 0.01
    assert threshold_of(list(range(50))) == 49
    assert threshold_of([0.5] * (MIN_HELD_OUT - 1)) is None


def test_too_few_held_out_clips_flag_nothing_and_say_so(tmp_path):
    for held_out in (queries([100, 101]), Queries([], [], [])):
        scores = find_copies(GENERATED, held_out, TRAINING, tmp_path)
        assert scores.flagged == []
        assert {statistic.threshold for statistic in scores.statistics} == {None}
        assert {statistic.flagged_share for statistic in scores.statistics} == {None}
        assert scores.tokens.exact_share == 0.25
        assert any("fewer than 20 held-out clips" in note for note in scores.notes)


def test_without_tokens_sound_is_compared_and_a_note_says_so(tmp_path):
    for training in (replace(TRAINING, codes=None), replace(TRAINING, frame_rate=16000.0)):
        scores = find_copies(GENERATED, HELD_OUT, training, tmp_path)
        assert [statistic.name for statistic in scores.statistics] == ["sound"]
        assert scores.tokens is None
        assert [item.index for item in scores.flagged] == [2]
        assert scores.notes[0].startswith("No tokens were compared")


def test_a_folder_calibrates_itself_by_leaving_each_clip_out(tmp_path):
    """Where no audio was held out: each training clip against the others."""
    training = replace(TRAINING, names=[f"train/{i}" for i in range(24)], heard=range(24))
    own = Queries(
        [str(i) for i in range(24)], [melody(i) for i in range(24)], [tokens(i) for i in range(24)],
        own=list(range(24)),
    )  # fmt: skip
    scores = find_copies(GENERATED, own, training, tmp_path)
    assert [item.training_clip for item in scores.flagged] == ["train/4"] * 2
    assert all(statistic.threshold < 0.99 for statistic in scores.statistics)


def test_training_audio_that_cannot_be_read_is_counted(tmp_path):
    def audio(clip):
        if clip == 1:
            raise AudioError("cannot be read")
        return melody(clip)

    scores = find_copies(GENERATED, HELD_OUT, replace(TRAINING, audio=audio), tmp_path)
    assert (scores.num_training, scores.num_heard) == (6, 5)
    assert "The sound of 5 of 6 training clips was compared." in scores.notes


def test_pairs_play_the_alike_parts(scores):
    (row,) = flagged_pairs(scores, GENERATED, TRAINING, num_pairs=8)
    assert [(player.title, player.name) for player in row.players] == [
        ("Generated", "<b>&.wav"),
        ("Training", "train/4"),
    ]
    assert row.players[0].flac == row.players[1].flac
    assert flagged_pairs(scores, GENERATED, TRAINING, num_pairs=0) == []


def test_the_training_clip_is_cut_to_the_place():
    samples = np.arange(10)[None]
    assert beside(samples, 3, 4).tolist() == [[3, 4, 5, 6]]
    assert beside(samples, -2, 4).tolist() == [[0, 1, 2, 3]]
    assert beside(samples, 9, 4).tolist() == [[6, 7, 8, 9]]
    assert beside(samples, 5, 20).shape == (1, 10)


def render(section):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(report.__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=report.number, percent=report.percent)
    environment.globals["data_uri"] = lambda media_type, content: Markup(f"data:{media_type},{len(content)}")
    page = environment.get_template("copies/section.html.jinja").render(copies=section)
    return re.sub(r"\s+", " ", page)


def test_the_section_shows_a_flagged_pair(scores):
    page = render(copy_section(scores, GENERATED, TRAINING, num_pairs=2))
    assert "1 of 4 generated clips is nearer to a training clip than 99 % of real clips" in page
    assert page.count("<audio") == 2
    assert "&lt;b&gt;&amp;.wav" in page
    assert "<b>&" not in page


def test_the_section_without_copies(scores, tmp_path):
    clean = find_copies(queries([200, 201]), HELD_OUT, TRAINING, tmp_path)
    page = render(copy_section(clean, queries([200, 201]), TRAINING, num_pairs=2))
    assert "None of the 2 generated clips is nearer to the 6 training clips than held-out real clips" in page
    assert "<audio" not in page


def test_the_section_without_calibration_does_not_claim_that_there_are_none(tmp_path):
    unsure = find_copies(GENERATED, queries([100]), TRAINING, tmp_path)
    page = render(copy_section(unsure, GENERATED, TRAINING, num_pairs=2))
    assert "None of the" not in page
    assert "cannot be told" in page
