"""Why two right executions of a deep quantized network differ at the outputs: every node fed the same codes.

usage: python benchmarks/rounding_edges.py MODEL --calib PATH [--bits W8A8,W4A8] [--samples 64]

Quantizes by rounding to nearest and writes what the check of the file found: SQNR of the worst output between simulation and
file as written, and between file as written and ONNX Runtime's default level; and, node by node with the same codes in front,
how many codes differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from _record import by, header

from mrecg_onnx import Settings, quantize
from mrecg_onnx.comparing import Widths

RESULTS = Path(__file__).parent / "results"


def measured(model: str, calib: str, widths: Widths, samples: int) -> dict[str, Any]:
    """What the verification of one file found."""
    settings = Settings(wbits=widths.wbits, abits=widths.abits, method="nearest", samples=samples)
    found = quantize(model, calib, settings).verification
    return {
        "bits": str(widths),
        "images": found.images,
        "outputs": [dataclasses.asdict(check) for check in found.outputs],
        "traced": [dataclasses.asdict(entry) for entry in found.traced],
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Codes on the edge between two steps",
        "",
        by(result["header"]),
        f"{Path(result['model']).stem}, rounded to nearest. End to end on all calibration images; node by node on 8 of them.",
        "",
        "| bits | pair | end to end | codes compared | differ | on an edge | largest | output, fed the same codes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ends = {name: min(o[name] for o in row["outputs"]) for name in ("simulation_db", "sqnr_db")}
        for entry in row["traced"]:
            end = ends["sqnr_db" if "default" in entry["where"] else "simulation_db"]
            lines.append(
                f"| {row['bits']} | {entry['where']} | {end:.1f} dB | {entry['codes']} | {entry['moved']} | "
                f"{entry['on_edge']} | {entry['most']:.0f} step | {entry['sqnr_db']:.0f} dB |"
            )
        for output in row["outputs"]:
            figures = f"{output['written_db']:.1f} and {output['default_db']:.1f} dB"
            lines.append(
                f"| {row['bits']} | {output['name']} against FP32, as written and at the default level | {figures} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--bits", default="W8A8,W4A8")
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    rows = []
    for text in options.bits.split(","):
        rows.append(measured(options.model, options.calib, Widths.parse(text), options.samples))
        print(f"{text}: {rows[-1]['notes'] + rows[-1]['warnings']}", flush=True)
        result = {"header": header(), "model": Path(options.model).name, "rows": rows}
        (RESULTS / "rounding_edges.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "rounding_edges.md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
