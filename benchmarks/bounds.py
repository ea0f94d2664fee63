"""Upper bounds of low-bit codes on ONNX Runtime: what ops that could hold them take, and how many no input can reach.

usage: python benchmarks/bounds.py QUANT.onnx ... [--threads 2]

The files are W4A4 results of mrecg-onnx quantize. Each op runs 20 times in a row on uint8 (Relu: int8) activations of
MobileNetV2's sizes; the figure is the fastest of 50 such runs, through bound outputs. About 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _record import header
from onnx import TensorProto, helper, numpy_helper

RESULTS = Path(__file__).parent / "results"
SHAPES = ((1, 96, 112, 112), (1, 144, 56, 56), (1, 384, 14, 14), (1, 960, 7, 7))
ROW, RUNS, MOST = 20, 50, 15
#: Op, its inputs behind the codes, attributes.
OPS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "Clip, both bounds": ("Clip", ["none", "most"], {}),
    "Clip, upper bound": ("Clip", ["", "most"], {}),
    "Min, a scalar": ("Min", ["most"], {}),
    "Min, a value a channel": ("Min", ["most of a channel"], {}),
    "Min, a whole tensor": ("Min", ["most of all"], {}),
    "Max, a scalar": ("Max", ["most"], {}),
    "Relu of int8": ("Relu", [], {}),
    "BitwiseAnd": ("BitwiseAnd", ["most"], {}),
    "MaxPool of one code": ("MaxPool", [], {"kernel_shape": [1, 1]}),
}
#: What a Clip may stand behind.
_BEHIND = {"Conv": "behind a convolution", "LeakyRelu": "behind a table", "Add": "behind an Add"}


def row_of(name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The op :data:`ROW` times behind one another."""
    op, more, attributes = OPS[name]
    kind = TensorProto.INT8 if op == "Relu" else TensorProto.UINT8
    constants = {
        "none": np.array(0, np.uint8),
        "most": np.array(MOST, np.uint8),
        "most of a channel": np.full((1, shape[1], 1, 1), MOST, np.uint8),
        "most of all": np.full(shape, MOST, np.uint8),
    }
    nodes = [helper.make_node(op, [f"x{i}", *more], [f"x{i + 1}"], **attributes) for i in range(ROW)]
    ends = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in (0, ROW)]
    held = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, "row", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def microseconds(name: str, shape: tuple[int, ...], threads: int) -> float:
    """What one op takes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(row_of(name, shape).SerializeToString(), options, ["CPUExecutionProvider"])
    codes = np.random.default_rng(0).integers(0, 100, shape).astype(np.int8 if "int8" in name else np.uint8)
    bound = session.io_binding()
    bound.bind_ortvalue_input("x0", ort.OrtValue.ortvalue_from_numpy(codes))
    bound.bind_output(f"x{ROW}")
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run_with_iobinding(bound)
        taken.append(time.perf_counter() - start)
    return 1e6 * min(taken) / ROW


def idle_bounds(file: Path) -> dict[str, int]:
    """Clips of codes, and how many of them no input can reach: by the sums of each channel's products at their extremes."""
    graph = onnx.load(file).graph
    held = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}

    def values(name: str) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of what a DequantizeLinear gives, a constant's own values twice."""
        node = made_by[name]
        scale, zero = held[node.input[1]], held[node.input[2]]
        if node.input[0] in held:
            codes = held[node.input[0]]
            shape = [-1] + [1] * (codes.ndim - 1) if scale.ndim else []
            exact = (codes - zero.reshape(shape)) * scale.reshape(shape)
            return exact, exact
        source, low, high = made_by[node.input[0]], 0.0, 255.0
        if source.op_type == "Clip":
            low, high = float(held[source.input[1]]), float(held[source.input[2]])
        return (low - zero) * scale, (high - zero) * scale

    found = {"clips": 0, "behind a convolution": 0, "behind a table": 0, "behind an Add": 0, "out of reach": 0}
    for clip in (n for n in graph.node if n.op_type == "Clip"):
        quantize = made_by[clip.input[0]]
        maker = made_by.get(quantize.input[0])
        if maker is not None and maker.op_type == "Relu":
            maker = made_by[maker.input[0]]
        found["clips"] += 1
        if maker is None or maker.op_type not in _BEHIND:
            continue
        found[_BEHIND[maker.op_type]] += 1
        low, high = values(maker.input[0])
        if maker.op_type == "Add":
            more = values(maker.input[1])
            low, high = low + more[0], high + more[1]
        if maker.op_type == "Conv":
            weight = values(maker.input[1])[0]
            weight = weight.reshape(len(weight), -1)
            bias = values(maker.input[2])[0] if len(maker.input) > 2 else 0.0
            up, down = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
            low, high = up * low + down * high + bias, up * high + down * low + bias
        codes = [np.rint(end / held[quantize.input[1]]) + held[quantize.input[2]] for end in (low, high)]
        ends = held[clip.input[1]], held[clip.input[2]]
        found["out of reach"] += bool(codes[1].max() <= ends[1] and (ends[0] == 0 or codes[0].min() >= ends[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    times = {name: [round(microseconds(name, shape, args.threads), 1) for shape in SHAPES] for name in OPS}
    bounds = {file.name: idle_bounds(file) for file in args.files}
    head = header()
    (RESULTS / "bounds.json").write_text(
        json.dumps({"header": head, "threads": args.threads, "us": times, "bounds": bounds}, indent=1) + "\n"
    )
    lines = [
        "# Upper bounds of codes", "", f"By `{head['command']}`, {head['date']}; microseconds an op, {args.threads} threads.", "",
        "| op | " + " | ".join("x".join(map(str, shape[1:])) for shape in SHAPES) + " |",
        "|---|" + "---|" * len(SHAPES),
        *(f"| {name} | {' | '.join(map(str, row))} |" for name, row in times.items()), "",
        "Clips whose bounds no input can reach, by the extremes of the sums and tables in front:", "",
        "| file | Clips | behind a convolution | behind a table | behind an Add | out of reach |", "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in bounds.items()), "",
        f"Machine: {head['machine']}. ONNX Runtime {ort.__version__}.",
    ]  # fmt: skip
    (RESULTS / "bounds.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
