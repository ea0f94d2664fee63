"""docs/reliability.md out of the results of the scripts that try to break the tool.

usage: python benchmarks/reliability.py [--check]

Nothing is measured here: rows come from ``results/NAME.json`` of the scripts named in the page. A script whose
results are missing is named, and nothing is written. ``--check`` writes nothing and fails where the page is not what
the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"

HEAD = """# Reliability

Nothing lost, nothing let in, the same answer every time: what was tried against the tool, and what came of it. The
table is made by `python benchmarks/reliability.py` out of the results of the scripts in its last column, which have
commands, dates, versions and machine; `SECURITY.md` says what is promised.
"""

TAIL = """
## What this says, and what it does not

- **Faults** are injected into whole runs: a process is killed at random moments and inside every kind of write, disks
  are full or read-only, memory is limited, a GPU's memory is used up, the clock is set back, two runs start in one
  folder. Survived means: the run, or the same command again, ends with the file that an undisturbed run writes, or
  with one line that says what is missing, and nothing half written is left.
- **Hostile cases** are made by script (`tests/hostile/`): models, images, arrays, folders, metadata, options,
  checkpoints, environments. Each ends in the exit code and the line that are written beside it, within bounds of time
  and memory. Cases that would crash or hang another library are not made; their guard is tested with a harmless one.
- **Mutants** are sound files with fields and bytes changed at random. Unexpected is whatever is neither a result nor
  one line that the code meant to say. They are random: that none was found in so many says that such files are rare,
  not that there are none.
- **Identical** means bytes of the file, not numbers close to each other. Between machines, numbers of threads and
  devices bytes differ, as sums are taken in another order; the table of what differs is in
  `benchmarks/results/determinism.md`.
- **Growth** is a linear fit over runs in one process. A leak would come back with every run: where memory rose once,
  the slope beside that step is told, too. What Python and the C library keep for themselves is emptied before
  (`benchmarks/leak.py` says what that is).
- **Memory** is the largest resident memory of the whole process, imports included. Below what the imports and one
  image take, a limit is refused at the start.
