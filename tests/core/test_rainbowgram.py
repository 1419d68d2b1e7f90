import io

import matplotlib.image
import numpy as np
import pytest

from tokkata.core.rainbowgram import constant_q, rainbowgram, rainbowgrams

RATE = 16000


def tone(f0_hz: float, num_samples: int = 8192, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * f0_hz * np.arange(num_samples) / rate)).astype(np.float32)


def read(png: bytes) -> np.ndarray:
    picture: np.ndarray = matplotlib.image.imread(io.BytesIO(png))
    return picture[..., :3]


@pytest.mark.parametrize("f0_hz", [110.0, 440.0, 3000.0])
def test_a_tone_is_bright_at_its_frequency_and_has_one_colour(f0_hz: float):
    picture = read(rainbowgram(tone(f0_hz), RATE))[::-1]  # row 0 of a picture is its top
    heard = constant_q(tone(f0_hz), RATE)
    assert picture.shape[:2] == heard.magnitudes.shape
    row = picture.max(2).mean(1).argmax()
    assert heard.centres_hz[row] == pytest.approx(f0_hz, rel=2 ** (1 / 40) - 1)
    middle = slice(heard.advances.shape[1] // 3, 2 * heard.advances.shape[1] // 3)
    hop = 128
    turns = f0_hz * hop / RATE
    expected = 2 * (turns - round(turns))
    np.testing.assert_allclose(heard.advances[row, middle], expected, atol=0.02)
    assert np.ptp(picture[row, middle], axis=0).max() < 0.1


def test_other_rates_and_lengths():
    for rate, num_samples in ((8000, 800), (44100, 30000)):
        heard = constant_q(tone(440.0, num_samples, rate), rate)
        assert heard.centres_hz.max() < rate / 2
        assert heard.duration_s == num_samples / rate
        assert heard.magnitudes.shape == heard.advances.shape
        assert heard.centres_hz[heard.magnitudes.mean(1).argmax()] == pytest.approx(440.0, rel=0.04)


def test_a_narrow_picture_shows_all_of_a_clip_with_the_loudest_in_each_column():
    click = np.zeros(32000, np.float32)
    click[20000] = 1.0
    whole, narrow = (read(rainbowgram(click, RATE, max_columns=most)) for most in (None, 60))
    assert whole.shape[1] == 250
    assert narrow.shape == (whole.shape[0], 50, 3)
    assert narrow.max(2).mean(0).argmax() == whole.max(2).mean(0).argmax() // 5
    assert narrow.max() == pytest.approx(whole.max(), abs=0.01)


def test_silence_is_black():
    assert read(rainbowgram(np.zeros(8192, np.float32), RATE)).max() == 0.0


def test_pictures_side_by_side():
    png = rainbowgrams({"low": tone(220.0), "quiet": 1e-3 * tone(880.0), "high": tone(1760.0)}, RATE)
    assert png == rainbowgrams({"low": tone(220.0), "quiet": 1e-3 * tone(880.0), "high": tone(1760.0)}, RATE)
    picture = read(png)
    assert picture.shape[1] > 1.5 * picture.shape[0]
    alone = read(rainbowgrams({"low": tone(220.0)}, RATE))
    assert alone.shape[0] == picture.shape[0]
    assert alone.shape[1] < picture.shape[1] / 2
