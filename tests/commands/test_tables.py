"""How figures are shown."""

from __future__ import annotations

import io
import random
import time
from typing import TYPE_CHECKING

import pytest

from mrecg_onnx.commands._console import WIDE, _console
from mrecg_onnx.commands._tables import _Rows, rows
from mrecg_onnx.machine import ratio

if TYPE_CHECKING:
    from rich.console import RenderableType


def test_a_ratio_that_would_be_one_is_no_change() -> None:
    assert ratio(310, 100, "smaller", "larger") == "3.10x smaller"
    assert ratio(100, 120, "smaller", "larger") == "1.20x larger"
    assert ratio(85655, 85618, "smaller", "larger") == ratio(85618, 85655, "smaller", "larger") == "the same"


def lines(table: RenderableType) -> list[str]:
    out = _console(io.StringIO())
    with out.capture() as capture:
        out.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


CELLS = ["", "a", "bb b", "1,234", "x" * 30, "-"]
ODD = [*CELLS, " s", "t ", "é", "日本", "a\nb", "y" * 90]


@pytest.mark.parametrize("cells", [CELLS, ODD], ids=["plain", "odd"])
def test_a_table_set_without_rich_is_the_table_of_rich(cells: list[str]) -> None:
    rng = random.Random(0)
    quick = 0
    for _ in range(100):
        columns = rng.randint(1, 6)
        header = rng.choices(["", "layer", "W"], k=columns)
        content = [rng.choices(cells, k=columns) for _ in range(rng.randint(0, 6))]
        table = rows("", header, content, left=rng.sample(range(columns), rng.randint(0, columns)))
        assert isinstance(table, _Rows)
        assert lines(table) == lines(table.table)
        quick += bool(table._lines(WIDE))
    assert 3 < quick < 100  # both ways are taken


@pytest.mark.parametrize(
    ("said", "width"),
    [("80", 80), ("1", WIDE), ("0", WIDE), ("", WIDE), ("wide", WIDE), ("-3", WIDE), ("9" * 30, WIDE)],
)
def test_a_file_or_pipe_is_as_wide_as_the_environment_says(
    said: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", said)
    shown = lines(rows("", ["a"] * 20, [["word"] * 20], left=range(20)))
    assert 60 < max(map(len, shown)) <= width
    assert (width == WIDE) == (sum("word" in line for line in shown) == 1)


def test_a_table_of_many_rows_takes_no_time() -> None:
    start = time.process_time()
    assert len(lines(rows("title", ["a", "b"], [["x", "1"]] * 20_000))) == 20_004 + 2
    assert time.process_time() - start < 3
