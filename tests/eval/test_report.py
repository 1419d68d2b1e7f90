import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from tokkata.eval.bootstrap import Interval
from tokkata.eval.chart import Point
from tokkata.eval.measured import Score
from tokkata.eval.players import flac
from tokkata.eval.report import (
    Curves,
    ListeningRow,
    LogScale,
    Player,
    Rejected,
    ReportData,
    TableRow,
    number,
    percent,
    read_curves,
    render,
    summary,
    write_report,
)
from tokkata.eval.spectrogram import spectrogram_png

HOSTILE = '<script>alert("x")</script>&amp;'


def table_row(name: str, fad: float | None, **changes: object) -> TableRow:
    values = {
        "note": f"About {name}.",
        "num_clips": 10,
        "num_frames": 1000,
        "fad_infinity": fad,
        "pitch_accuracy": 0.5,
        "chroma_accuracy": 0.75,
        "num_pitched": 4,
    }
    return TableRow(name=name, fad=fad, **{**values, **changes})


@pytest.fixture
def data(tone: SimpleNamespace) -> ReportData:
    players = [
        Player(
            title=title,
            name=f"{HOSTILE}{pitch}",
            differs={"pitch": "61"} if title == "Real" else {},
            duration_s=0.5,
            flac=flac(tone.at(pitch), 16000),
            png=spectrogram_png(tone.at(pitch), 16000),
        )
        for title, pitch in (("Real", 61), ("Reconstructed", 61), ("Generated", 60), ("Untrained", 40))
    ]
    return ReportData(
        name=f"run {HOSTILE}",
        reference="10 real clips",
        embedding="pocket, 256 wide",
        rows=[
            table_row("real, other", 0.5),
            table_row("generated", 3.14159, highlighted=True),
            table_row("white noise", 90.0, pitch_accuracy=None, chroma_accuracy=None),
        ],
        warnings=[f"Beware of {HOSTILE}"],
        curves=Curves(
            train=[Point(step, 6 - 0.01 * step) for step in range(100)],
            valid=[Point(50, 5.6), Point(99, 5.1)],
            codebooks={0: [Point(50, 5.0), Point(99, 4.0)], 1: [Point(50, 6.0), Point(99, 5.0)]},
        ),
        listening=[ListeningRow({"pitch": "60", "form": HOSTILE}, players)] * 2,
        rejected=[Rejected(f"{HOSTILE}.wav", "truncated", "tokenize")],
        recipe=f"name: {HOSTILE}\n",
        environment={"torch": "2.10.0"},
    )


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_has_everything(data: ReportData):
    page = Page(render(data))
    assert len(page.all("audio")) == 8
    assert len(page.all("img")) == 8
    assert len(page.all("svg")) == 2
    for text in (
        "3.14",
        "0.500",
        "90.0",
        "50\N{NO-BREAK SPACE}%",
        "truncated",
        "torch",
        "Beware",
    ):
        assert text in page.text
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(audio["aria-label"] for audio in page.all("audio"))
    assert all(header.get("scope") for header in page.all("th"))


def test_the_page_says_what_pictures_show(data: ReportData):
    for picture, words in (("spectrogram", "80 dB from black"), ("rainbowgram", "keeps its colour")):
        page = Page(render(replace(data, picture=picture)))
        assert all(image["alt"].startswith(f"{picture.capitalize()} of ") for image in page.all("img"))
        assert [one in page.text for one in ("80 dB from black", "keeps its colour")] == [
            one == words for one in ("80 dB from black", "keeps its colour")
        ]


def test_nothing_is_loaded_from_elsewhere(data: ReportData):
    text = render(data)
    for name, attributes in Page(text).tags:
        for attribute in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:", "#")), (name, value[:80])
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_no_text_becomes_markup(data: ReportData):
    page = Page(render(data))
    assert len(page.all("script")) == 1  # the page's own
    # The run's name, the warning, the rejected file and the recipe show it as it is.
    assert page.text.count(HOSTILE) >= 4


def test_audio_is_what_was_given(data: ReportData):
    source = Page(render(data)).all("audio")[2]["src"]
    prefix = "data:audio/flac;base64,"
    assert source.startswith(prefix)
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(source.removeprefix(prefix))))
    assert len(samples) == 8000


def test_a_run_with_next_to_nothing_still_has_a_page():
    empty = ReportData("bare", "1 real clip", "pocket", [], [], Curves(), [], [], "name: bare\n", {})
    page = Page(render(empty))
    assert "bare" in page.text
    assert not page.all("audio")
    unknown = [table_row("generated", None, highlighted=True, pitch_accuracy=None)]
    page = Page(render(ReportData("bare", "1 real clip", "pocket", unknown, [], Curves(), [], [], "", {})))
    assert "–" in page.text
    assert "Right pitch" not in page.text


