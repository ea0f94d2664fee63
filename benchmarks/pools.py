"""AveragePool with ceil_mode as torch exports it: what ONNX Runtime's default level loses against the graph as written.

usage: python benchmarks/pools.py [--images 256]

A network of random weights with AvgPool2d(3, stride=2, ceil_mode=True) behind convolutions, on random images, W8A8 rounded to
nearest. "As exported" is the same file with count_include_pad=1 on its pools again, which is the same graph in float.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from _record import by, header
from torch import nn

import mrecg_onnx
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.running import fused_op_counts, open_session, run_padded

RESULTS = Path(__file__).parent / "results"
SIDE = 36


def network(pads: int) -> nn.Module:
    """Three stages of two convolutions with a pool behind each, global pool, classifier; windows hang over the edge in all."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for cin, cout in ((3, 16), (16, 32), (32, 64)):
        for source in (cin, cout):
            parts += [nn.Conv2d(source, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU()]
        parts += [nn.AvgPool2d(3, stride=2, padding=pads, ceil_mode=True)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(64, 3, SIDE, SIDE))
    return net.eval()


def as_exported(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with pads counted again, where it has none."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "AveragePool":
            kept = [a for a in node.attribute if a.name != "count_include_pad"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("count_include_pad", 1)])
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).standard_normal((args.images, 3, SIDE, SIDE)).astype(np.float32)
        np.save(Path(folder) / "x.npy", x)
        for pads in (0, 1):
            path = Path(folder) / f"pool{pads}.onnx"
            sizes = {"x": {0: "n"}}
            torch.onnx.export(network(pads), (torch.from_numpy(x[:1]),), str(path), input_names=["x"], output_names=["y"],
                              dynamic_axes=sizes, opset_version=17, dynamo=False)  # fmt: skip
            result = mrecg_onnx.quantize(
                path, Path(folder) / "x.npy", mrecg_onnx.Settings(wbits=8, abits=8, method="nearest")
            )
            expected = run_padded(open_session(path), {"x": x})["y"]
            for form, model in (("as exported", as_exported(result.model)), ("as written now", result.model)):
                found = {level: run_padded(open_session(model, level=level), {"x": x})["y"] for level in ("off", "all")}
                rows.append({
                    "pads": pads, "form": form,
                    "as_written_db": round(sqnr_db(expected, found["off"]), 2),
                    "default_db": round(sqnr_db(expected, found["all"]), 2),
                    "default_against_written_db": round(sqnr_db(found["off"], found["all"]), 2),
                    "pools": fused_op_counts(model).get("QLinearAveragePool", 0),
                })  # fmt: skip
                print(rows[-1], flush=True)
    note = header()
    (RESULTS / "pools.json").write_text(json.dumps({"header": note, "rows": rows}, indent=1) + "\n")
    lines = [
        "# AveragePool with ceil_mode",
        "",
        f"{by(note)} Output SQNR in dB of W8A8 files against FP32, with the graph run as written and at the default",
        'level, and of one against the other. "As exported" counts pads on every pool, as torch does.',
        "",
        "| pads | file | as written | default level | lost | one against the other | integer pools |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['pads']} | {r['form']} | {r['as_written_db']} | {r['default_db']} | {r['as_written_db'] - r['default_db']:.2f} "
        f"| {r['default_against_written_db']} | {r['pools']} of 3 |"
        for r in rows
    ]
    (RESULTS / "pools.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
