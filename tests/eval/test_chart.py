import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.eval.chart import (
    HEIGHT,
    LABEL_SPACING,
    MAX_POINTS,
    WIDTH,
    Point,
    Series,
    line_chart,
    thin,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(-100, 100), st.floats(1e-3, 1e6))
def test_ticks_are_round_few_and_in_range(low: float, span: float):
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    slack = 1e-6 * max(1.0, span, abs(low))
    assert all(low - slack <= tick <= low + span + slack for tick in found)
    assert {f"{b - a:.6e}"[:8] for a, b in itertools.pairwise(found)} <= {"1.000000", "2.000000", "5.000000"}


def test_ticks_of_a_typical_loss():
    assert ticks(2.3, 6.9) == [3.0, 4.0, 5.0, 6.0]
    assert ticks(0, 3000) == [0, 1000, 2000, 3000]
    assert ticks(4.0, 4.0) == [4.0]


def test_long_curves_are_averaged():
    points = [Point(step, float(step % 2)) for step in range(10 * MAX_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS
    assert {point.value for point in thinned} == {0.5}
    assert thinned[-1].step == points[-1].step
    assert thin(points[:5]) == points[:5]


def test_everything_is_drawn_inside_and_labels_do_not_overlap():
    series = [
        Series(f"line {index}", [Point(step, 5 / step + 0.001 * index) for step in (1, 2, 4)], "a")
        for index in range(8)
    ]
    root = ET.fromstring(line_chart(series, "eight lines"))
    lines = root.findall(f".//{SVG}polyline")
    assert len(lines) == 8
    for line in lines:
        numbers = [float(number) for number in re.findall(r"[\d.]+", line.attrib["points"])]
        assert all(0 <= x <= WIDTH for x in numbers[::2])
        assert all(0 <= y <= HEIGHT for y in numbers[1::2])
    heights = sorted(float(label.attrib["y"]) for label in root.findall(f".//{SVG}text[@class='label']"))
    assert all(b - a >= LABEL_SPACING - 1e-6 for a, b in itertools.pairwise(heights))
    assert heights[-1] <= HEIGHT


def test_falling_values_go_down_the_page():
    root = ET.fromstring(line_chart([Series("loss", [Point(1, 5.0), Point(9, 2.0)], "a")], "loss"))
    (x0, y0), (x1, y1) = (
        map(float, pair.split(",")) for pair in root.find(f".//{SVG}polyline").attrib["points"].split()
    )
    assert x0 < x1
    assert y0 < y1  # y counts from the top


def test_one_point_and_constant_curves_are_no_division_by_zero():
    for points in ([Point(5, 1.0)], [Point(5, 1.0), Point(6, 1.0)]):
        assert "nan" not in line_chart([Series("loss", points, "a")], "loss")


def test_text_is_escaped():
    svg = line_chart([Series("<b>&", [Point(1, 1.0)], "a")], 'a "quote"')
    assert ET.fromstring(svg).attrib["aria-label"] == 'a "quote"'
    assert "<b>" not in svg


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([Series("loss", [], "a")], "loss")
