"""Rank correlation of listeners with computed scores, and reading those."""

import json

import numpy as np
import pytest
from scipy import stats

from tokkata.core.errors import UserError
from tokkata.eval.listening.correlation import correlate, gather_scores, spearman_interval, spearman_p


def test_a_perfect_ranking():
    found = correlate("quality", "fad", {name: (5.0 - k, 1.0 + k) for k, name in enumerate("abcd")})
    assert found.rho == pytest.approx(-1.0)
    assert found.p == pytest.approx(2 / 24)  # of 24 orders, two are as far from 0
    assert found.interval.low == -1.0
    assert found.interval.high > 0  # four systems show next to nothing


@pytest.mark.parametrize("num", [0, 1, 3])
def test_too_few_systems_get_a_sentence_and_no_number(num):
    found = correlate("quality", "fad", {name: (k, k) for k, name in enumerate("abc"[:num])})
    assert (found.rho, found.interval, found.p) == (None, None, None)
    assert found.note.startswith("No correlation: ")
    assert f"{num} system" in found.note


def test_equal_scores_have_no_ranks():
    assert correlate("quality", "fad", {name: (k, 2.0) for k, name in enumerate("abcd")}).rho is None


def test_rho_and_p_are_scipys():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 7))
    found = correlate("quality", "fad", {str(k): pair for k, pair in enumerate(zip(a, b, strict=True))})
    assert found.rho == pytest.approx(stats.spearmanr(a, b).statistic)
    # scipy's t approximation is near the exact share of orders.
    assert found.p == pytest.approx(stats.spearmanr(a, b).pvalue, abs=0.05)
    a, b = random.standard_normal((2, 12))
    assert spearman_p(a, b) == pytest.approx(stats.spearmanr(a, b).pvalue)


@pytest.mark.parametrize(("num", "correlation"), [(5, 0.8), (8, 0.0), (12, 0.8)])
def test_the_interval_covers(num, correlation):
    truth = 6 / np.pi * np.arcsin(correlation / 2)
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        x, noise = random.standard_normal((2, num))
        y = correlation * x + np.sqrt(1 - correlation**2) * noise
        found = spearman_interval(stats.spearmanr(x, y).statistic, num)
        hits += found.low <= truth <= found.high
    assert hits / 300 >= 0.92


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_scores_by_system(tmp_path):
    path = write(
        tmp_path / "s.json", {"ours": {"fad": 2, "num_clips": 9}, "baseline": {"fad": {"value": 3.5}}}
    )
    assert gather_scores([path], ["ours", "baseline"]) == {"fad": {"ours": 2.0, "baseline": 3.5}}
    path = write(tmp_path / "plain.json", {"ours": 2, "baseline": 3})
    assert gather_scores([path], ["ours"]) == {"score": {"ours": 2.0, "baseline": 3.0}}


def test_scores_of_runs(tmp_path):
    rows = [
        {"name": "generated", "fad": 2.5, "fad_infinity": {"value": 2.25, "slope": 9.0}, "note": "x"},
        {"name": "white noise", "fad": 90.0, "fad_infinity": None},
    ]
    one = write(tmp_path / "a.json", {"rows": rows})
    rows[0]["scores"] = [{"name": "kad", "value": 0.5}, {"name": "density", "value": None}]
    other = write(tmp_path / "b.json", {"rows": rows})
    found = gather_scores([f"ours={one}", f"baseline={other}"], ["ours", "baseline"])
    assert found == {"fad": {"ours": 2.5}, "fad_infinity": {"ours": 2.25}, "kad": {"baseline": 0.5}}


def test_scores_of_folders_are_named_by_their_embedding(tmp_path):
    rows = [
        {"name": name, "hours": 0.5, "num_clips": 9, "scores": [{"name": "fad", "value": value}]}
        for name, value in (("ours", 1.5), ("baseline", 2.5), ("white noise", None))
    ]
    tables = [{"info": {"name": name}, "rows": rows} for name in ("vggish", "clap")]
    found = gather_scores([write(tmp_path / "s.json", {"embeddings": tables})], ["ours", "baseline"])
    both = {"ours": 1.5, "baseline": 2.5}
    assert found == {"fad, vggish": both, "fad, clap": both}


@pytest.mark.parametrize(
    ("content", "source", "said"),
    [
        (None, "{}", "cannot be read"),
        ("{", "{}", "not valid JSON"),
        ("[1]", "{}", "must map the name"),
        ('{"ours": "good"}', "{}", "no number"),
        ('{"theirs": 1}', "{}", "name none of the systems ours"),
        ('{"rows": [{"fad": 1}]}', "{}", "rows without a name"),
        ('{"rows": [{"name": "real", "fad": 1}]}', "ours={}", "no row 'generated'"),
    ],
)
def test_bad_scores_are_one_sentence(tmp_path, content, source, said):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as raised:
        gather_scores([source.format(path)], ["ours"])
    assert "\n" not in str(raised.value)
