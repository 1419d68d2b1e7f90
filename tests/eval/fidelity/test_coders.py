"""Ways to code: their bits, their clocks, and which bitrates of Opus stand beside a codec."""

import shutil
import subprocess

import numpy as np
import pytest
import torch

from tokkata.core.audio import Samples
from tokkata.core.audio_stream import open_audio
from tokkata.core.errors import UserError
from tokkata.eval.fidelity import coders
from tokkata.eval.fidelity.coders import Clock, CodecCoder, OpusCoder, coder_of, opus_rates, with_opus
from tokkata.tokenize.codec import load_codec


@pytest.mark.parametrize(
    ("bitrate", "expected"),
    [
        (4.0, [6, 8]),
        (6.0, [6, 12]),
        (6.1, [8, 16]),
        (8.0, [8, 16]),
        (24.0, [24, 64]),
        (40.0, [64]),
        (500.0, [64]),
    ],
)
def test_opus_at_or_above_the_bitrate_and_twice_it(bitrate, expected):
    assert opus_rates(bitrate) == expected


def test_opus_stands_beside_codecs_of_its_rate_once(noisy_codec, mean_vae):
    codecs = [coder_of(name, codec) for name, codec in {"a": noisy_codec, "v": mean_vae}.items()]
    found = with_opus([*codecs, coder_of("b", noisy_codec)])
    assert [one.name for one in found] == ["a", "b", "Opus 6 kbit/s, 16 kHz mono", "v"]
    assert [one.name for one in with_opus([codecs[0]])] == ["a", "Opus 6 kbit/s"]


def test_a_clock_counts_what_it_is_told_to(monkeypatch):
    now = 0.0
    monkeypatch.setattr(coders.time, "perf_counter", lambda: now)

    def reading():
        nonlocal now
        for number in range(3):
            now += 100.0
            yield number
        now += 100.0

    clock, around = Clock(), Clock()
    with clock:
        for _ in clock.without(reading()):
            now += 1.0
    assert clock.seconds == 3.0
    for _ in around.during(reading()):
        now += 1.0
    assert around.seconds == 400.0


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_windows_give_what_the_whole_does(tiny_codec, monkeypatch, scratch):
    codec = load_codec(str(tiny_codec))
    audio = 0.1 * np.random.default_rng(0).standard_normal((1, 40000)).astype(np.float32)
    clip = open_audio(Samples(audio, 16000), 16000, 1)
    whole = CodecCoder("whole", codec).code(clip, scratch)
    monkeypatch.setattr(coders, "WINDOW_S", 1.0)
    cut = CodecCoder("cut", codec)
    coded = cut.code(clip, scratch)
    assert len(list(codec.plan(40000, cut._window_frames))) > 1
    torch.testing.assert_close(coded.counts, whole.counts)
    pieces = [np.concatenate(list(one.decoded), axis=1) for one in (coded, whole)]
    assert pieces[0].shape == (1, 40000)
    np.testing.assert_allclose(pieces[0], pieces[1], atol=1e-5)
    assert coded.encoding.seconds > 0
    assert coded.decoding.seconds > 0


def test_the_counts_are_those_of_the_codes(tiny_codec, scratch):
    codec = load_codec(str(tiny_codec))
    audio = 0.1 * np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32)
    coded = coder_of("tiny", codec).code(open_audio(Samples(audio, 16000), 16000, 1), scratch)
    codes = codec.encode(torch.from_numpy(audio)[None])[0]
    expected = torch.stack([(codes[k][:, None] == torch.arange(64)).sum(0) for k in range(4)])
    torch.testing.assert_close(coded.counts, expected)


needs_opus = pytest.mark.skipif(
    not (shutil.which("opusenc") and shutil.which("opusdec")), reason="needs opus-tools"
)


@needs_opus
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_opus_keeps_length_and_place(rate, channels, scratch):
    time = np.arange(rate) / rate
    audio = np.stack([0.3 * np.sin(2 * np.pi * (300 + 200 * c) * time) for c in range(channels)])
    clip = open_audio(Samples(audio.astype(np.float32), rate), rate, channels)
    coded = OpusCoder("Opus", 64, rate, channels).code(clip, scratch)
    decoded = np.concatenate(list(coded.decoded), axis=1)
    assert decoded.shape == audio.shape
    error = decoded - audio
    assert 10 * np.log10(np.square(audio).sum() / np.square(error).sum()) > 15
    assert 20e3 < coded.num_bits < 120e3
    assert coded.decoding.seconds > 0


def test_a_failing_program_is_a_sentence(monkeypatch):
    def fail(*args, **settings):
        raise subprocess.CalledProcessError(1, "opusenc", stderr="Error: no such rate\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match=r"^opusenc failed: Error: no such rate$"):
        coders._run("opusenc", "a", "b")
