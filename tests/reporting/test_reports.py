"""The pages of commands: what is on them, and that a file is the same with and without one."""

from __future__ import annotations

import re
import sys

import onnx
import pytest
from helpers.command_line import FAST, fails, works, write_images

import mrecg_onnx

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

QUANTIZE = ("quantize", "model.onnx", "--calib", "images", "--preprocess", "unit", *FAST)


def commands(page: str) -> str:
    """What is to be copied, without the marks that keep words whole."""
    return re.sub("</?span>", "", "\n".join(re.findall("<pre><code>(.*?)</code></pre>", page, re.DOTALL)))


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page)


def test_quantize_writes_a_page_and_the_same_file(here):
    works(*QUANTIZE, "-o", "plain.onnx")
    told = works(*QUANTIZE, "-o", "with.onnx", "--report", "page.html").stdout
    assert re.search(r"page +page.html", told)
    assert (here / "plain.onnx").read_bytes() == (here / "with.onnx").read_bytes()
    page = (here / "page.html").read_text()
    assert len(page.encode()) < 2_000_000
    assert sections(page) == ["losses", "layers", "tensors", "images", "units", "settings", "again"]
    again = commands(page)
    assert again.startswith("mrecg-onnx quantize model.onnx --calib images --output with.onnx ")
    assert "--preprocess unit" in again
    assert "--iters 5" in again
    for name in ("stem", "conv1", "project", "fc"):
        assert f'title="{name}"' in page
    assert page.count('<figure class="small">') == 8
    assert "Same answer as FP32" in page
    assert "learned from 16 images" in page


def test_labelled_images_give_accuracies(here):
    told = works(*QUANTIZE, "--method", "nearest", "-o", "q.onnx", "--data", "images", "--report", "page.html")
    assert "--data has no effect" not in told.stderr
    page = (here / "page.html").read_text()
    assert '<p class="label">Top-1</p>' in page
    assert "losses" not in sections(page)  # nothing is learned


def test_validate_writes_a_page(here):
    works(*QUANTIZE, "--method", "nearest", "-o", "q.onnx")
    command = ("validate", "model.onnx", "q.onnx", "--data", "images", "--repeats", 3, "--report", "page.html")
    assert re.search(r"^page +page.html$", works(*command).stdout, re.MULTILINE)
    page = (here / "page.html").read_text()
    assert sections(page) == ["accuracy", "outputs", "layers", "tensors", "images", "kernels", "again"]
    assert "McNemar" in page
    assert "mrecg-onnx validate model.onnx q.onnx --data images --repeats 3 --report page.html" in commands(page)


def test_layers_on_the_screen_are_those_of_the_page(here):
    write_images(here / "many", 70)
    nearest = (
        "quantize",
        "model.onnx",
        "--calib",
        "many",
        "--preprocess",
        "unit",
        "--method",
        "nearest",
        "--threads",
        1,
    )
    assert "70 calibration images, ranges of 64 of them" in works(*nearest, "-v", "-o", "q.onnx").stdout
    command = (
        "validate",
        "model.onnx",
        "q.onnx",
        "--data",
        "many",
        "--repeats",
        0,
        "--layers",
        "--report",
        "page.html",
    )
    told, page = works(*command).stdout, (here / "page.html").read_text()
    assert "layers as written against FP32 on 64 images" in told
    assert "on 64 images: 6 dB" in page
    section = page[page.index('<section id="layers">') : page.index('<section id="tensors">')]
    rows = re.findall("<tr>(.*?)</tr>", section, re.DOTALL)[1:]
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in rows]
    on_page = {row[1]: (row[6], row[7], row[8]) for row in cells}
    screen = told[told.index("what it makes") :].splitlines()[2:]
    for words in (line.split() for line in screen if line.strip()):
        assert on_page[words[0]] == (words[7], words[6], words[4])
    assert len(on_page) == 8


@pytest.mark.parametrize("looked", [256, 3])
def test_images_that_differ_are_looked_for_among_all(here, monkeypatch, looked):
    monkeypatch.setattr("mrecg_onnx.reporting.measuring.ANSWER_IMAGES", looked)
    works(*QUANTIZE, "--method", "nearest", "--wbits", 2, "--abits", 2, "-o", "q.onnx")
    found = mrecg_onnx.validate("model.onnx", "q.onnx", "images", repeats=0)
    different = round((1 - found.agreement) * 24)
    assert len(found.differing) == different > 3
    found.report("page.html")
    page = (here / "page.html").read_text()
    assert f"Of 24 images the two files answer differently on {different}." in page
    shown = min(different, looked, 12)
    assert page.count('<article class="picture">') == shown
    assert (f"{shown} of them are shown, of {looked} images that were looked at." in page) == (looked < different)
    for picture in re.findall('<article class="picture">(.*?)</article>', page, re.DOTALL):
        first = re.findall(r"</dt>\s*<dd[^>]*><span>(\d+)</span>", picture)
        assert first[0] != first[1]


def test_a_metric_has_its_change_and_is_red_where_a_point_is_lost(here):
    (here / "mine.py").write_text(
        "import numpy as np\ndef level(outputs, targets):\n    return float(np.abs(outputs).mean())\n"
    )
    works(*QUANTIZE, "--method", "nearest", "--wbits", 2, "--abits", 2, "-o", "q.onnx")
    command = ("validate", "model.onnx", "q.onnx", "--data", "images", "--repeats", 0, "--metric", "mine:level")
    works(*command, "--report", "page.html")
    page = (here / "page.html").read_text()
    (tone, value) = re.findall(
        r'class="fact([^"]*)"><p class="label">level change</p><p class="value">(.*?)</p>', page
    )[0]
    assert tone == (" bad" if float(value.replace("<wbr>", "")) < 0 else "")
    works(*command, "--lower-is-better", "--report", "page.html")
    other = re.findall(r'class="fact([^"]*)"><p class="label">level change</p>', (here / "page.html").read_text())[0]
    assert {tone, other} == {"", " bad"}


