"""One self-contained HTML page: no script, no request, light and dark, wide and narrow.

Escaping is the default: a plain `str` is text, only `Html` is markup. Nothing read from a file can
become markup unless code here says so.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any


class Html(str):
    """Markup that may stand in a page as it is."""


Child = str | None
Attribute = str | int | bool | None

VOID = {"img", "meta", "br"}  # elements without an end tag
NUMBERS_END = "num"  # class of table cells whose digits stand under each other


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """`tag("p", "a < b", class_="note")` -> `<p class="note">a &lt; b</p>`. True is a bare attribute, None is none."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None)
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{inside}</{name}>")


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def section(title: str, *children: Child) -> Html:
    return tag("section", tag("h2", title), *children)


def note(*children: Child) -> Html:
    """A remark that keeps the reader from drawing the wrong conclusion."""
    return tag("p", *children, class_="note")


def data_uri(path: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def image(path: Path, alt: str, caption: Child = None) -> Html:
    return _figure(tag("img", src=data_uri(path, "image/png"), alt=alt), caption)


def video(path: Path, label: str, caption: Child = None) -> Html:
    source = data_uri(path, "video/mp4")
    player = tag("video", src=source, controls=True, autoplay=True, muted=True, loop=True, playsinline=True,
                 preload="auto", aria_label=label)  # fmt: skip
    return _figure(player, caption)


def chart(svg: str) -> Html:
    """Inline SVG from `s2robot.charts`, which escapes its own words."""
    return _figure(Html(svg), None)


def _figure(content: Html, caption: Child) -> Html:
    return tag("figure", content, tag("figcaption", caption) if caption else None)


def table(
    header: Sequence[str], rows: Iterable[Sequence[Child]], numeric: Sequence[int] = (), *, stack: bool = False
) -> Html:
    """`numeric` names columns that align right. On a narrow screen the table scrolls, or its rows become cards."""
    ends = [NUMBERS_END if column in numeric else None for column in range(len(header))]
    names = tag("tr", *(tag("th", name, class_=end) for name, end in zip(header, ends, strict=True)))
    lines = [
        tag("tr", *(tag("td", cell, class_=end, data_label=name if cell else None)
                    for cell, end, name in zip(row, ends, header, strict=True)))
        for row in rows
    ]  # fmt: skip
    content = tag("table", tag("thead", names), tag("tbody", *lines), class_="stack" if stack else None)
    return tag("div", content, class_="scroll")


def facts(pairs: Iterable[tuple[str, Child]]) -> Html:
    """Names and values; a value that is not known is left out."""
    known = [(name, value) for name, value in pairs if value]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in known))


def tiles(pairs: Iterable[tuple[str, str, str]]) -> Html:
    """The few numbers to remember: what, how much, and a word on it."""
    what, word = {"class_": "what"}, {"class_": "word"}
    return tag("div", *(
        tag("div", tag("span", name, **what), tag("strong", value), tag("span", remark, **word), class_="tile")
        for name, value, remark in pairs
    ), class_="tiles")  # fmt: skip


def interval_bar(low: float, point: float, high: float) -> Html:
    """Where a rate lies between 0 and 1: the interval as a band, the measured value as a line."""
    band = tag("span", class_="band", style=f"left:{low:.2%};width:{high - low:.2%}")
    mark = tag("span", class_="mark", style=f"left:{point:.2%}")
    words = f"{point:.1%}, interval {low:.1%} to {high:.1%}"
    return tag("span", band, mark, class_="interval", role="img", aria_label=words)


def bars(rows: Iterable[tuple[str, float, str, str]]) -> Html:
    """Horizontal bars against the longest: name, length, the length in words, a detail below."""
    rows = list(rows)
    longest = max((length for _, length, _, _ in rows), default=0.0) or 1.0
    return tag("div", *(
        tag("div", tag("span", name), tag("span", tag("i", style=f"width:{length / longest:.2%}"), class_="track"),
            tag("b", words), tag("small", detail), class_="row")
        for name, length, words, detail in rows
    ), class_="bars")  # fmt: skip


def listed(values: Mapping[str, Any]) -> str:
    """Names and values in a row; what is unknown, empty or false is left out."""
    known = {key: value for key, value in values.items() if value or (value == 0 and value is not False)}
    return "; ".join(
        f"{key.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in known.items()
    )


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}".removesuffix(".0") + "\u00a0%"


