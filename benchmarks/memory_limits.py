"""What --memory is worth: the most that a process held against what was asked for, or the refusal at the start.

usage: python benchmarks/memory_limits.py [--data ../shared] [--rows REGEX] [--before FOLDER]

Every row is a whole run of ``mrecg-onnx quantize`` on one thread, with few iterations (what a run holds does not depend on their
number). It is well where the process ends within what was asked for, or is refused before anything runs with the least that works
in the message. "least" asks for what the refusal of the row above it named. Rows about input are of the sample's network with one
large image among its own, or with arrays; ``--before`` runs them with another checkout, too, for the ratio.

Rows that match ``--rows`` are measured and merged into benchmarks/results/memory_limits.json; the page is written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _record import by, header
from numpy.lib import format as npy
from PIL import Image

from mrecg_onnx.converters.files import write_whole

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "benchmarks" / "results"
PAGE = "memory_limits"
METHODS = ("nearest", "bit-split", "aciq", "lapq", "adaround", "adaquant", "brecq-paper", "brecq", "qdrop", "mrecg")
BUDGETS = ("600MB", "800MB", "1GB", "2GB")
#: Name of a network, its file and its images, {data} for --data, and how many of them.
NETWORKS = {
    "sample": ("samples/digits.onnx", "samples/calib", 1000),
    "ResNet-20": ("{data}/models/resnet20_cifar10.onnx", "{data}/data/cifar10/calib", 256),
    "MobileNetV2": ("{data}/models/mobilenetv2_imagenet.onnx", "{data}/data/imagenet/calib", 80),
}
MORE = {
    "brecq, whole network finished": ("brecq", "--finish", "5"),
    "brecq, four variants an image": ("brecq", "--augment", "crop"),
    "brecq, Fisher": ("brecq", "--loss", "fisher"),
    "nearest, biases corrected": ("nearest", "--bias-correction"),
}
WATCH = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
sys.stderr.buffer.write(done.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_maxrss * 1024, round(used.ru_utime + used.ru_stime, 1))
"""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        network: a key of :data:`NETWORKS`.
        method: a method, or a key of :data:`MORE`.
        asked: of --memory; "" for none, "least" for what the row above was told.
        what: fills a folder with input; None for the network's images.
        input: what it is, in words.
    """

    network: str
    method: str
    asked: str
    what: Callable[[Path], None] | None = None
    input: str = "its images"

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.network}, {self.method}, {self.input}, {self.asked or 'nothing asked'}"


# --- input -----------------------------------------------------------------------------------------------------------


def with_image(name: str, mode: str, size: tuple[int, int], **options: Any) -> Callable[[Path], None]:
    """The sample's images and a large one."""

    def fill(folder: Path) -> None:
        shutil.copytree(HERE / "samples" / "calib", folder, dirs_exist_ok=True)
        Image.new(mode, size, 128 if mode in {"L", "P"} else (90, 120, 150)).save(folder / name, **options)

    return fill


def bomb(folder: Path) -> None:
    """An archive of a megabyte that inflates to one gigabyte of rows for the sample's network."""
    row = 3 * 32 * 32 * 4
    count = 2**30 // row
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        npy.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (count, 3, 32, 32)})
        rows = np.tile(np.linspace(-1, 1, 3 * 32 * 32, dtype=np.float32), 1024).tobytes()
        for start in range(0, count, 1024):
            member.write(rows[: row * min(1024, count - start)])


INPUT = {
    "a PNG of 13,000 x 13,000": with_image("z.png", "RGB", (13_000, 13_000)),
    "a PNG of 6,000 x 6,000": with_image("z.png", "L", (6000, 6000)),
    "a JPEG of 10,000 x 10,000": with_image("z.jpg", "RGB", (10_000, 10_000)),
    "an archive that inflates to 1 GB": bomb,
}


def rows() -> list[Row]:
    found = [Row("sample", "mrecg", "100MB"), Row("sample", "mrecg", "least")]
    found += [Row("sample", method, "600MB") for method in (*METHODS, *MORE)]
    found += [Row("ResNet-20", method, "600MB") for method in (*METHODS, *MORE)]
    found += [Row("ResNet-20", "mrecg", asked) for asked in BUDGETS[1:]]
    for method in (*METHODS, *MORE):
        found += [Row("MobileNetV2", method, asked) for asked in ("600MB", "least", *BUDGETS[1:])]
    for words, fill in INPUT.items():
        found += [Row("sample", "nearest", asked, fill, words) for asked in ("", "600MB", "least")]
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(row: Row, data: Path, asked: str, checkout: Path) -> dict[str, Any]:
    """Run it in a process of its own; ``checkout`` has the package."""
    model, calib, samples = NETWORKS[row.network]
    model, calib = (text.format(data=data) for text in (model, calib))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if row.what is not None:
            (folder / "input").mkdir()
            row.what(folder / "input")
            calib = str(folder / "input")
        method = MORE.get(row.method, (row.method,))
        command = [
            *(sys.executable, str(checkout / "cli.py"), "quantize", str(HERE / model), "--calib", str(HERE / calib)),
            *(
                "--method",
                *method,
                "--iters",
                "2",
                "--lapq-evaluations",
                "2",
                "--samples",
                str(samples),
                "--threads",
                "1",
            ),
            *("-o", str(folder / "out.onnx"), *(["--memory", asked] if asked else [])),
        ]
        done = subprocess.run(
            [sys.executable, "-c", WATCH, *command], capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=folder,
        )  # fmt: skip
    code, peak, cpu = done.stdout.split()
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    says = errors[-1].removeprefix("Error: ").replace(str(folder / "input") + "/", "") if errors else ""
    return {"code": int(code), "peak": int(peak), "cpu_s": float(cpu), "says": says}


