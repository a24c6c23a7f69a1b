"""SVG charts: well-formed, true to the data, escaped."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from s2robot.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Dot,
    Mark,
    Series,
    dot_chart_svg,
    line_chart_svg,
    mark_chart_svg,
)  # fmt: skip

HOSTILE = '</text><script>alert("x")</script>&'


def line_points(svg: str, line: int = 0) -> list[tuple[float, float]]:
    lines = [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("polyline")]
    return [tuple(map(float, pair.split(","))) for pair in lines[line].get("points", "").split()]  # type: ignore[misc]


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_points_lie_where_their_values_say_inside_the_box() -> None:
    points = line_points(line_chart_svg([Series("loss", [0, 5, 10], [4.0, 1.0, 2.0])], "t", "x", "y"))
    xs, ys = zip(*points, strict=True)
    assert xs == pytest.approx((LEFT, (LEFT + RIGHT) / 2, RIGHT))
    assert ys[0] < ys[2] < ys[1]  # SVG counts downwards
    assert (ys[1] - ys[0]) == pytest.approx(3 * (ys[1] - ys[2]), abs=0.3)
    assert all(TOP <= y <= BOTTOM for y in ys)


def test_equal_ratios_are_equal_distances_on_a_log_axis() -> None:
    svg = line_chart_svg([Series("loss", [0, 1, 2], [100.0, 10.0, 1.0])], "t", "x", "y", log_y=True)
    ys = [y for _, y in line_points(svg)]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert {"1", "10", "100"} <= set(words(svg))


def test_whole_things_are_counted_in_whole_numbers() -> None:
    dots = [Dot(place, 10.0 * place, str(place), crossed=False) for place in (1, 2, 3)]
    ticks = [float(word) for word in words(dot_chart_svg(dots, ("yes", "no"), "", "rollout", "")) if word.isdigit()]
    assert {1.0, 2.0, 3.0} <= set(ticks) and "1.5" not in words(dot_chart_svg(dots, ("yes", "no"), "", "rollout", ""))


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    series = Series("loss", [0, 1, 2, 3, 4], [1.0, math.nan, math.inf, 0.0, 2.0])
    assert len(line_points(line_chart_svg([series], "t", "x", "y"))) == 3
    assert len(line_points(line_chart_svg([series], "t", "x", "y", log_y=True))) == 2


@pytest.mark.parametrize(
    ("low", "log_y", "drawn"), [(0.5, True, 2), (0.0, True, 1), (0.0, False, 2), (math.nan, False, 1)]
)
def test_an_interval_that_cannot_be_drawn_is_left_out(low: float, log_y: bool, drawn: int) -> None:
    series = Series("loss", [0, 1], [1.0, 2.0], [0.5, low], [1.5, 3.0])
    svg = line_chart_svg([series], "t", "x", "y", log_y=log_y)
    assert "nan" not in svg and len(line_points(svg)) == 2
    assert svg.count('stroke-opacity=".6"') == drawn


@pytest.mark.parametrize("y", [[], [1.0], [3.0, 3.0], [0.0, 0.0], [math.nan], [1e-9, 2e-9], [1e12, -1e12]])
@pytest.mark.parametrize("log_y", [False, True])
def test_degenerate_series_still_give_a_chart(y: list[float], log_y: bool) -> None:
    svg = line_chart_svg([Series("loss", list(range(len(y))), y)], "t", "x", "y", log_y=log_y)
    ElementTree.fromstring(svg)
    assert "nan" not in svg


def test_a_long_series_keeps_its_spike_and_stays_small() -> None:
    y = [1.0 + 0.01 * (i % 7) for i in range(50_000)]
    y[31_415] = 9.0
    points = line_points(line_chart_svg([Series("loss", list(range(50_000)), y)], "t", "x", "y"))
    assert len(points) <= MOST_POINTS + 2
    top = min(points, key=lambda point: point[1])
    assert top[0] == pytest.approx(LEFT + 31_415 / 49_999 * (RIGHT - LEFT), abs=0.1)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_the_legend_names_several_series_and_spares_a_single_one() -> None:
    one, two = Series("training", [0, 1], [1, 2]), Series("held-out", [0, 1], [2, 3])
    assert "training" not in words(line_chart_svg([one], "t", "x", "y"))
    assert {"training", "held-out", "t", "x", "y"} <= set(words(line_chart_svg([one, two], "t", "x", "y")))


def test_text_takes_the_colour_of_the_page() -> None:
    svg = line_chart_svg([Series("loss", [0, 1], [1, 2])], "t", "x", "y")
    texts = [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {element.get("fill") for element in texts} == {"currentColor"}


def test_failures_are_told_apart_by_shape_not_by_colour_alone() -> None:
    svg = dot_chart_svg(
        [Dot(1, 50, "seed 1"), Dot(2, 150, "seed 2", crossed=True)], ("success", "failure"), "t", "x", "y"
    )
    tips = {}
    for element in ElementTree.fromstring(svg).iter():
        for child in element:
            if child.tag.endswith("title"):
                tips[child.text] = element.tag.rpartition("}")[2]
    assert tips == {"seed 1": "circle", "seed 2": "path"}


def test_every_word_is_escaped() -> None:
    line = line_chart_svg([Series(HOSTILE, [0, 1], [1, 2])] * 2, HOSTILE, HOSTILE, HOSTILE)
    dots = dot_chart_svg([Dot(0, 1, HOSTILE)], (HOSTILE, HOSTILE), HOSTILE, HOSTILE, HOSTILE)
    for svg in (line, dots):
        assert "<script" not in svg
        assert HOSTILE in words(svg)


def test_a_mark_keeps_its_colour_wherever_it_lies() -> None:
    """Two charts of the same arms, one over cost and one over rate, are read side by side."""

    def colours(xs: tuple[float, float]) -> list[str]:
        svg = mark_chart_svg([Mark(x, 50, 40, 60, name) for x, name in zip(xs, "ab", strict=True)], "t", "x", "y")
        circles = [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("circle")]
        return [each.attrib["style"] for each in sorted(circles, key=lambda each: float(each.attrib["cx"]))]

    assert colours((1, 2)) == colours((2, 1))[::-1]


def test_names_of_near_marks_stand_in_the_order_of_their_values_and_apart() -> None:
    values = {"s2": 71.0, "base": 71.0, "finest": 70.0, "random": 56.0, "wide": 74.5}
    marks = [Mark(2.0 if name != "wide" else 2.01, y, y - 9, y + 9, name) for name, y in values.items()]
    found = ElementTree.fromstring(mark_chart_svg([*marks, Mark(0.4, 71, 60, 80, "far")], "t", "x", "y"))
    heights = {each.text: float(each.attrib["y"]) for each in found.iter() if each.tag.endswith("text")}
    upwards = sorted(values, key=lambda name: -heights[name])
    assert [values[name] for name in upwards] == sorted(values.values())
    assert all(heights[low] - heights[high] >= 13 for low, high in itertools.pairwise(upwards))


def test_a_long_legend_takes_more_rows_and_no_name_leaves_the_picture() -> None:
    names = [f"a curve of the name {k}" for k in range(9)]
    one, many = (line_chart_svg([Series(n, [0, 1], [0, 1]) for n in some], "", "x", "y") for some in (names[:2], names))
    assert "translate" not in one and (set(names) | {"x", "y"}) <= set(words(many))
    texts = [each for each in ElementTree.fromstring(many).iter() if each.text in names]
    places = [(float(each.attrib["x"]), float(each.attrib["y"])) for each in texts]
    marks = [float(x) for x in re.findall(r'<circle cx="([-\d.]+)" cy="[\d.]+" r="5"', many)]
    assert len(marks) == len(set(places)) == 9 and min(marks) >= 5
    lower = float(re.findall(r"translate\(0 (\d+)\)", many)[0])
    assert max(y for _, y in places) < TOP + lower and f"{HEIGHT + lower:g}" in many.split('viewBox="')[1][:20]


def test_the_legend_leaves_room_for_what_the_axis_is_called() -> None:
    names = ["reach-attention", "reach-features (3 seeds)", "reach-state"]
    svg = line_chart_svg([Series(name, [0, 1], [0, 1]) for name in names], "", "steps", "success [%]")
    marks = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="39', svg)]
    assert len(marks) == 3 and min(marks) > 8 * len("success [%]")