def test_summary_tells_the_scores_in_a_sentence(data: ReportData):
    assert summary(data) == (
        "10 generated clips lie 3.14 from the reference, where other real recordings lie 0.500"
        " and white noise 90.0 (Fréchet distance, lower is better)."
    )


def test_numbers():
    shown = [number(value) for value in (None, 0.0, 0.0123456, 3.14159, 41.37, 412.0, -0.0316, 1e-7)]
    assert shown == ["–", "0.00", "0.0123", "3.14", "41.4", "412", "−0.0316", "1.00e−07"]
    assert number(12345.6) == "12\N{NO-BREAK SPACE}346"
    assert percent(None) == "–"
    assert percent(0.816) == "82\N{NO-BREAK SPACE}%"


def test_log_scale():
    scale = LogScale.around([0.4, 3.0, 90.0])
    assert (scale.low, scale.high) == (-1, 2)
    assert scale.place(0.1) == 0.0
    assert scale.place(100.0) == pytest.approx(100.0)
    assert scale.place(1.0) == pytest.approx(100 / 3)
    assert scale.place(0.0) == scale.place(-1.0) == 0.0
    assert [label for _, label in scale.decades()] == ["0.1", "1", "10", "100"]
    assert LogScale.around([10.0]).place(10.0) >= 0.0
    assert LogScale.around([]).decades()


def test_curves_of_a_resumed_run_count_each_step_once():
    rows = [
        {"step": 10, "loss": 5.0},
        {"step": 20, "loss": 4.0},
        {
            "step": 20,
            "valid/loss": 4.4,
            "valid/codebook_0": 4.0,
            "valid/codebook_10": 4.8,
            "valid/codebook_2": 4.6,
        },
        {"step": 20, "loss": 4.1},
        {"step": 30, "loss": float("nan")},
    ]
    curves = read_curves(rows)
    assert curves.train == [Point(10, 5.0), Point(20, 4.1)]
    assert curves.valid == [Point(20, 4.4)]
    assert list(curves.codebooks) == [0, 2, 10]


# Waits until every picture and player has loaded or failed, and leaves what it saw in the page.
PROBE = """
<script>
window.addEventListener("load", async () => {
  const settled = (audio) => new Promise((resolve) => {
    if (audio.readyState >= 1 || audio.error) return resolve();
    for (const event of ["loadedmetadata", "error"]) audio.addEventListener(event, resolve, { once: true });
  });
  const audios = [...document.querySelectorAll("audio")];
  await Promise.all(audios.map(settled));
  const button = document.querySelector("button.picture");
  const press = (key) => button.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  press("ArrowRight"); press("ArrowRight"); press("ArrowLeft");
  const wide = document.createElement("pre");
  wide.id = "seen";
  wide.textContent = JSON.stringify({
    images: [...document.images].map((image) => image.naturalWidth),
    durations: audios.map((audio) => audio.duration),
    buttons: document.querySelectorAll("figure button.picture img").length,
    sought: audios[0].currentTime,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
  document.body.append(wide);
});
</script>
"""


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, 500])
def test_chromium_shows_and_plays_it(data: ReportData, tmp_path: Path, width: int):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    path = tmp_path / "report.html"
    write_report(path, data)
    probed = tmp_path / "probed.html"
    probed.write_text(
        path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    result = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1000",
            "--enable-logging=stderr",
            "--v=0",
            "--timeout=10000",
            "--virtual-time-budget=8000",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-2000:]
    seen = json.loads(found[1])
    assert len(seen["images"]) == 8
    assert all(width > 0 for width in seen["images"])
    assert seen["durations"] == pytest.approx([0.5] * 8, abs=0.01)
    assert seen["buttons"] == 8
    assert seen["sought"] == pytest.approx(0.5 / 20, abs=0.01)
    assert seen["overflow"] <= 0


def test_intervals_and_further_scores_are_shown(data: ReportData):
    score = Score("kl-generated-reference", 0.25, Interval(0.125, 0.375), "lower", note="mind the <gap>")
    rows = [replace(row, intervals={"fad": Interval(1.5, 2.5)}, others=[score]) for row in data.rows]
    page = render(replace(data, rows=rows))
    assert page.count("1.50…2.50") == len(rows)
    assert page.count("0.125…0.375") == len(rows)
    assert "KL(generated‖reference) ↓" in page
    assert "mind the &lt;gap&gt;" in page
    assert "Further scores" not in render(data)
