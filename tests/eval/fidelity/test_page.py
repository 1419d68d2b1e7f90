"""The page of `codec eval`: what it shows, and what chromium makes of it."""

import json
import re
import shutil
import subprocess

import pytest

from tokkata.eval.fidelity.measure import measure
from tokkata.eval.fidelity.page import contents, listening, render, summary, write_page
from tokkata.tests.eval.test_compare_report import PROBE

HOSTILE = "<b>&x"

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)  # before a fixture hides programs


@pytest.fixture
def measured(waves, as_items, noisy_codec, mean_vae, copying_opus, quick_embedding):
    """A codec, Opus twice and a VAE of another rate, on three clips of which two can be heard."""
    items = as_items(waves)
    return measure(
        {HOSTILE: noisy_codec, "means": mean_vae}, items, quick_embedding, data="a <i>folder", num_players=2
    )


def test_bars_are_shares_of_what_can_be(measured):
    codec, vae = contents(measured.fidelity.rows)
    assert [bar.share for bar in codec.bars] == pytest.approx([0.0, 0.25])
    assert [bar.note for bar in codec.bars] == ["15 of 16 never used", "14 of 16 never used"]
    assert [bar.share for bar in vae.bars] == pytest.approx([1.0, 0.0])


def test_clips_go_from_best_to_worst_each_with_its_original(measured):
    shown = listening(measured)
    scores = measured.fidelity.rows[0].clips
    distances = [scores[one.clip].mel_distance for one in shown]
    assert distances == sorted(distances)
    names = ["Original", HOSTILE, "Opus 6 kbit/s, 16 kHz mono", "means"]
    assert [[player.title for player in one.players] for one in shown] == [names] * 2
    assert [player.is_original for player in shown[0].players] == [True, False, False, False]
    assert shown[0].players[1].note.startswith("mel ")


def test_the_summary_is_a_sentence(measured):
    told = summary(measured.fidelity.rows)
    assert re.match(r"Mel distance to the originals, .*<b>&x \(0\.4 kbit/s\) [\d.]+, .*\.$", told)


def test_no_name_becomes_markup(measured):
    page = render(measured, HOSTILE, f"tokkata {HOSTILE}")
    assert HOSTILE not in page
    assert "<i>folder" not in page
    assert page.count("<audio") == 8


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [500, 1300])
def test_chromium_shows_and_plays_it(measured, tmp_path, width):
    path = tmp_path / "report.html"
    write_page(path, measured, title="noisy and means", command="tokkata codec eval")
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    words += ["--disable-background-networking", "--disable-component-update", f"--window-size={width},1000"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    words += ["--timeout=10000", "--virtual-time-budget=8000", "--dump-dom", path.as_uri()]
    result = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-2000:]
    seen = json.loads(found[1])
    assert seen["durations"] == pytest.approx([0.4] * 8, abs=0.01)
    assert seen["buttons"] == 8
    assert seen["overflow"] <= 0
