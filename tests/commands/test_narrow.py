"""Tables keep to a narrow terminal: no line is wider, no word is broken, and what is left out is said."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from helpers.targets import SAMPLES

from mrecg_onnx.commands import main
from mrecg_onnx.commands._console import _console, show
from mrecg_onnx.commands._tables import grid, rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

MODEL = SAMPLES / "digits_resnet8.onnx"
FEW = ("--samples", "8", "--threads", "1")


def words(text: str) -> set[str]:
    """All of a text but what is drawn, was shortened or is a measured figure."""
    found = {word.rstrip(",:") for word in text.split()}
    return {word for word in found if word.strip("─") and "…" not in word and not re.match(r"[-+(]?\d", word)}


def printed(arguments: tuple[object, ...], columns: int | None) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)), env={"COLUMNS": columns and str(columns)})
    assert result.exit_code == 0, result.output
    return "".join(line for line in result.stdout.splitlines(keepends=True) if not line.startswith("Next: "))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("narrow") / "w4a4.onnx"
    printed(("quantize", MODEL, "--calib", SAMPLES / "calib", "--method", "nearest", *FEW, "-o", out), None)
    return out


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", MODEL),
        ("inspect", MODEL, "-v"),
        ("inspect", "QUANT"),
        ("inspect", "QUANT", "-v"),
        pytest.param(("benchmark", MODEL, "QUANT", "--runs", "1", "--threads", "1"), marks=pytest.mark.slow),
        ("validate", MODEL, "QUANT", "--data", SAMPLES / "val", "--limit", "8", "--layers", "--repeats", "1"),
        ("runtimes", "QUANT", "--only", "onnxruntime", "--runs", "1"),
        pytest.param(("quantize", MODEL, "--calib", SAMPLES / "calib", "--dry-run", *FEW), marks=pytest.mark.slow),
        pytest.param(
            ("sensitivity", MODEL, "--calib", SAMPLES / "calib", "--method", "nearest", "--top", "1", *FEW),
            marks=pytest.mark.slow,
        ),
        ("doctor",),
    ],
    ids=lambda arguments: " ".join(str(one) for one in arguments if str(one).islower())[:30],
)
def test_what_a_command_prints_fits_without_a_broken_word(arguments: tuple[object, ...], quantized: Path) -> None:
    given = tuple(quantized if one == "QUANT" else one for one in arguments)
    wide = words(printed(given, None)) | words("names are shortened; not shown: (-v or a wider terminal shows all)")
    wide |= {part for word in wide for part in word.split(";")}
    long = {word for word in wide if len(word) > 36}  # paths stay whole beside their keys, however long
    for columns in (80, 60):
        text = printed(given, columns)
        assert max(map(len, text.splitlines())) <= columns
        known = wide | words("faster slower too noisy to say which is the same within noise")  # times are taken anew
        broken = {
            word for word in words(text) if word.rstrip(";") not in known and not any(word in one for one in long)
        }
        assert not broken


def at(table: RenderableType, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = _console(io.StringIO())
    with out.capture() as capture:
        out.print(table)
    text = capture.get()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    return text


HEADER = ["method", "top-1", "95 % interval", "peak memory", "against FP32"]
CONTENT = [
    ["layers/first/very/long/name/conv1", "99.33%", "98.06% to 99.77%", "406 MB", "1.52x faster"],
    ["layers/second/very/long/name/conv1", "99.00%", "97.06% to 99.07%", "4 MB", "noisy: 0.9 to 1.5 times as fast"],
]


def table(less: tuple[str, ...] = ("95 % interval", "peak memory")) -> RenderableType:
    return rows("", HEADER, CONTENT, wraps=(4,), less=less)


def test_names_are_shortened_before_a_column_goes_and_differ_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(cell in at(table(), 200, monkeypatch) for row in CONTENT for cell in row)
    text = at(table(), 82, monkeypatch)
    assert "not shown" not in text
    assert len(set(re.findall(r"\S+…\S+", text))) == 2
    assert "names are shortened (-v or a wider terminal shows all)" in text
    assert "shortened" not in at(table(), 200, monkeypatch)


def test_columns_go_in_the_order_that_is_stated_and_a_line_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    text = at(table(), 66, monkeypatch)
    said = "names are shortened; not shown: 95 % interval (-v or a wider terminal shows all)"
    assert said in " ".join(text.split())
    assert "406 MB" in text
    assert "98.06%" not in text
    assert "95 % interval; peak memory" in " ".join(at(table(), 50, monkeypatch).split())


def test_rows_become_lists_where_nothing_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    text = at(table(()), 50, monkeypatch)
    assert "layers/first/very/long/name/conv1\n  top-1: 99.33%, 95 % interval: 98.06% to 99.77%,\n" in re.sub(
        " +\n", "\n", text
    )


def test_one_empty_line_is_between_tables_and_none_above_the_first(capsys) -> None:
    text, table = ["a", "b"], [["x", "1"]]
    show(
        grid({"key": "value"}),
        rows("title", text, table),
        rows("", text, table),
        rows("other", text, table),
        grid({"z": "1"}),
    )
    lines = capsys.readouterr().out.splitlines()
    said = "\n".join(line.strip() for line in lines if "─" not in line)
    assert said == "key  value\n\ntitle\n\na   b\nx   1\n\na   b\nx   1\n\nother\n\na   b\nx   1\n\nz  1"
    show(rows("title", text, table))
    assert capsys.readouterr().out.startswith("title\n")


def test_details_shorten_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.commands._tables.asked", lambda what: True)
    text = at(table(), 82, monkeypatch)
    assert all(row[0] in text for row in CONTENT)
    assert "…" not in text


def test_what_is_to_be_copied_is_whole_at_every_width(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    option = f"--bits '^({'|'.join(f'node_Conv_{i}' for i in range(9))})$=A8'"
    for columns in (200, 100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        content = [[option, "1, 2", "agreement 86.20%"]]
        show(rows("title", ["option of quantize", "for #", "then"], content, left=(0, 1, 2), copied=(0,)))
        lines = capsys.readouterr().out.splitlines()
        assert any(option in line for line in lines)
        assert (option in lines) == (columns < 200)  # a line of its own, with nothing beside it


def test_a_pipe_cuts_nothing_and_a_long_key_leaves_room_for_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/folder" * 20
    monkeypatch.delenv("COLUMNS", raising=False)
    out = _console(io.StringIO())
    with out.capture() as capture:
        out.print(rows("", ["file", "note"], [[long, "a word"]]), grid({long: "value"}))
    assert capture.get().count(long) == 2
    assert "a fine value" in at(grid({long: "a fine value"}), 60, monkeypatch)


def test_long_keys_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text = at(grid({f"digits_resnet8_brecq_w{bits}a8.onnx, cpu": "Conv 9" for bits in (2, 4)}), 60, monkeypatch)
    assert len({line.split("  ")[0] for line in text.splitlines()}) == 2