def judged(row: Row, asked: str, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    least = re.search(r"least that works is ([\d.]+ [MG]B)|alone take ([\d.]+ [MG]B)", found["says"])
    said = (least[1] or least[2]).replace(" ", "") if least else None
    limit = bytes_of(asked) if asked else None
    refused = found["code"] == 2 and said is not None
    within = limit is None or found["peak"] <= limit
    # Of what is refused below 600 MB the libraries alone may take more.
    small = limit is not None and limit < bytes_of("600MB")
    ok = (found["code"] == 0 and within) or (
        refused and limit is not None and bytes_of(said) > limit and (within or small)
    )
    return {
        "name": row.name, "network": row.network, "method": row.method, "input": row.input, "asked": asked or None,
        "asked_bytes": limit, "peak": found["peak"], "refused": refused, "least": said, "ok": ok, "cpu_s": found["cpu_s"],
        "says": found["says"],
    }  # fmt: skip


def bytes_of(text: str | None) -> int:
    assert text is not None
    return int(text[:-2]) * {"MB": 10**6, "GB": 10**9}[text[-2:]]


def page(found: dict[str, Any]) -> str:
    counts = (
        f"{len(found['rows'])} runs, {found['refused']} refused at the start, {found['failed']} not as they must be"
    )
    share = f"from 600 MB up the most that was held of what was asked for is {found['largest_share']:.0%}"
    lines = ["# Memory asked for, and held", "", by(found), "", f"{counts}; {share}.", ""]
    lines += ["| network | method | input | asked | held | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        said = f"refused: {row['least']} is the least" if row["refused"] else row["says"]
        if "peak_before" in row:
            said = f"{said + '; ' if said else ''}before: {row['peak_before'] / 1e6:.0f} MB"
        cells = [row["network"], row["method"], row["input"], row["asked"] or "-", f"{row['peak'] / 1e6:.0f} MB"]
        lines.append(f"| {' | '.join(cells)} | {said}{'' if row['ok'] else ' **not well**'} |")
    return "\n".join(lines) + "\n"


def keep(made: Sequence[dict[str, Any]], order: Sequence[str]) -> None:
    """Merge ``made`` into what is there, and write both files."""
    file = RESULTS / f"{PAGE}.json"
    known = {row["name"]: row for row in (json.loads(file.read_text())["rows"] if file.exists() else [])}
    known |= {row["name"]: row for row in made}
    kept = sorted((row for row in known.values() if row["name"] in order), key=lambda row: order.index(row["name"]))
    shares = [
        row["peak"] / row["asked_bytes"]
        for row in kept
        if row["asked_bytes"] and row["asked_bytes"] >= bytes_of("600MB")
    ]
    found = {
        **header(),
        "refused": sum(row["refused"] for row in kept),
        "failed": sum(not row["ok"] for row in kept),
        "largest_share": round(max(shares, default=0.0), 4),
        "rows": kept,
    }
    write_whole(file, json.dumps(found, indent=1) + "\n")
    write_whole(RESULTS / f"{PAGE}.md", page(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared")
    parser.add_argument("--rows", default="")
    parser.add_argument("--before", type=Path, help="another checkout of this package, for the rows about input")
    given = parser.parse_args()
    everything = rows()
    order, least = [row.name for row in everything], ""
    for row in everything:
        if not re.search(given.rows, row.name):
            continue
        asked = least if row.asked == "least" else row.asked
        if row.asked == "least" and not asked:
            continue  # nothing was refused
        made = judged(row, asked, measure(row, given.data.resolve(), asked, HERE))
        least = made["least"] or ("" if row.asked == "least" else least if made["refused"] else "")
        if given.before is not None and row.what is not None and not row.asked:
            made["peak_before"] = measure(row, given.data.resolve(), asked, given.before.resolve())["peak"]
        print(
            f"{row.name}: {made['peak'] / 1e6:.0f} MB, ok {made['ok']}, {made['cpu_s']} s, {made['says']}", flush=True
        )
        keep([made], order)


if __name__ == "__main__":
    main()
