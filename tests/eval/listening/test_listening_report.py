"""The report: what a page shows, what the files hold, and the command on a test that was answered."""

import csv
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from starlette.testclient import TestClient

from tokkata.eval.bootstrap import Interval
from tokkata.eval.listening import session
from tokkata.eval.listening.analysis import analyse
from tokkata.eval.listening.database import Database
from tokkata.eval.listening.definition import database_path
from tokkata.eval.listening.listening_report import (
    Axis,
    histogram,
    p_value,
    points,
    render,
    span,
    summary,
    tables,
    write_report,
)
from tokkata.eval.listening.ratings import read_ratings
from tokkata.eval.listening.server import make_app
from tokkata.eval.listening.session import load_test, register
from tokkata.tests.eval.listening.answering import Listener, body_of
from tokkata.tests.eval.listening.made_ratings import (
    clicked_ratings,
    honest_ratings,
    made_definition,
    made_rating,
    mushra_ratings,
    preference_counts,
    preference_ratings,
)

MEANS = {"ours": 3.9, "baseline": 3.0, "reference": 4.7, "anchor_3500": 1.6}
HOSTILE = '<script>alert("x")</script>&amp;'


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] not in ("style", "script"):
            self.text += data


def acr_analysis(num=10, **changes):
    ratings = honest_ratings(MEANS, num, 8, seed=3) + clicked_ratings(MEANS, 2, 8, seed=1)
    scores = {"fad": {"ours": 1.0, "baseline": 2.0, "reference": 0.1}}
    return analyse(made_definition(["ours", "baseline"], **changes), ratings, scores)


def ab_analysis():
    systems = ["ours", "baseline", "older"]
    counts = preference_counts([0.8, 0.0, -0.8], 0.5, 12, 8, np.random.default_rng(0))
    return analyse(made_definition(systems, method="ab"), preference_ratings(systems, counts))


def mushra_analysis():
    means = {"ours": 62, "baseline": 45, "reference": 95, "anchor_3500": 25}
    return analyse(made_definition(["ours", "baseline"], method="mushra"), mushra_ratings(means, 10, 6))


ANALYSES = {"acr": acr_analysis, "ab": ab_analysis, "mushra": mushra_analysis}


@pytest.fixture(scope="module")
def analyses():
    return {name: make() for name, make in ANALYSES.items()}


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_is_loaded_from_elsewhere(analyses, name):
    text = render(analyses[name])
    for tag, attributes in Page(text).tags:
        for attribute in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize("name", ANALYSES)
def test_tables_and_pictures_can_be_read_aloud(analyses, name):
    page = Page(render(analyses[name]))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")


def test_the_page_says_what_was_found(analyses):
    page = Page(render(analyses["acr"]))
    ours = analyses["acr"].kept.opinions[0]
    assert f"{ours.mean:.2f}" in page.text
    assert f"{ours.interval.low:.2f} to {ours.interval.high:.2f}" in page.text
    assert f"{ours.naive.low:.2f} to {ours.naive.high:.2f}" in page.text
    assert "The naive interval, mean ± 1.96 s/√n, is too narrow" in page.text
    assert "Listener clicker00" in page.text
    assert "No correlation: 3 systems have" in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == len(MEANS)


def test_a_refused_interval_is_said_and_not_shown():
    analysis = acr_analysis(num=4)
    page = Page(render(analysis))
    said = (
        "No interval and no test: 4 listeners, and the test was set up to give none below 8 (min_listeners)."
    )
    assert page.text.count(said) == 1
    assert " is too narrow" not in page.text
    assert summary(analysis).endswith("No difference between systems could be tested.")


def test_no_text_becomes_markup():
    definition = made_definition(["ours", "baseline"], name=HOSTILE)
    ratings = [made_rating(**{**vars(one), "listener": HOSTILE}) for one in clicked_ratings(MEANS, 1, 6)]
    page = Page(render(analyse(definition, honest_ratings(MEANS, 9, 6) + ratings)))
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert page.text.count(HOSTILE) >= 2  # the heading, and the excluded listener


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acr", "10 listeners gave 320 ratings that count. ours is rated higher than baseline, with other"),
        ("ab", "12 listeners gave 288 answers that count. "),
        ("mushra", "10 listeners gave 240 ratings that count. ours is rated higher than baseline"),
    ],
)
def test_the_summary_is_two_sentences(analyses, name, expected):
    assert summary(analyses[name]).startswith(expected)


