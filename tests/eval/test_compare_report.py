"""The page of a comparison: charts in closed form, ranks, and what chromium makes of it."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tokkata.core.audio import write_wav
from tokkata.eval.compare import Compared, Request, compare
from tokkata.eval.compare_charts import Fit, Shown, fits, histogram, principal_components, scatter
from tokkata.eval.compare_report import ranked_places, render, summary, write_comparison
from tokkata.eval.embedding import Embedding

HOSTILE = "<b>&x"


@pytest.fixture
def compared(tmp_path: Path, tone: SimpleNamespace, quick_embedding: Embedding) -> Compared:
    rng = np.random.default_rng(0)
    for name, noise in (("real", 0.0), ("good", 0.02), ("bad", 0.2)):
        for index in range(10):
            samples = tone.at(50 + rng.uniform(0, 20))
            (tmp_path / name).mkdir(exist_ok=True)
            write_wav(
                tmp_path / name / f"{index}.wav", samples + noise * rng.standard_normal(samples.shape), 16000
            )
    systems = {"good": tmp_path / "good", HOSTILE: tmp_path / "bad"}
    metrics = ["fad", "fad-inf", "kad", "prdc", "per-song"]
    found = compare(Request(systems, str(tmp_path / "real"), ["pocket"], metrics, tmp_path / "cache"))
    assert found is not None
    return found


def test_components_are_the_directions_of_largest_variance():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((300, 4)) * np.array([0.1, 3.0, 0.2, 1.0])
    (points,) = principal_components([np.eye(4)], reference, None)
    np.testing.assert_allclose(np.abs(points), [[0, 0], [1, 0], [0, 0], [0, 1]], atol=0.05)
    (by_covariance,) = principal_components([np.eye(4)], None, np.cov(reference.T))
    np.testing.assert_allclose(by_covariance, points, atol=1e-6)


def test_ranks_hold_the_best_and_the_worst():
    distances = [5.0, math.nan, 1.0, 4.0, 2.0, 3.0]
    assert ranked_places(distances, 10) == [2, 4, 5, 3, 0]
    assert ranked_places(distances, 3) == [2, 5, 0]
    assert ranked_places([math.nan], 3) == []


def test_a_histogram_holds_all_clips_and_leaves_out_what_has_no_logarithm():
    shown = Shown("a", "series-codebook")
    svg = str(histogram([(shown, [1.0, 10.0, 10.0, 100.0, math.nan, 0.0])], "a"))
    assert "polyline" in svg
    assert "nan" not in svg.lower()
    assert "nan" not in str(histogram([(shown, [3.0])], "one")).lower()


def test_charts_escape_and_keep_inside():
    svg = str(scatter([(Shown(HOSTILE, "x"), np.random.default_rng(0).standard_normal((50, 2)))], HOSTILE))
    assert HOSTILE not in svg
    xs = [float(x) for x in re.findall(r'cx="([-\d.]+)"', svg)]
    assert len(xs) == 50
    assert 0 < min(xs) < max(xs) < 460
    line = str(fits([Fit(Shown("a", "x"), [5.0, 10.0], [3.0, 2.0], 1.0, 10.0)], "a"))
    assert line.count("<circle") == 3


def test_the_summary_is_a_sentence(compared: Compared):
    assert summary(compared).startswith("FAD in spectrum: good ")
    assert "real recordings among themselves" in summary(compared)


def test_no_name_becomes_markup(compared: Compared):
    page = render(compared, {}, HOSTILE, f"tokkata {HOSTILE}", 2)
    assert HOSTILE not in page
    assert page.count("<audio") == 4
    assert page.count("<svg") >= 3


PROBE = """
<script>
window.addEventListener("load", async () => {
  const settled = (audio) => new Promise((resolve) => {
    if (audio.readyState >= 1 || audio.error) return resolve();
    for (const event of ["loadedmetadata", "error"]) audio.addEventListener(event, resolve, { once: true });
  });
  const audios = [...document.querySelectorAll("audio")];
  await Promise.all(audios.map(settled));
  const seen = document.createElement("pre");
  seen.id = "seen";
  seen.textContent = JSON.stringify({
    durations: audios.map((audio) => audio.duration),
    buttons: document.querySelectorAll("figure button.picture img").length,
    dots: document.querySelectorAll("svg circle").length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
  document.body.append(seen);
});
</script>
"""


@pytest.mark.chromium
def test_chromium_shows_and_plays_it(compared: Compared, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    path = tmp_path / "report.html"
    write_comparison(path, compared, {}, title="good and bad", command="tokkata eval", num_players=3)
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    words += ["--disable-background-networking", "--disable-component-update", "--window-size=500,1000"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    words += ["--timeout=10000", "--virtual-time-budget=8000", "--dump-dom", path.as_uri()]
    result = subprocess.run([chromium, *words], capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-2000:]
    seen = json.loads(found[1])
    assert seen["durations"] == pytest.approx([0.5] * 6, abs=0.01)
    assert seen["buttons"] == 6
    assert seen["dots"] > 50
    assert seen["overflow"] <= 0
