import io
from types import SimpleNamespace

import numpy as np
import soundfile

from tokkata.core.rainbowgram import rainbowgram
from tokkata.eval.players import flac, listening_rows, match
from tokkata.eval.sets import ClipSet
from tokkata.eval.spectrogram import NUM_COLUMNS, spectrogram_png


def clip_set(names: list[str], labels: list[dict], audio: list[np.ndarray]) -> ClipSet:
    return ClipSet(audio, labels, names, [None] * len(names))


def test_flac_holds_the_samples(tone: SimpleNamespace):
    for audio in (tone.at(60), np.repeat(tone.at(60), 2, axis=0)):
        samples, sample_rate = soundfile.read(io.BytesIO(flac(audio, 16000)), always_2d=True)
        assert sample_rate == 16000
        np.testing.assert_allclose(samples.T, audio, atol=2**-14)


def test_equal_labels_are_matched_first_then_the_nearest_pitch():
    offered = [{"pitch": 40, "form": "note"}, {"pitch": 60, "form": "chord"}, {"pitch": 62, "form": "note"}]
    assert match([{"pitch": 60, "form": "chord"}], offered) == [1]
    assert match([{"pitch": 61, "form": "note"}], offered) == [2]
    assert match([{"pitch": 70, "form": "drum"}], offered) == [2]


def test_clips_without_labels_are_matched_one_to_one():
    assert match([{}, {}, {}], [{}, {}, {}]) == [0, 1, 2]
    assert match([{}, {}], [{}]) == [0, 0]


def test_rows_bring_together_what_belongs_together(tone: SimpleNamespace):
    real = clip_set(["r60", "r64"], [{"pitch": 60}, {"pitch": 64}], [tone.at(60), tone.at(64)])
    copies = clip_set(["r60", "r64"], real.labels, [0.5 * audio for audio in real.audio])
    generated = clip_set(["0.wav", "1.wav"], [{"pitch": 64}, {"pitch": 61}], [tone.at(64), tone.at(61)])
    untrained = clip_set(["1.wav"], [{"pitch": 61}], [tone.at(30)])
    rows = listening_rows(
        real=real,
        reconstructed=copies,
        generated=generated,
        untrained=untrained,
        sample_rate=16000,
        num_rows=5,
    )
    assert [[(player.title, player.name) for player in row.players] for row in rows] == [
        [("Real", "r64"), ("Reconstructed", "r64"), ("Generated", "0.wav")],
        [("Real", "r60"), ("Reconstructed", "r60"), ("Generated", "1.wav"), ("Untrained", "1.wav")],
    ]
    assert rows[0].players[0].differs == {}
    assert rows[1].players[0].differs == {"pitch": "60"}
    assert rows[1].labels == {"pitch": "61"}
    assert rows[0].players[0].flac == flac(real.audio[1], 16000)
    assert rows[0].players[1].flac == flac(copies.audio[1], 16000)


def test_pictures_are_those_asked_for(tone: SimpleNamespace):
    clips = clip_set(["0.wav"], [{}], [np.repeat(tone.at(60), 2, axis=0)])

    def picture(**asked: str) -> bytes:
        rows = listening_rows(
            real=clips,
            reconstructed=clips,
            generated=clips,
            untrained=None,
            sample_rate=16000,
            num_rows=1,
            **asked,
        )
        return rows[0].players[0].png

    assert picture() == picture(picture="spectrogram") == spectrogram_png(clips.audio[0], 16000)
    assert picture(picture="rainbowgram") == rainbowgram(tone.at(60)[0], 16000, max_columns=NUM_COLUMNS)


def test_the_clip_that_lent_its_labels_is_preferred(tone: SimpleNamespace):
    real = clip_set(["a", "b", "c"], [{"pitch": 60, "form": "note"}] * 3, [tone.at(60)] * 3)
    generated = clip_set(["0.wav", "1.wav"], [{"pitch": 60}] * 2, [tone.at(60)] * 2)
    generated.sources[:] = ["c", "not in the reference"]
    rows = listening_rows(
        real=real, reconstructed=real, generated=generated, untrained=None, sample_rate=16000, num_rows=2
    )
    assert [row.players[0].name for row in rows] == ["c", "b"]