"""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    tried: str
    outcome: str
    source: str


def faults(found: Mapping[str, Any]) -> Iterator[Row]:
    """Faults injected and survived, by kind."""
    rows = found["rows"]
    injected, survived = (sum(row[key] for row in rows) for key in ("injected", "survived"))
    yield Row("faults, all kinds", f"{injected}", f"{survived} survived", "faults.py")
    for row in rows:
        yield Row(f"- {row['fault']}", f"{row['injected']}", f"{row['survived']} survived", "faults.py")


def hostile(found: Mapping[str, Any]) -> Iterator[Row]:
    """Cases of tests/hostile."""
    codes = ", ".join(
        f"{count} with exit code {code}" for code, count in sorted(found["by_code"].items(), key=lambda e: int(e[0]))
    )
    yield Row("hostile cases", f"{found['cases']}", f"{found['failed']} not as they must be; {codes}", "hostile.py")
    crashed = f"{found['unexpected']} unexpected failures, {found['crashes']} crashes"
    yield Row("- of them", f"{found['cases']}", crashed, "hostile.py")
    most = f"{found['cpu_s']:.1f} CPU s, {found['mb_beyond_imports']} MB beyond the imports"
    yield Row("- the most that a case took", "", most, "hostile.py")


def fuzz(found: Mapping[str, Any]) -> Iterator[Row]:
    """Mutants by what came of them, all parts together."""
    parts = list(found.values())
    mutants = sum(part["mutants"] for part in parts)
    outcomes: dict[str, int] = {}
    for part in parts:
        for name, count in part["outcomes"].items():
            outcomes[name] = outcomes.get(name, 0) + count
    bad = ("unexpected", "crash", "hang", "memory")
    said = ", ".join(f"{outcomes.get(name, 0)} {name}" for name in bad)
    yield Row("mutants of models", f"{mutants:,}", said, "fuzz.py")
    fine = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()) if name not in bad)
    yield Row("- the rest", f"{mutants - sum(outcomes.get(name, 0) for name in bad):,}", fine, "fuzz.py")
    peak = max(part["peak_bytes"] for part in parts)
    yield Row("- the most memory of a process", "", f"{peak / 1e9:.2f} GB", "fuzz.py")


def determinism(found: Mapping[str, Any]) -> Iterator[Row]:
    """Equal settings, equal bytes."""
    rows = [row for row in found["rows"] if row["kind"] == "repeated"]
    runs, identical = (sum(row[key] for row in rows) for key in ("runs", "identical"))
    least = min(rows, key=lambda row: row["identical"] / row["runs"])
    said = f"{identical} identical"
    if identical < runs:
        said += f", at the least {least['identical']} of {least['runs']} ({least['what']})"
    yield Row(f"the same settings again, {len(rows)} settings", f"{runs}", said, "determinism.py")


def load(found: Mapping[str, Any]) -> Iterator[Row]:
    """A comparison under load, killed and begun again."""
    for row in found["rows"]:
        yield Row(row["what"], f"{row['runs']}", f"{row['identical']} identical {row['note']}".strip(), "load.py")
    said = f"{found['peak_bytes'] / 1e6:.0f} MB of {found['limit_bytes'] / 1e6:.0f}"
    yield Row("- its largest memory, all processes", f"{len(found['kills'])} kills", said, "load.py")


def leak(found: Mapping[str, Any]) -> Iterator[Row]:
    """Memory, threads and files over many runs in one process."""
    slope = f"{found['slope_mb']:.4f} ± {found['slope_interval_mb']:.4f} MB a run"
    zero = "zero within its interval" if found["slope_is_zero"] else "not zero"
    yield Row("growth of memory over runs in one process", f"{found['runs']} runs", f"{slope}: {zero}", "leak.py")
    used = f"{found['in_use_slope_mb']:.5f} ± {found['in_use_slope_interval_mb']:.5f} MB a run"
    zero = "zero within its interval" if found["in_use_slope_is_zero"] else "not zero"
    yield Row("- of it in use, without what the allocator keeps", f"{found['runs']} runs", f"{used}: {zero}", "leak.py")
    for row in found["rows"]:
        if row["what"].startswith(("objects", "blocks")) or ", beside " in row["what"]:
            zero = "zero within its interval" if row["identical"] else "not zero"
            yield Row(
                f"- {row['what'].replace(' a run', '')}",
                f"{row['runs']} runs",
                f"{row['note']} a run: {zero}",
                "leak.py",
            )


def memory_limits(found: Mapping[str, Any]) -> Iterator[Row]:
    """Largest memory against what was asked for."""
    rows = [row for row in found["rows"] if row.get("asked_bytes")]
    kept = [row for row in rows if not row["refused"]]
    above = sum(row["peak"] > row["asked_bytes"] for row in kept)
    said = f"{above} above it; at the most {found['largest_share']:.0%} of it"
    yield Row("largest memory against --memory", f"{len(kept)} runs", said, "memory_limits.py")
    refused = len(rows) - len(kept)
    yield Row("- limits that are too small", f"{refused} runs", f"{refused} refused at the start", "memory_limits.py")


def growth(found: Mapping[str, Any]) -> Iterator[Row]:
    """Time of inspect against nodes."""
    rows = list(found["nodes"].values())
    most = max(rows, key=lambda row: (row["nodes"], row["cpu_s"]))
    yield Row(
        f"inspect on {most['nodes']:,} nodes, imports included",
        f"{len({row['graph'] for row in rows})} kinds of graph",
        f"{most['cpu_s']:.1f} CPU s",
        "growth.py",
    )


SOURCES: dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]] = {
    "faults": faults,
    "hostile": hostile,
    "fuzz": fuzz,
    "determinism": determinism,
    "load": load,
    "leak": leak,
    "memory_limits": memory_limits,
    "growth": growth,
}


def measured(name: str) -> bool:
    """Whether a script has left what its rows are made of."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return False
    return name != "growth" or "nodes" in json.loads(file.read_text(encoding="utf-8"))


def page(results: Path = RESULTS) -> str:
    """The page that the results make.

    Raises:
        FileNotFoundError: a script has no results yet.
    """
    lines = [HEAD, "| what | tried | outcome | by |", "|---|---|---|---|"]
    for name, rows in SOURCES.items():
        found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for row in rows(found):
            cells = [text.replace("|", r"\|") for text in row]
            lines.append(f"| {cells[0]} | {cells[1]} | {cells[2]} | `{cells[3]}` |")
    return "\n".join(lines) + "\n" + TAIL


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/reliability.md, or check that it is what the results say.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the page is out of date")
    args = parser.parse_args()
    missing = [name for name in SOURCES if not measured(name)]
    if missing:
        sys.exit(f"not measured yet: {', '.join(missing)}")
    made = page()
    if not args.check:
        PAGE.write_text(made, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        sys.exit(f"{PAGE.name} is out of date: run python benchmarks/reliability.py")


if __name__ == "__main__":
    main()