def percent_range(low: float, high: float) -> str:
    return f"{100 * low:.1f}\u2060\u2013\u2060{100 * high:.1f}\u00a0%"  # kept on one line


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def many(value: float | None) -> str:
    """As parameters are counted: 5.49M, 812k."""
    if value is None:
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if float(f"{value:.3g}") >= size:  # 999,600 is 1M, not 1e+03k
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def document(title: str, *body: Child) -> str:
    head = join([
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(CSS)),
    ])  # fmt: skip
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', tag('main', *body)), lang='en')}\n"


CSS = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6570;--line:#dfe3e8;--accent:#1f6feb;--band:#a9c9fa;
--note:#fff7e0;--note-line:#e3b341;--series-1:#1f6feb;--series-2:#cf5a00;--series-3:#1a7f4b}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#171b22;--ink:#e6e9ee;--soft:#98a3b0;--line:#2b323c;
--accent:#6ea8fe;--band:#28477c;--note:#272211;--note-line:#9a7b22;--series-1:#6ea8fe;--series-2:#ff9d57;--series-3:#56c98b}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:920px;margin:0 auto;padding:40px 20px 64px}
header{margin-bottom:28px}
h1{font-size:1.9rem;line-height:1.2;margin:4px 0 12px;letter-spacing:-.015em}
h2{font-size:1.15rem;margin:0 0 12px}
p{margin:0 0 12px;max-width:70ch}
.eyebrow,.what{color:var(--soft);font-size:.8rem;letter-spacing:.02em}
.verdict{font-size:1.2rem;line-height:1.45}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px;margin:0 0 18px}
section>:last-child{margin-bottom:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px;
display:flex;flex-direction:column}
.tile strong{font-size:1.5rem;line-height:1.3;font-variant-numeric:tabular-nums}
.word,small,figcaption,.soft{color:var(--soft);font-size:.88rem}
figure{margin:0 0 16px}
img,video{display:block;width:100%;height:auto;border-radius:8px}
figcaption{margin-top:8px;max-width:70ch}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:18px}
.pair>*{margin:0}
.pair,.narrow{margin-bottom:18px}
.narrow{max-width:640px}
.chart{display:block;width:100%;max-width:680px;height:auto}
.note{background:var(--note);border-left:3px solid var(--note-line);border-radius:0 8px 8px 0;
padding:10px 14px;font-size:.95rem}
.scroll{overflow-x:auto;margin:0 0 14px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:8px 14px 8px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.interval{position:relative;display:block;height:18px;min-width:120px;margin:3px 0;
border-radius:4px;background:var(--line)}
.interval .band{position:absolute;top:0;bottom:0;background:var(--band);border-radius:4px}
.interval .mark{position:absolute;top:-3px;bottom:-3px;width:3px;margin-left:-1.5px;
background:var(--accent);border-radius:2px}
.big .interval{height:26px;margin-top:10px}
.scale{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;margin:4px 0 14px}
.bars .row{display:grid;grid-template-columns:7.5em 1fr 6.5em;column-gap:12px;align-items:center;margin-bottom:10px}
.bars b{font-weight:600;text-align:right;font-variant-numeric:tabular-nums}
.bars small{grid-column:2/4}
.track i{display:block;height:14px;min-width:2px;border-radius:3px;background:var(--accent)}
dl{margin:0 0 14px}
dl div{display:grid;grid-template-columns:11em 1fr;gap:12px;padding:7px 0;border-bottom:1px solid var(--line)}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{overflow-x:auto;background:var(--page);border-radius:8px;padding:12px 14px;margin:10px 0}
summary{cursor:pointer;color:var(--accent);padding:4px 0}
footer{color:var(--soft);font-size:.85rem;padding:4px 2px}
@media(max-width:560px){main{padding:24px 12px 40px}section{padding:16px 14px}
h1{font-size:1.5rem}.verdict{font-size:1.08rem}
.chart{font-size:19px}dl div{grid-template-columns:1fr;gap:0}.bars .row{grid-template-columns:1fr auto}
.stack thead,.stack td:empty{display:none}.stack tr{display:block;padding:8px 0;border-bottom:1px solid var(--line)}
.stack td{display:grid;grid-template-columns:9em 1fr;gap:12px;border:0;padding:3px 0;text-align:left;white-space:normal}
.stack td::before{content:attr(data-label);color:var(--soft)}
.bars .track{grid-column:1/3;grid-row:2}.bars small{grid-column:1/3}.tiles{grid-template-columns:1fr 1fr}}
@media print{body{background:none}section{break-inside:avoid}}
"""
