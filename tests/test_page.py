"""HTML building blocks: text is escaped unless it says it is markup."""

from __future__ import annotations

from s2robot.page import Html, bars, document, facts, interval_bar, listed, many, table, tag


def test_plain_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c") == "<p>a &lt; b &amp; c</p>"
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert tag("p", Html("<i>x</i>")) == "<p><i>x</i></p>"


def test_attributes_are_escaped_bare_or_left_out() -> None:
    written = tag("video", controls=True, muted=False, poster=None, class_="wide", aria_label='"><script>')
    assert written == '<video controls class="wide" aria-label="&quot;&gt;&lt;script&gt;"></video>'


def test_formatting_markup_makes_it_text_again() -> None:
    # f"{Html}" is a plain str: forgetting to mark it shows up as visible tags, never as an injection.
    assert tag("p", f"{tag('b', 'x')}!") == "<p>&lt;b&gt;x&lt;/b&gt;!</p>"


def test_an_interval_bar_says_in_words_what_it_draws() -> None:
    bar = interval_bar(0.865, 0.96, 0.989)
    assert 'aria-label="96.0%, interval 86.5% to 98.9%"' in bar
    assert "left:86.50%;width:12.40%" in bar


def test_bars_are_measured_against_the_longest() -> None:
    drawn = bars([("a", 5.0, "5 s", ""), ("b", 10.0, "10 s", "")])
    assert drawn.index("width:50.00%") < drawn.index("width:100.00%")
    assert "width:0.00%" in bars([("a", 0.0, "0 s", "")])


def test_parameters_are_counted_in_the_unit_that_they_round_to() -> None:
    assert [many(n) for n in (999, 999_400, 999_600, 5_491_584)] == ["999", "999k", "1M", "5.49M"]


def test_unknown_facts_are_left_out() -> None:
    assert "GPU" not in facts([("GPU", None), ("CPU", "x")])


def test_lists_keep_zeros_and_leave_out_what_says_nothing() -> None:
    assert listed({"a_b": 0, "c": None, "d": [1, 2], "e": False, "f": "", "g": []}) == "a b 0; d 1, 2"


def test_cells_of_a_stacked_table_carry_their_column_name() -> None:
    assert '<td class="num" data-label="Steps">3</td>' in table(["Steps"], [["3"]], numeric=[0], stack=True)


def test_a_document_is_a_whole_page_in_light_and_dark() -> None:
    page = document("a & b", tag("p", "x"))
    assert page.startswith("<!doctype html>")
    assert "<title>a &amp; b</title>" in page
    assert "prefers-color-scheme:dark" in page
