"""The zoo of tests/helpers/networks.py: every network by every exporter through the whole pipeline at W4A4.

usage: python benchmarks/zoo.py [--iters 20] [--samples 16] [--only REGEX]

Weights are random and samples are noise: the table tells that files are converted, planned, learned and run as they should
be, not what is lost by quantization. Writes results/zoo.json and results/zoo.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _record import header

import mrecg_onnx

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
COLUMNS = ("network", "exporter", "opset", "nodes", "layers", "units", "fallback", "parity", "integer kernels",
           "SQNR, off", "SQNR, all", "agreement", "seconds")  # fmt: skip


def measured(case: Any, iters: int, samples: int) -> dict[str, Any]:
    """One row."""
    from helpers.stages import feeds  # noqa: PLC0415 - of the tests

    model = case.model()
    plan = mrecg_onnx.inspect(model)
    settings = mrecg_onnx.Settings(iters=iters, batch_size=4, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calib.npz"
        np.savez(calibration, **feeds(model, count=samples))
        start = time.perf_counter()
        result = mrecg_onnx.quantize(model, calibration, settings)
        seconds = time.perf_counter() - start
    found = result.verification
    return {
        "network": case.network, "exporter": case.exporter, "opset": case.opset, "dynamic": case.dynamic,
        "nodes": plan.source.nodes, "layers": len(result.plan.layers), "units": len(result.plan.units),
        "fallbacks": plan.fallbacks, "parity": result.parity,
        "expected": found.expected, "kernels": {k: min(n, found.fused.get(k, 0)) for k, n in found.expected.items()},
        "fused": found.fused, "sqnr_off": round(found.sqnr_db, 1), "sqnr_all": round(found.sqnr_fused_db, 1),
        "agreement": found.agreement, "agreement_all": found.agreement_fused, "warnings": list(found.warnings),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]], about: dict[str, Any], iters: int, samples: int) -> str:
    """The rows in Markdown."""
    text = (
        f"By `{about['command']}`, {about['date']}, one thread; W4A4, {iters} iterations a unit, {samples} samples of noise, "
        "random weights. Nodes are counted after simplification. Fallback: nodes that ONNX Runtime runs inside the torch module. "
        "Parity: relative difference between torch and ONNX Runtime on the float model. Integer kernels: those that ONNX Runtime "
        "1.31 runs at its default level, of those that the plan asks for. SQNR (dB) of the file's outputs against the simulation "
        "without graph optimizations and with all of them; agreement of predicted classes, likewise, - where there are none. "
        "120 dB and more is float32; a single code between two steps that falls to the other side, as sums in another order let "
        "it, leaves that sample some 20 to 40 dB. A file that did not pass a check has a line below the table."
    )
    lines = ["# The zoo", "", text, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        same = ["-" if row[k] is None else f"{row[k]:.2f}" for k in ("agreement", "agreement_all")]
        kernels = f"{sum(row['kernels'].values())} of {sum(row['expected'].values())}"
        cells = [row["network"], row["exporter"], row["opset"], row["nodes"], row["layers"], row["units"],
                 len(row["fallbacks"]), f"{row['parity']:.0e}", kernels, row["sqnr_off"], row["sqnr_all"],
                 " / ".join(same), row["seconds"]]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    complaints = [f"- {row['network']}, {row['exporter']} {row['opset']}: {w}" for row in rows for w in row["warnings"]]
    lines += ["", f"{len(rows)} files, {len(rows) - len({c.split(':')[0] for c in complaints})} without a complaint."]
    lines += ["", *complaints] if complaints else []
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}. Machine: {about['machine']}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", default="", help="networks whose names match; their rows are printed and not kept")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests")]
    from helpers.networks import CASES  # noqa: PLC0415 - of the tests

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")  # of torch's exporters
    rows = []
    for case in CASES:
        if re.search(args.only, case.network):
            rows.append(measured(case, args.iters, args.samples))
            print({k: v for k, v in rows[-1].items() if k not in {"fused", "expected"}}, flush=True)
    if args.only:
        return
    about = header()
    (RESULTS / "zoo.json").write_text(json.dumps({"header": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "zoo.md").write_text(table(rows, about, args.iters, args.samples))


if __name__ == "__main__":
    main()
