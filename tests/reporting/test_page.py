"""What a page is as text: escaped, bounded, whole."""

from __future__ import annotations

import html
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.reporting import writing
from mrecg_onnx.reporting.comparisons import _leading
from mrecg_onnx.reporting.content import (
    DASH,
    Cell,
    Column,
    Commands,
    Fact,
    Page,
    Pairs,
    Picture,
    Pictures,
    Section,
    Table,
    UnitBox,
    Units,
    shown,
)
from mrecg_onnx.reporting.figures import draw_curve, draw_dots, draw_graph, draw_histogram, draw_profile
from mrecg_onnx.reporting.measuring import Histogram, _histogram
from mrecg_onnx.reporting.sections import percent

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onmouseover=alert(1) x='",
    "</title></style></svg><img src=x onerror=alert(1)>",
    "a\x00b\x1b[31m\u202e\x7f\ud800",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{a}{b}$",
    "]]>&lt;b&gt;",
    "x" * 10_000,
    "<b>" * 4_000,
]


def page_of(name: str) -> str:
    """A page that has ``name`` wherever a page has text."""
    table = Table(
        (Column(name, hint=name), Column(name, "number")),
        ((Cell(shown(name), title=shown(name, 240)), Cell(shown(name), order=1.0, share=0.5)),),
        filtered=True,
        note=shown(name),
    )
    picture = Picture(
        "data:image/png;base64,AA==", shown(name), ((shown(name), 0.9),), ((shown(name), 0.8),), shown(name)
    )
    histogram = Histogram(
        shown(name),
        shown(name),
        (0.0, 1.0, 2.0),
        (1, 2),
        (0, 1),
        (0.0, 1.0),
        -0.5,
        1.5,
        0.0,
        0.5,
        -3.0,
        3.0,
        shown(name),
    )
    parts = [
        table,
        draw_curve([1.0, 2.0], [(0, 1, 0.5)], ("before", "after"), [name, name]),
        draw_profile([(name, 10.0, 20.0), (name, None, 3.0)], ("output", "weights")),
        draw_graph([(0, 0, name), (1, 2, name), (3, 3, name)], [(0, 1), (1, 2), (0, 2)]),
        draw_dots([("W4A4", [(name, 50.0, 40.0, 60.0)])], 70.0, "top-1, %"),
        draw_histogram(histogram),
        Pairs(((shown(name), shown(name), True),)),
        Pictures((picture,)),
        Units((UnitBox("1", shown(name), shown(name), joined=True, reads=shown(name), title=shown(name)),)),
    ]
    section = Section("layers", shown(name), shown(name), parts)
    facts = (Fact(shown(name), shown(name), shown(name)),)
    return writing.page_text(
        Page(shown(name), shown(name), shown(name), facts, (name,), (section,), name, ((name, name),))
    )