def test_files_hold_what_the_page_shows(analyses, tmp_path):
    ratings = honest_ratings(MEANS, 10, 8, seed=3)
    write_report(tmp_path, analyses["acr"], ratings, set(ratings[:5]))
    with (tmp_path / "opinions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = analyses["acr"].kept.opinions[0]
    assert (rows[0]["answers"], rows[0]["system"]) == ("counted", "ours")
    assert float(rows[0]["mean"]) == ours.mean
    assert float(rows[0]["interval_low"]) == ours.interval.low
    assert [row["answers"] for row in rows] == ["counted"] * 4 + ["all"] * 4
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for name, expected in tables(analyses["acr"]).items():
        assert [line for line in lines if line["table"] == name] == [
            {"table": name, **row} for row in expected
        ]
    lines = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text().splitlines()]
    assert sum(line.pop("counts") for line in lines) == 5
    assert lines == [vars(rating) for rating in ratings]


def test_numbers():
    assert (points(3.14159, (1, 5)), points(61.44, (0, 100)), points(None, (1, 5))) == ("3.14", "61.4", "–")
    assert (p_value(0.0004), p_value(0.0316), p_value(None)) == ("< 0.001", "0.032", "–")
    assert span(Interval(-0.5, 1.25), (1, 5)) == "−0.50 to 1.25"
    axis = Axis(1.0, 5.0)
    assert (axis.place(1), axis.place(3), axis.place(9)) == (0.0, 50.0, 100.0)
    assert axis.width(Interval(2.0, 3.0)) == 25.0


def test_bars_are_as_tall_as_their_counts():
    bars = re.findall(r'height="([\d.]+)" rx', histogram([0, 5, 10], ["1", "2", "3"], "three bars"))
    heights = [float(bar) for bar in bars]
    assert heights[0] == 0.0
    assert heights[2] == pytest.approx(2 * heights[1])
    assert 'aria-label="three bars"' in histogram([0], ["1"], "three bars")


@pytest.fixture
def answered(copy_test, tmp_path, monkeypatch):
    """The path of a test that two listeners have gone through over HTTP."""
    path = copy_test(tmp_path, "acr")
    now = [1e9]
    monkeypatch.setattr(session, "_clock", lambda: now[0])
    with Database(database_path(path)) as database:
        test = load_test(path)
        database.submit(lambda connection: register(connection, test)).result(10)
        client = TestClient(make_app(test, database, True))
        for number in range(2):
            listener = Listener.enrolled(client)
            state = listener.state()
            while state["stage"] == "trial":
                body = body_of(state["trial"], lambda values, clip, number=number: values[2 + number])
                now[0] += sum(body["listened_s"].values())
                state = listener.post("ratings", body).json()
    return path


def test_the_command_reports_a_test_that_was_answered(answered, tokkata, tmp_path):
    told = tokkata("listen", "report", answered, "--out", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert told.stdout == f"Look: {tmp_path / 'out' / 'report.html'}\n"
    lines = (tmp_path / "out" / "ratings.jsonl").read_text().splitlines()
    assert len(lines) == len(read_ratings(answered))
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "zephyr" in page.text
    # Whoever always gives the same answer does not count tones, and is excluded.
    assert page.text.count("of 1 attention trials wrong") >= 1


def test_the_report_lies_beside_the_test_by_default(answered, tokkata):
    assert tokkata("listen", "report", answered).returncode == 0
    assert (answered.parent / "test-report" / "report.html").exists()


def test_a_test_that_nobody_took_is_a_sentence(copy_test, tokkata, tmp_path):
    told = tokkata("listen", "report", copy_test(tmp_path, "acr"))
    assert told.returncode == 2
    assert "has no ratings yet" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.chromium
@pytest.mark.parametrize(("name", "width"), [("acr", 1280), ("acr", 500), ("ab", 500)])
def test_chromium_shows_it_without_sideways_scrolling(analyses, tmp_path, name, width):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    probe = (
        '<script>window.addEventListener("load", () => { document.body.dataset.overflow ='
        " document.documentElement.scrollWidth - document.documentElement.clientWidth; });</script>"
    )
    path = tmp_path / "report.html"
    path.write_text(render(analyses[name]).replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    overflow = re.search(r'data-overflow="(-?\d+)"', result.stdout)
    assert overflow
    assert int(overflow[1]) <= 0
