"""Pieces rendered from a SoundFont; the notes themselves are tested without one."""

import shutil
from collections import defaultdict

import mido
import numpy as np
import pytest

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import SoundFontCorpus
from tokkata.tokenize.corpora.soundfont import DRUM_PROGRAM, KINDS, NUM_PROGRAMS, SoundFont, split_programs
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus

rendered = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SoundFontCorpus(kind="soundfont").soundfont.is_file(),
    reason="needs Debian's fluidsynth and fluid-soundfont-gm",
)


@pytest.fixture
def unrendered(tmp_path, monkeypatch):
    """A corpus that knows its pieces but has nothing to play them on."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (tmp_path / "any.sf2").touch()

    def make(**settings):
        return SoundFont(SoundFontCorpus(kind="soundfont", soundfont=tmp_path / "any.sf2", **settings))

    return make


def test_pieces_are_reproducible_and_independent_of_their_number(unrendered):
    one, other = unrendered(num_clips=40, seed=5), unrendered(num_clips=20, seed=5)
    assert one.clips()[:20] == other.clips()
    assert [one.piece(i) for i in range(20)] == [other.piece(i) for i in range(20)]
    assert one.piece(3) != unrendered(seed=6).piece(3)


def test_every_note_can_be_played_inside_the_piece(unrendered):
    for duration_s in (0.5, 8.0):
        corpus = unrendered(duration_s=duration_s)
        for index, clip in enumerate(corpus.clips()[:150]):
            piece = corpus.piece(index)
            assert piece.notes, clip
            for note in piece.notes:
                assert 0 <= note.pitch <= 127
                assert 1 <= note.velocity <= 127
                assert 0 <= note.start_s < note.end_s <= duration_s
                assert note.channel == 9 or note.channel in piece.programs
            if clip.labels["kind"] == "drums":
                assert clip.labels["program"] == DRUM_PROGRAM
                assert {note.channel for note in piece.notes} == {9}
            else:
                assert piece.programs[0] == clip.labels["program"] < NUM_PROGRAMS


def test_kinds_and_labels(unrendered):
    corpus = unrendered()
    clips = corpus.clips()
    assert [clip.id for clip in clips] == sorted({clip.id for clip in clips})
    assert {clip.labels["kind"] for clip in clips} == set(KINDS)
    assert len({clip.labels["program"] for clip in clips}) > 90
    for index, clip in enumerate(clips):
        assert {name: type(value) for name, value in clip.labels.items()} == corpus.label_types
        num_parts = len(corpus.piece(index).programs)
        assert 2 <= num_parts <= 4 if clip.labels["kind"] == "ensemble" else num_parts <= 1


def test_held_out_programs_are_never_heard_in_training(unrendered):
    corpus = unrendered(num_clips=500)
    programs = defaultdict(set)
    for index, clip in enumerate(corpus.clips()):
        programs[clip.split].update(corpus.piece(index).programs.values())
    of_program = split_programs()
    assert len(programs["train"]) > 60
    for split in ("valid", "test"):
        held_out = {p for p in range(NUM_PROGRAMS) if of_program[p] == split}
        assert len(held_out) == 11
        assert held_out.isdisjoint(programs["train"])
        assert held_out & programs[split]


def test_midi_file_holds_the_notes_and_lasts_as_long_as_the_piece(unrendered, tmp_path):
    corpus = unrendered(duration_s=4.0)
    for index in range(20):
        piece = corpus.piece(index)
        piece.write_midi(tmp_path / "piece.mid", 4.0)
        midi = mido.MidiFile(tmp_path / "piece.mid")
        assert midi.length == pytest.approx(4.0, abs=0.002)
        now, starts, sounding = 0.0, [], 0
        for message in midi:
            now += message.time
            if message.type == "note_on":
                starts.append((round(now, 2), message.channel, message.note, message.velocity))
                sounding += 1
            elif message.type == "note_off":
                sounding -= 1
        assert sounding == 0
        expected = [(n.start_s, n.channel, n.pitch, n.velocity) for n in piece.notes]
        assert [s[1:] for s in sorted(starts)] == [
            e[1:] for e in sorted((round(round(s * 960) / 960, 2), c, p, v) for s, c, p, v in expected)
        ]


def test_a_piece_too_short_for_a_note_is_refused(unrendered):
    with pytest.raises(UserError, match=r"data\.duration_s 0\.4 is below 0\.5"):
        unrendered(duration_s=0.4)


def test_missing_program_or_soundfont_is_one_sentence(tmp_path, monkeypatch):
    config = SoundFontCorpus(kind="soundfont", soundfont=tmp_path / "none.sf2")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt install fluidsynth"):
        load_corpus(config)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UserError, match=r"none\.sf2 does not exist.*fluid-soundfont-gm"):
        load_corpus(config)


@rendered
def test_rendering_is_reproducible_and_exactly_as_long_as_asked():
    corpus = load_corpus(SoundFontCorpus(kind="soundfont", duration_s=1.2345))
    for clip in corpus.clips()[:2]:
        first, again = read_clip(corpus, clip, 16000, 1), read_clip(corpus, clip, 44100, 2)
        assert first.sha256 == again.sha256
        assert first.samples.shape == (1, round(1.2345 * 16000))
        assert again.samples.shape == (2, round(1.2345 * 44100))
        assert first.samples.dtype == np.float32
        assert 0.01 < np.abs(first.samples).max() <= 1.0
