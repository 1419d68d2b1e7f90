import shutil

import numpy as np
import pytest

from tokkata.core.audio import Samples, write_wav
from tokkata.eval.fidelity import coders
from tokkata.eval.fidelity.measure import Item
from tokkata.tests.eval.fidelity.made_codecs import HOP, MeanVae, NoisyCodec


@pytest.fixture
def noisy_codec():
    return NoisyCodec()


@pytest.fixture
def mean_vae():
    return MeanVae()


@pytest.fixture
def waves():
    """Three clips [N] at 16 kHz without means, a whole number of frames long."""
    found = []
    for periods in (100, 150, 210):
        phase = 2 * np.pi * periods * np.arange(20 * HOP) / (20 * HOP)
        found.append((0.3 * np.sin(phase) + 0.1 * np.sin(5 * phase)).astype(np.float32))
    return found


@pytest.fixture
def as_items():
    """`as_items(waves)`: clips named a, b, …"""

    def make(waves):
        return [
            Item(chr(97 + i), lambda wave=wave: Samples(wave[None], 16000)) for i, wave in enumerate(waves)
        ]

    return make


@pytest.fixture
def no_opus(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def copying_opus(monkeypatch):
    """Stands in for the tools: the stream is the wav file itself."""
    commands = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(*command):
        commands.append(command)
        shutil.copy(command[-2], command[-1])

    monkeypatch.setattr(coders, "_run", run)
    return commands


@pytest.fixture
def audio_folder(tmp_path, waves):
    """A folder of three clips, in which one more is no audio and one is silent."""
    folder = tmp_path / "audio"
    for index, wave in enumerate(waves):
        write_wav(folder / f"{index}.wav", wave[None], 16000)
    (folder / "broken.wav").write_bytes(b"RIFF, but nothing more")
    write_wav(folder / "silent.wav", np.zeros((1, 8000), np.float32), 16000)
    return folder
