"""All cases of tests/hostile/ with their outcomes: exit code, line, CPU seconds and memory.

usage: python benchmarks/hostile.py

The cases are tests; this runs them all, those of the slow marker too, and writes down what they found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from _record import by, header

from mrecg_onnx.converters.files import write_whole

RESULTS = Path(__file__).parent / "results"
#: Cases that test the harness.
LEFT_OUT = "test_harness.py"


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """Rows of all cases, in the order of files and names."""
    kept = folder / "outcomes"
    subprocess.run(
        [sys.executable, "-m", "pytest", "tests/hostile", "-m", "slow or not slow", "-q"],
        env={**os.environ, "MRECG_HOSTILE_JSON": str(kept)},
        check=False,  # what failed is in the rows
    )
    # The messages of some cases name files of the package: below the checkout, wherever that lies.
    here = f"{Path(__file__).parents[1]}/"
    rows = [json.loads(line.replace(here, "")) for line in kept.read_text().splitlines()]
    return sorted((r for r in rows if r["file"] != LEFT_OUT), key=lambda row: (row["file"], row["case"]))


def page(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    lines = [
        "# Hostile input",
        "",
        by(found),
        "",
        f"{found['cases']} cases, {found['failed']} not as they must be. MB beyond what the imports take in brackets.",
        f"At most {found['cpu_s']} CPU s and {found['mb_beyond_imports']} MB beyond the imports.",
    ]
    for file in found["by_file"]:
        lines += ["", f"## {file.removeprefix('test_').removesuffix('.py')} ({found['by_file'][file]})", ""]
        lines += ["| case | exit code | CPU s | MB | what it says |", "|---|---|---|---|---|"]
        lines += [
            f"| {cell(row['case'])} | {row['code']} | {row['cpu_s']:.2f} | {row['mb']} ({row['mb_beyond_imports']}) | "
            f"{cell('; '.join(row['faults']) or row['says'])} |"
            for row in found["rows"]
            if row["file"] == file
        ]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = outcomes(Path(folder))
    found = {
        **header(),
        "cases": len(rows),
        "failed": sum(bool(row["faults"]) for row in rows),
        "unexpected": sum("unexpected failure" in row["says"] for row in rows),
        "crashes": sum(row["code"] < 0 for row in rows),
        "cpu_s": max(row["cpu_s"] for row in rows),
        "mb_beyond_imports": max(row["mb_beyond_imports"] for row in rows),
        "by_file": dict(Counter(row["file"] for row in rows)),
        "by_code": {str(code): count for code, count in sorted(Counter(row["code"] for row in rows).items())},
        "rows": rows,
    }
    write_whole(RESULTS / "hostile.json", json.dumps(found, indent=1) + "\n")
    write_whole(RESULTS / "hostile.md", page(found))


if __name__ == "__main__":
    main()