def test_report_tells_of_a_file_alone_and_measured(here):
    works(*QUANTIZE, "--method", "nearest", "--bits", "conv3=W2A8", "--exclude", "fc", "-o", "q.onnx")
    works("report", "q.onnx", "-o", "alone.html")
    alone = (here / "alone.html").read_text()
    assert sections(alone) == ["about", "layers", "units", "settings", "again"]
    assert "nothing was measured" in alone
    assert "--method nearest" in commands(alone)
    assert "--exclude fc --bits conv3=W2A8" in commands(alone)
    works("report", "q.onnx", "--against", "model.onnx", "--data", "images", "-o", "page.html")
    page = (here / "page.html").read_text()
    assert sections(page) == ["about", "layers", "tensors", "images", "units", "settings", "again"]
    assert "float: its weight is in float" in page.replace("<wbr>", "")
    mrecg_onnx.report("q.onnx", "python.html")
    assert (here / "python.html").exists()


def test_sensitivity_writes_a_page(here):
    command = (
        "sensitivity",
        "model.onnx",
        "--calib",
        "images",
        "--preprocess",
        "unit",
        "--method",
        "nearest",
        "--top",
        2,
    )
    told = works(*command, "--threads", 1, "--report", "page.html").stdout
    assert re.search(r"^page +page.html$", told, re.MULTILINE)
    page = (here / "page.html").read_text()
    assert re.search(r'Most sensitive</p><p class="value">(stem|conv\d|fc|\w+)</p>', page)
    assert sections(page) == ["ranking", "suggestions", "settings", "again"]
    assert page.count('style="--heat:') > 50


@pytest.mark.slow
def test_compare_writes_a_page(here):
    command = (
        "compare",
        "model.onnx",
        "--calib",
        "images",
        "--data",
        "images",
        "--preprocess",
        "unit",
        "--methods",
        "nearest",
    )
    told = works(*command, "--bits", "W8A8,W4A4", "--repeats", 0, "-o", "out", *FAST, "--report", "page.html").stdout
    assert re.search(r"^page +page.html$", told, re.MULTILINE)
    page = (here / "page.html").read_text()
    assert sections(page) == ["cells", "settings", "again"]
    assert "W8A8" in page


def test_names_of_a_model_are_no_markup(here):
    model = onnx.load("model.onnx")
    for number, node in enumerate(model.graph.node):
        node.name = f"<script>alert({number})</script>\x1b" + "y" * 9_000
    onnx.save(model, "model.onnx")
    works(*QUANTIZE, "--method", "nearest", "-o", "q.onnx", "--report", "page.html")
    page = (here / "page.html").read_text()
    assert page.count("<script>") == 1
    assert "\x1b" not in page
    assert "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy" * 8 not in page


def test_a_page_that_cannot_be_written_is_refused_before_the_work(here):
    fails(*QUANTIZE, "-o", "q.onnx", "--report", "missing/page.html", code=2, says=("missing/page.html",))
    fails(*QUANTIZE, "-o", "q.onnx", "--report", "q.onnx", code=2, says=("--report q.onnx",))
    fails(*QUANTIZE, "-o", "q.onnx", "--report", "model.onnx", code=2, says=("the model itself",))


def test_missing_packages_are_named_before_the_work(here, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    fails(
        *QUANTIZE, "-o", "q.onnx", "--report", "page.html", code=2, says=("jinja2", "pip install 'mrecg-onnx[report]'")
    )


def test_report_wants_both_or_none(here):
    works(*QUANTIZE, "--method", "nearest", "-o", "q.onnx")
    fails("report", "q.onnx", "--data", "images", "-o", "page.html", code=2, says=("--against and --data",))
    fails("report", "model.onnx", "-o", "page.html", says=("was not written by mrecg-onnx quantize",))


def test_pages_cost_nothing_where_none_is_asked_for():
    """Neither the package nor the command line imports what draws."""
    import subprocess

    names = ("jinja2", "matplotlib", "mrecg_onnx.reporting", "torch")
    code = f"import mrecg_onnx, mrecg_onnx.commands, sys; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tile_of_outputs_is_the_worst_one_as_on_the_terminal(here):
    graph = onnx.load("model.onnx").graph
    adds = [node.output[0] for node in graph.node if node.op_type == "Add"]
    onnx.utils.extract_model("model.onnx", "maps.onnx", [graph.input[0].name], adds)
    told = works("quantize", "maps.onnx", *QUANTIZE[2:], "--method", "nearest", "-o", "q.onnx", "--report", "page.html")
    said = " ".join(told.stdout.split())
    name, worst, _, other = re.search(
        r"FP32 against that default: .*?(\S+) ([\d.]+) dB, (\S+) ([\d.]+) dB", said
    ).groups()
    assert float(worst) < float(other)
    assert f"the worst output ({name}) {worst} dB above the noise" in said
    told = works("validate", "maps.onnx", "q.onnx", "--data", "images", "--repeats", 0, "--report", "validated.html")
    beside = re.search(r"SQNR +(\S+): ([\d.]+) dB", told.stdout).groups()
    for page, (output, figure) in (("page.html", (name, worst)), ("validated.html", beside)):
        tile = rf'Worst output</p><p class="value">{figure}\s?dB</p><p class="note">SQNR of {output} against FP32'
        assert re.search(tile, (here / page).read_text())
    assert re.search(r"Worst layer</p>.*?SQNR of what (\w+) makes against FP32", (here / "page.html").read_text())
