"""A page in a real browser: nothing on the console, rows that sort and filter, a theme that turns, a print of all of it.

Needs Chromium (or Chrome; MRECG_CHROMIUM names another one); skipped where it is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.command_line import FAST, works

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

#: Clicks through the page, and leaves what came of it in the page's own title.
STEPS = """
const rows = () => [...document.querySelectorAll("#layers tbody tr")].filter((row) => !row.hidden);
const texts = (index) => rows().map((row) => row.cells[index].textContent);
const heads = [...document.querySelectorAll("#layers th button")];
const at = (name) => heads.findIndex((head) => head.textContent === name);
const found = { order: texts(1) };
heads[at("Output")].click(); found.up = texts(at("Output"));
heads[at("Output")].click(); found.down = texts(at("Output"));
heads[at("Output")].click(); found.again = texts(1);
heads[at("Layer")].click(); found.names = texts(1);
heads[at("Layer")].click(); heads[at("Layer")].click();
const field = document.querySelector("#layers .filter input");
field.value = "CONV conv3"; field.dispatchEvent(new Event("input")); found.filtered = texts(1);
found.count = document.querySelector("#layers .count").textContent;
field.value = ""; field.dispatchEvent(new Event("input")); found.all = texts(1).length;
const colour = () => getComputedStyle(document.body).backgroundColor;
const before = [document.documentElement.dataset.theme, colour()];
document.getElementById("theme").click();
found.themes = [before, [document.documentElement.dataset.theme, colour()]];
found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.overlaps = [];
for (const drawing of document.querySelectorAll(".drawing svg")) {
  const every = [...drawing.querySelectorAll("text")].map((t) => [t.textContent.trim(), t.getBoundingClientRect()]);
  const boxes = every.filter(([t, b]) => t && b.width);
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 1 && y > 3) found.overlaps.push([boxes[i][0], boxes[j][0]]);
  }
}
found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
found.shown = [...document.querySelectorAll(".on-page, .on-phone")].map((e) => getComputedStyle(e).display);
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """Runs Chromium on a page and returns its output and what it wrote to the console."""
    names = [os.environ.get("MRECG_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    program = next((path for name in names if name and (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium, or its path in MRECG_CHROMIUM")
    profile = tmp_path_factory.mktemp("profile")

    def run(*arguments: str) -> tuple[str, str]:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
        base = [program, "--headless", *sandbox, f"--user-data-dir={profile}", "--no-first-run", "--disable-gpu"]
        base.append("--enable-logging=stderr")
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=180, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from helpers.command_line import classifier, write_images

    folder = tmp_path_factory.mktemp("page")
    onnx.save(classifier(), folder / "model.onnx")
    write_images(folder / "images", 24)
    command = ("quantize", folder / "model.onnx", "--calib", folder / "images", "--preprocess", "unit", *FAST)
    works(*command, "-o", folder / "q.onnx", "--report", folder / "page.html")
    return folder / "page.html"


def stepped(page: Path, folder: Path, steps: str = STEPS) -> Path:
    """The page with steps behind its script, allowed by its own policy."""
    import base64
    import hashlib

    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(steps.encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    path = folder / "stepped.html"
    path.write_text(text.replace("</body>", f"<script>{steps}</script></body>"), encoding="utf-8")
    return path


def found_in(output: str) -> dict:
    (text,) = re.findall(r"FOUND(.*)END", output)
    return json.loads(text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.parametrize("size", ["1200,900", "640,900"])
def test_rows_sort_and_filter_and_nothing_is_said_on_the_console(browser, page, tmp_path, size):
    output, console = browser(f"--window-size={size}", "--dump-dom", stepped(page, tmp_path).as_uri())
    assert console == ""
    found = found_in(output)
    order = ["stem", "conv1", "conv2", "depthwise", "project", "conv3", "conv4", "fc"]
    assert found["order"] == found["again"] == order
    assert [float(x) for x in found["up"]] == sorted(float(x) for x in found["up"])
    assert found["down"] == found["up"][::-1] or sorted(found["down"]) == sorted(found["up"])
    assert float(found["down"][0]) == max(float(x) for x in found["up"])
    assert found["names"] == sorted(order)
    assert found["filtered"] == ["conv3"]
    assert found["count"] == "1 of 8 rows"
    assert found["all"] == 8
    assert {theme for theme, _ in found["themes"]} == {"light", "dark"}
    assert len({colour for _, colour in found["themes"]}) == 2
    assert found["wide"] <= 0  # nothing is scrolled sideways but tables
    assert found["overlaps"] == []
    phone = size.startswith("640")
    assert (
        found["shown"] == ["none", "block"] * (len(found["shown"]) // 2)
        if phone
        else found["shown"][:2] == ["block", "none"]
    )


def test_it_prints(browser, page, tmp_path):
    _, console = browser(f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer", page.as_uri())
    assert console == ""
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") >= 2


def test_no_script_but_its_own_runs(browser, page, tmp_path):
    text = page.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'taken'</script></main>")
    (tmp_path / "other.html").write_text(text, encoding="utf-8")
    output, console = browser("--dump-dom", (tmp_path / "other.html").as_uri())
    assert "<title>taken" not in output
    assert "Content Security Policy" in console


#: Looks at every table: whether its columns have room, whether it says so where they have none, and what stays in sight.
TABLES = """
const found = [];
for (const edge of document.querySelectorAll(".edge")) {
  const box = edge.firstElementChild, key = edge.querySelector("tbody .key");
  const more = box.scrollWidth - box.clientWidth;
  const marked = () => ["left", "right"].filter((side) => edge.classList.contains(side));
  const at = () => key.getBoundingClientRect().left - box.getBoundingClientRect().left;
  found.push({ more, marked: marked(), at: at(), style: getComputedStyle(edge, "::after").opacity });
  box.scrollLeft = 150;
  box.dispatchEvent(new Event("scroll"));
  Object.assign(found.at(-1), { then: marked(), stays: at() });
}
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
"""


def test_a_comparison_fits_and_what_does_not_fit_says_so(browser, tmp_path):
    from mrecg_onnx.reporting.content import Cell, Column, Page, Section, Table
    from mrecg_onnx.reporting.writing import write_page

    row = {
        "method": "flexround", "bits": "W4A4", "top-1": "97.00%", "95 % interval": "93.61% to 98.62%",
        "top-1 change": "+11.00 points", "p, FP32": "0.625", "p, adaround": "0.688", "agreement": "100.00%", "SQNR": "18.8 dB",
        "time": "1105.3 s", "peak memory": "408 MB", "size": "65.5 kB", "latency": "0.0816 ms",
        "against FP32": "same within noise",
    }  # fmt: skip
    words = {"method", "bits"}
    columns = tuple(Column(name, "text" if name in words else "number") for name in row)
    fits = Table(columns, (tuple(Cell(text) for text in row.values()),) * 3)
    many = tuple(Column(f"column {i}", "number" if i else "text") for i in range(40))
    long = Table(many, (tuple(Cell("123.45 dB") for _ in many),) * 3)
    section = Section("cells", "Cells", "", [fits, long])
    write_page(Page("a page", "compare", "", (), (), (section,), "", ()), tmp_path / "tables.html")
    stepped_page = stepped(tmp_path / "tables.html", tmp_path, TABLES)
    output, console = browser("--window-size=1280,900", "--dump-dom", stepped_page.as_uri())
    assert console == ""
    first, second = found_in(output)
    assert first["more"] <= 0
    assert first["marked"] == first["then"] == []
    assert second["more"] > 500
    assert second["marked"] == ["right"]
    assert second["then"] == ["left", "right"]
    assert second["stays"] == second["at"] < 2