class Elements(HTMLParser):
    """Elements with their attributes, and the page's text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def counted(page: Elements) -> Counter[str]:
    """How often each element occurs; ticks of a drawing and words kept whole depend on the labels."""
    return Counter(
        tag
        for tag, _ in page.found
        if tag not in {"wbr", "span", "g", "use", "path", "text", "defs", "clippath", "rect"}
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=str(i), marks=pytest.mark.slow if i % 3 else ()) for i, name in enumerate(HOSTILE)]
)
def test_no_name_is_markup(name: str):
    plain, page = Elements(page_of("name")), page_of(name)
    hostile = Elements(page)
    assert counted(hostile) == counted(plain)
    assert {tag for tag, _ in hostile.found} - {"wbr"} == {tag for tag, _ in plain.found} - {"wbr"}
    allowed = {key for _, attributes in plain.found for key in attributes}
    assert {key for _, attributes in hostile.found for key in attributes} <= allowed
    assert not any(key.startswith("on") for key in allowed)
    assert page.count("<script>") == 1
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    assert all(character.isprintable() or character in "\n\t" for character in body)
    page.encode("utf-8")


def test_columns_in_which_no_row_says_anything_are_left_out():
    columns = (Column("Output"), Column("SQNR, dB", "number"), Column("Equal values", "number"))
    table = Table(columns, ((Cell("boxes"), Cell("23.5"), Cell("")), (Cell("scores"), Cell(DASH), Cell(DASH))))
    assert [column.title for column in table.filled.columns] == ["Output", "SQNR, dB"]
    assert [[cell.text for cell in row] for row in table.filled.rows] == [["boxes", "23.5"], ["scores", DASH]]
    assert Table(columns, ()).filled.columns == columns
    page = Page("t", "k", "", (), (), (Section("outputs", "Outputs", "", [table]),), "", ())
    assert "SQNR, dB" in writing.page_text(page)
    assert "Equal values" not in writing.page_text(page)


def test_long_names_are_shortened_in_the_middle():
    assert shown("layer") == "layer"
    text = shown("/blocks/" + "x" * 10_000 + "/conv/Conv")
    assert len(text) == 64
    assert text.startswith("/blocks/")
    assert text.endswith("/conv/Conv")
    assert shown("a\nb") == "a\\nb"


def test_names_stay_readable():
    said = "".join(Elements(page_of("a<b&c>'d'")).said)
    assert "a<b&c>'d'" in said
    assert html.escape("a<b") in page_of("a<b")


def test_a_command_of_several_lines_stays_one_and_figures_stay_with_their_units():
    page = Page("t", "k", "", (), (), (), "# a <b> comment\nmrecg-onnx 'x\x1b'", ())
    assert (
        "<pre><code># a &lt;b&gt; comment\n<span>mrecg-onnx</span> &#39;x\\x1b&#39;</code></pre>"
        in writing.page_text(page)
    )
    cells = tuple(map(Cell, ("18.8 dB", "93.61% to 98.62%", "same within noise", "<i> to <b>")))
    table = Table(tuple(Column("c", "number") for _ in cells), (cells,))
    text = writing.page_text(Page("t", "k", "", (), (), (Section("s", "S", "", [table]),), "", ()))
    for shown_text in ("18.8&nbsp;dB", "93.61% to&nbsp;98.62%", ">same within noise<", "&lt;i&gt; to&nbsp;&lt;b&gt;"):
        assert shown_text in text


def test_a_page_needs_nothing_beside_it():
    page = page_of("name")
    for tag, attributes in Elements(page).found:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        source = attributes.get("src") or ""
        assert not source or source.startswith("data:image/")
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
    assert "http-equiv" in page
    assert "default-src 'none'" in page
    assert "url(http" not in page


def test_colours_of_drawings_are_the_pages():
    (wide, narrow) = draw_curve([1.0, 2.0], [(0, 0, 0.5), (1, 1, 0.7)], ("a", "b"), ["x", "y"]).drawings
    for drawing in (wide, narrow):
        assert "var(--accent)" in drawing
        assert "#0a0b0c" not in drawing
    assert wide == draw_curve([1.0, 2.0], [(0, 0, 0.5), (1, 1, 0.7)], ("a", "b"), ["x", "y"]).drawings[0]


def test_ids_occur_once():
    page = page_of("name")
    ids = [a["id"] for _, a in Elements(page).found if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_page_that_grew_too_large_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "MOST_BYTES", 10_000)
    with pytest.raises(ExportError, match="more than 10000"):
        page_of("name")


def test_a_network_of_thousands_of_layers_with_long_names_stays_within_bounds():
    columns = tuple(Column(f"c{i}", "number") for i in range(12))
    name = "<" * 10_000
    rows = tuple(
        tuple(Cell(shown(name, 48), title=shown(name, 240)) if i < 2 else Cell("1.0", 1.0) for i in range(12))
        for _ in range(1500)
    )
    page = Page("t", "k", "", (), (), (Section("layers", "Layers", "", [Table(columns, rows, filtered=True)]),), "", ())
    text = writing.page_text(page)
    assert len(text.encode()) < 2_000_000
    assert "the page would be too large" in text


def test_the_graph_of_units_has_a_mark_a_unit_and_an_arc_for_what_is_read_from_further_ahead():
    units, edges = [(0, 0, "a"), (1, 2, "b"), (3, 3, "c"), (4, 4, "d")], [(0, 1), (1, 2), (2, 3)]
    chain, skips = (draw_graph(units, edges + more) for more in ([], [(0, 2), (1, 3)]))
    for drawing in skips.drawings:
        assert [f"<title>{text}</title>" in drawing for text in ("1 a", "2 to 3 b", "4 c", "5 d")] == [True] * 4
    curves = [
        sum(len(re.findall(r"\bC ", path)) for path in re.findall(r'<path d="([^"]*)" clip-path', drawing))
        for drawing in (chain.drawings[0], skips.drawings[0])
    ]
    assert curves == [0, 2]


def test_thousands_of_units_are_drawn_in_few_marks():
    count = 3000
    figure = draw_curve([1.0] * count, [(i, i, 0.5) for i in range(count)], ("a", "b"), ["<" * 10_000] * count)
    assert sum(map(len, figure.drawings)) < 700_000


@pytest.mark.parametrize(
    "values", [[0.0, 1.4, -1.4], [0.0, 1.6], [0.0, 1.6, -1.6], [0.0] * 10**5 + [1.6], [0.0, 900.0, -1.6]]
)
def test_what_is_cut_off_is_red_and_nothing_else(values: list[float]):
    """Values up to half a step beyond the ends are rounded to them; what is further away is seen, however little or far it is."""
    every = np.array(values)
    off = np.abs(every) > 1.5
    shares = float((every < -1.5).mean()), float((every > 1.5).mean())
    found = _histogram("t", "c", every, every[off], (-1.0, 0.0, 1.0), (-1.5, 1.5), shares, "")
    assert sum(found.cut) == off.sum()
    assert sum(found.counts) == len(every)
    bins = zip(found.edges, found.edges[1:], found.counts, found.cut, strict=False)
    assert all(red == (count if b < -1.49 or a > 1.49 else 0) for a, b, count, red in bins)
    drawing = draw_histogram(found).drawings[0]
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*--bad', drawing)[0]
    heights = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", bars)]
    assert sum(y < max(heights) - 3 for y in heights) == 2 * sum(red > 0 for red in found.cut)
    assert drawing.count("stroke-dasharray") == sum(share > 0 for share in shares)
    assert ("to 900" in drawing) == (900.0 in values)


def test_figures_and_commands_are_broken_at_spaces_only():
    cells = (Cell("1.5e-05"), Cell("[4e-05]"), Cell("-1.50 points"))
    table = Table(tuple(Column("c", "number", minor=i > 1) for i, _ in enumerate(cells)), (cells,))
    sections = (Section("s", "S", "", [table, Commands("Next:", "quantize --metric mAP --wbits 4")]),)
    text = writing.page_text(Page("t", "k", "", (), (), sections, "", ()))
    for whole in ("<span>1.5e-05</span>", "<span>[4e-05]</span>", "-1.50&nbsp;points", "<span>--wbits</span> 4"):
        assert whole in text
    assert "Left out on a narrow screen: c." in text


def test_columns_of_text_are_sorted_by_what_they_mean():
    for ordered in (
        ["36 bytes", "980 kB", "1.20 MB", "406 MB", "1.02 GB"],
        ["40.0 ms", "0.8 s", "59.9 s", "1:48", "14:24", "1:02:05"],
        ["-1.50 points", "+0.00 points", "+12.00 points"],
        ["0.80x slower", "same within noise", "1.52x faster"],
    ):
        orders = [_leading(text) for text in ordered]
        assert orders == sorted(orders)


def test_shares_are_as_on_the_terminal():
    assert percent(0.862, 2) == f"{0.862:.2%}" == "86.20%"
