import numpy as np
import pytest

from tokkata.eval.pitch import MAX_CLIPS, has_pitch, median_pitch, pitch_accuracy

SAMPLE_RATE = 16000


def note(pitch: float, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> np.ndarray:
    """Half a second of a sawtooth-like tone, [C, N]."""
    time = np.arange(sample_rate // 2) / sample_rate
    f0 = 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)
    tone = sum(np.sin(2 * np.pi * f0 * k * time) / k for k in range(1, 6))
    return np.repeat(0.2 * tone[None], channels, axis=0).astype(np.float32)


@pytest.mark.parametrize("pitch", [40.0, 60.0, 69.3, 84.0])
@pytest.mark.parametrize(("sample_rate", "channels"), [(16000, 1), (32000, 2)])
def test_tracks_a_tone(pitch: float, sample_rate: int, channels: int):
    assert median_pitch(note(pitch, sample_rate, channels), sample_rate, 30, 96) == pytest.approx(
        pitch, abs=0.2
    )


def test_silence_has_no_pitch():
    assert median_pitch(np.zeros((1, 8000), np.float32), SAMPLE_RATE, 40, 80) is None


def test_counts_right_wrong_and_octave_errors():
    clips = [note(60), note(64), note(52), note(61), np.zeros((1, 8000), np.float32)]
    labels = [{"pitch": pitch} for pitch in (60, 64, 64, 64, 64)]
    exact, chroma = pitch_accuracy(clips, labels, SAMPLE_RATE)
    assert (exact.name, chroma.name) == ("pitch-accuracy", "chroma-accuracy")
    assert exact.detail["clips"] == 5
    assert exact.value == pytest.approx(2 / 5)
    assert chroma.value == pytest.approx(3 / 5)  # 52 is E like 64
    assert exact.interval is not None
    assert exact.interval.low < 2 / 5 < exact.interval.high


def test_only_notes_are_judged():
    assert has_pitch({"pitch": 60})
    assert has_pitch({"pitch": 60, "form": "note"})
    assert not has_pitch({"pitch": 60, "form": "chord"})
    assert not has_pitch({"pitch": 9})
    assert not has_pitch({"family": "keys"})
    unjudged = pitch_accuracy([note(60)], [{"pitch": 60, "form": "chord"}], SAMPLE_RATE)
    assert [score.value for score in unjudged] == [None, None]
    labels = [{"pitch": 60, "form": "note"}, {"pitch": 70, "form": "phrase"}]
    exact, _ = pitch_accuracy([note(60), note(60)], labels, SAMPLE_RATE)
    assert (exact.value, exact.detail["clips"]) == (1.0, 1)


def test_judges_at_most_so_many_clips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokkata.eval.pitch.median_pitch", lambda *_: 60.0)
    num_clips = MAX_CLIPS + 5
    exact, _ = pitch_accuracy([note(60)] * num_clips, [{"pitch": 60}] * num_clips, SAMPLE_RATE)
    assert exact.detail["clips"] == MAX_CLIPS
