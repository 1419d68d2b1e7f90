import io

import matplotlib.image
import numpy as np
import pytest

from tokkata.eval.spectrogram import NUM_COLUMNS, NUM_MELS, log_mel, spectrogram_png


def sine(f0_hz: float, sample_rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * f0_hz * np.arange(int(seconds * sample_rate)) / sample_rate)[None].astype(
        np.float32
    )


def test_full_scale_sine_is_at_0_db():
    assert log_mel(sine(1000, 16000), 16000).max() == pytest.approx(0.0, abs=1.5)
    assert log_mel(0.01 * sine(1000, 16000), 16000).max() == pytest.approx(-40.0, abs=1.5)


def test_higher_tones_are_higher_up():
    peaks = [log_mel(sine(f0, 44100), 44100).mean(axis=1).argmax() for f0 in (100, 400, 1600, 6400)]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.3])
def test_picture(seconds: float):
    png = spectrogram_png(sine(440, 16000, seconds), 16000)
    picture = matplotlib.image.imread(io.BytesIO(png))
    assert picture.shape[0] == NUM_MELS
    assert 1 <= picture.shape[1] <= NUM_COLUMNS
    # Row 0 of a picture is its top, and there the high bands are.
    brightness = picture[..., :3].sum(axis=(1, 2))
    assert brightness.argmax() > NUM_MELS / 2
    assert png == spectrogram_png(sine(440, 16000, seconds), 16000)


def test_silence_is_black_and_not_an_error():
    picture = matplotlib.image.imread(io.BytesIO(spectrogram_png(np.zeros((2, 8000), np.float32), 16000)))
    assert picture[..., :3].max() < 0.05
