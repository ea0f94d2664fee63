"""Write the lists of node tests by class anew: ``python tests/converters/conformance/regenerate.py``.

Run it after a converter was added or onnx was updated, and look at the difference before it is committed.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from helpers.node_tests import CLASSES, LISTS, node_tests, run_bridge, run_onnxruntime


def main() -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    cases = node_tests()
    outcomes = {name: run_bridge(case) for name, case in cases.items()}
    passed = {name for name, case in cases.items() if run_onnxruntime(case)}
    head = f"# onnx {version('onnx')}, onnxruntime {_runtime()}, torch {torch.__version__.partition('+')[0]}"
    for kind in CLASSES:
        rows = []
        for name, outcome in sorted(outcomes.items()):
            if outcome.kind == kind:
                rows.append("\t".join(part for part in (name, outcome.reason) if part))
        (LISTS / f"{kind}.txt").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    (LISTS / "onnxruntime.txt").write_text("\n".join([head, *sorted(passed)]) + "\n", encoding="utf-8")
    counts = Counter(outcome.kind for outcome in outcomes.values())
    of_runtime = Counter(outcomes[name].kind for name in passed)
    print(f"{len(cases)} node tests: {', '.join(f'{kind} {counts[kind]}' for kind in CLASSES)}")
    print(f"{len(passed)} that ONNX Runtime passes: {', '.join(f'{kind} {of_runtime[kind]}' for kind in CLASSES)}")


def _runtime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    main()
