"""Tiny listening tests, and a listener who answers them over HTTP."""

import numpy as np
import pytest
import soundfile

RATE = 16000
SYSTEMS = {"zephyr": 0.0, "quagga": 0.02, "real": 0.005}
"""Noise added to each: names that can stand nowhere by chance."""


@pytest.fixture(scope="session")
def clip_folders(tmp_path_factory):
    """Folders of six clips of half a second each, by system; `real` is the recordings."""
    root = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    for system, noise in SYSTEMS.items():
        (root / system).mkdir()
        for k in range(6):
            level = 10.0 ** (-k / 10.0)
            samples = 0.3 * level * np.sin(2 * np.pi * (200 + 50 * k) * time)
            samples += noise * random.standard_normal(len(time))
            soundfile.write(root / system / f"melody{k}.wav", samples, RATE)
    return {system: root / system for system in SYSTEMS}


@pytest.fixture(scope="session")
def make_test(clip_folders):
    """`make_test(folder, method="ab")`: the path of a test in `folder`, with settings changed."""
    from tokkata.core.recipe import check_section
    from tokkata.eval.listening.build import build_test
    from tokkata.eval.listening.definition import QUESTIONS, Definition

    def make(folder, method="acr", **changes):
        values = {
            "method": method,
            "attributes": [{"name": "quality", "question": QUESTIONS[method]["quality"]}],
            "systems": [{"name": name, "path": str(clip_folders[name])} for name in ("zephyr", "quagga")],
            "reference": str(clip_folders["real"]),
            "anchors_hz": [] if method == "ab" else [3500],
            "items_per_listener": 2,
            "practice_items": 1,
            "repeated_items": 1,
            "attention_items": 0 if method == "mushra" else 1,
            "loudness_lufs": -23.0,
        } | changes
        path = folder / "test.yaml"
        build_test(path, check_section(Definition, values))
        return path

    return make


@pytest.fixture(scope="session")
def copy_test(make_test, tmp_path_factory):
    """`copy_test(folder, "ab")`: the same without settings, quicker, because each is made only once."""
    import shutil

    made = {}

    def copy(folder, method="acr"):
        if method not in made:
            made[method] = make_test(tmp_path_factory.mktemp(method), method)
        shutil.copytree(made[method].parent, folder, dirs_exist_ok=True)
        return folder / "test.yaml"

    return copy
