"""Models that cannot be quantized: exit code 1 and one line that names the file, the node or tensor, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mrecg_onnx.commands import main
from mrecg_onnx.converters import load_model
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

IMAGE = "g (float[n, 3, 8, 8] x) => (float[n, 4] y)"
STEM = "[c1] a1 = Conv <pads = [1, 1, 1, 1]> (x, w1) [r1] a = Relu (a1)"
HEAD = "[p] b1 = GlobalAveragePool (b) [f] b2 = Flatten (b1) [fc] y = Gemm (b2, fw)"
CODES = np.random.default_rng(0).integers(-8, 8, (4, 4, 3, 3)).astype(np.int8)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def parse(text: str, *domains: str, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    imports = "".join(f', "{domain}" : 1' for domain in domains)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> {text}')
    common = {"w1": random(4, 3, 3, 3), "w2": random(4, 4, 3, 3), "fw": random(4, 4), "s": np.ones(4, np.float32)}
    read = {name for node in model.graph.node for name in node.input}
    for name, value in {**{n: v for n, v in common.items() if n in read}, **constants}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def between(body: str, *domains: str, **constants: Any) -> onnx.ModelProto:
    """A stem, ``body`` from ``a`` to ``b``, and a classifier."""
    return parse(f"{IMAGE} {{ {STEM} {body} {HEAD} }}", *domains, **constants)


def changed(edit: Callable[[onnx.GraphProto], object], body: str = "[n] b = Relu (a)") -> onnx.ModelProto:
    model = between(body)
    edit(model.graph)
    return model


def rename_input(graph: onnx.GraphProto, node: str, name: str) -> None:
    next(n for n in graph.node if n.name == node).input[0] = name


def swap(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([nodes[1], nodes[0], *nodes[2:]])


SCALES = {"k": np.float32(0.1), "z": np.int8(0)}
BORDER = "export a model whose in- and outputs are tensors"
FLOAT = "give the float model it was made from"

#: What is wrong with the model, the model, and what the line says.
BAD: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "BatchNormalization in training mode": (
        lambda: between("[bn] b, m, v = BatchNormalization <training_mode = 1> (a, s, s, s, s)"),
        ("'bn'", "BatchNormalization is in training mode", "export the model in eval mode"),
    ),
    "BatchNormalization in training mode, opset 9": (
        lambda: parse(
            f"""g (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {{ {STEM}
            [bn] y, m, v, sm, sv = BatchNormalization (a, s, s, s, s) }}""",
            opset=9,
        ),
        ("'bn'", "BatchNormalization is in training mode", "export the model in eval mode"),
    ),
    "Dropout in training mode": (
        lambda: between("[drop] b = Dropout (a, half, on)", half=np.float32(0.5), on=np.True_),
        ("'drop'", "Dropout is in training mode", "export the model in eval mode"),
    ),
    "Dropout whose mode is an input": (
        lambda: parse(
            f"g (float[n, 3, 8, 8] x, bool on) => (float[n, 4] y) {{ {STEM} [drop] b = Dropout (a, half, on) {HEAD} }}",
            half=np.float32(0.5),
        ),
        ("'drop'", "Dropout is in training mode", "export the model in eval mode"),
    ),
    "a sequence comes in": (
        lambda: parse(
            f"""g (seq(float[n, 3, 8, 8]) all) => (float[n, 4] y) {{
            x = SequenceAt (all, zero) {STEM} [n] b = Relu (a) {HEAD} }}""",
            zero=np.int64(0),
        ),
        ("input 'all' is a sequence", BORDER),
    ),
    "a sequence goes out": (
        lambda: parse(
            f"g (float[n, 3, 8, 8] x) => (seq(float[n, 4]) all) {{ {STEM} [n] b = Relu (a) {HEAD} all = SequenceConstruct (y) }}"
        ),
        ("output 'all' is a sequence", BORDER),
    ),
    "an optional comes in": (
        lambda: parse(
            f"""g (optional(float[n, 3, 8, 8]) maybe) => (float[n, 4] y) {{
            x = OptionalGetElement (maybe) {STEM} [n] b = Relu (a) {HEAD} }}"""
        ),
        ("input 'maybe' is optional", BORDER),
    ),
    "an optional goes out": (
        lambda: parse(
            f"g (float[n, 3, 8, 8] x) => (optional(float[n, 4]) maybe) {{ {STEM} [n] b = Relu (a) {HEAD} maybe = Optional (y) }}"
        ),
        ("output 'maybe' is optional", BORDER),
    ),
    "an unknown domain": (
        lambda: between("[odd] b = acme.Wobble (a)", "acme"),
        ("'odd'", "acme::Wobble version 1", "export the model with standard operators"),
    ),
    "a domain that is not imported": (lambda: between("[odd] b = acme.Wobble (a)"), ("opset import", "'acme'")),
    "an unknown operator of ONNX Runtime's domain": (
        lambda: between("[odd] b = com.microsoft.Wobble (a)", "com.microsoft"),
        ("'odd'", "com.microsoft::Wobble", "not a registered"),
    ),
    "quantized: QDQ": (
        lambda: between("[q] c = QuantizeLinear (a, k, z) [dq] b = DequantizeLinear (c, k, z)", **SCALES),
        ("quantized already", "'q', QuantizeLinear", FLOAT),
    ),
    "quantized: weights and activations": (
        lambda: between(
            """[q] i = QuantizeLinear (a, k, z) [d] o = DequantizeLinear (i, k, z) [dq] w = DequantizeLinear (codes, k, z)
            [c2] b = Conv (o, w)""",
            codes=CODES,
            **SCALES,
        ),
        ("quantized already", "'q', QuantizeLinear", FLOAT),
    ),
    "quantized: QLinearConv": (
        lambda: parse(
            "g (int8[n, 4, 8, 8] x) => (int8[n, 4, 6, 6] y) { [q] y = QLinearConv (x, k, z, codes, k, z, k, z) }",
            codes=CODES,
            **SCALES,
        ),
        ("quantized already", "'q', QLinearConv", FLOAT),
    ),
    "quantized: dynamically": (
        lambda: between(
            "[d] c, cs, cz = DynamicQuantizeLinear (a) [i] e = ConvInteger (c, codes, cz) h = Cast <to = 1> (e) b = Mul (h, cs)",
            codes=CODES,
        ),
        ("quantized already", "'d', DynamicQuantizeLinear", FLOAT),
    ),
    "quantized: MatMulNBits": (
        lambda: parse(
            """g (float[n, 3, 8, 8] x) => (float[n, 8] y) { p = GlobalAveragePool (x) f = Flatten (p) h = MatMul (f, m)
            [nb] y = com.microsoft.MatMulNBits <K = 32, N = 8, bits = 4, block_size = 32> (h, codes, scales) }""",
            "com.microsoft",
            m=random(3, 32),
            codes=np.zeros((8, 1, 16), np.uint8),
            scales=np.ones(8, np.float32),
        ),
        ("quantized already", "'nb', MatMulNBits", FLOAT),
    ),
    "quantized: inside a branch": (
        lambda: between(
            """top = ReduceMax <keepdims = 0> (a) c = Greater (top, k) b = If (c) <
            then_branch = t () => (float[n, 4, 8, 8] o) { [q] i = QuantizeLinear (a, k, z) o = DequantizeLinear (i, k, z) },
            else_branch = e () => (float[n, 4, 8, 8] o2) { o2 = Tanh (a) }>""",
            **SCALES,
        ),
        ("quantized already", "'q', QuantizeLinear", FLOAT),
    ),
    "the checker: a tensor of nowhere": (
        lambda: changed(lambda graph: rename_input(graph, "n", "nobody")),
        ("not valid", "node 'n' reads 'nobody'", "export the model again"),
    ),
    "the checker: an operator that does not exist": (lambda: between("[n] b = Wobble (a)"), ("not valid", "Wobble")),
    "the checker: a tensor made twice": (
        lambda: changed(lambda graph: graph.node.append(helper.make_node("Relu", ["a1"], ["a"], "twice"))),
        ("not valid", "'a'", "multiple times"),
    ),
    "the checker: the wrong order": (
        lambda: changed(swap),
        ("not valid", "node 'r1' stands before node 'c1', whose 'a1' it reads", "sort the nodes"),
    ),
    "a cycle": (
        lambda: changed(lambda graph: rename_input(graph, "m", "b"), "[m] c = Sigmoid (a) [n] b = Relu (c)"),
        ("not valid", "form a cycle", "node 'm'", "node 'n'", "export the model again"),
    ),
    "an output that no node makes": (
        lambda: changed(
            lambda graph: graph.output.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [1]))
        ),
        ("not valid", "'ghost'"),
    ),
    "an output that depends on no input": (
        lambda: parse(
            f"g (float[n, 3, 8, 8] x) => (float[n, 4] y, float[2] k) {{ {STEM} [n] b = Relu (a) {HEAD} k = Add (q, q) }}",
            q=np.ones(2, np.float32),
        ),
        ("output 'k' has shape [2]", "the batch", "take it off the model's outputs"),
    ),
    "an output without the batch": (
        lambda: parse(
            f"""g (float[n, 3, 8, 8] x) => (float[n, 4] y, float t) {{ {STEM} [n] b = Relu (a) {HEAD}
            t = ReduceMax <keepdims = 0> (y) }}"""
        ),
        ("output 't' has shape []", "the batch", "take it off the model's outputs"),
    ),
    "nothing between input and output": (
        lambda: parse(
            "g (float[n, 3, 8, 8] x) => (float[2] k) { y = Conv (x, w1) k = Add (q, q) }", q=np.ones(2, np.float32)
        ),
        ("nothing to quantize",),
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``images/``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def run(model: onnx.ModelProto) -> Result:
    Path("model.onnx").write_bytes(model.SerializeToString())
    return CliRunner().invoke(main, ["quantize", "model.onnx", "--calib", "images", "--iters", "3", "--threads", "1"])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_gets_one_line(here: Path, name: str) -> None:
    build, says = BAD[name]
    result = run(build())
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: model.onnx: ")
    for text in says:
        assert text in lines[0]
    assert sorted(path.name for path in here.iterdir()) == ["images", "model.onnx"]


def test_a_part_that_nothing_reads_is_left_out(here: Path) -> None:
    result = run(between("[n] b = Relu (a) [dead] d = Conv (a, w2)"))
    assert result.exit_code == 0, result.output
    found = load_model(here / "model_mrecg_w4a4.onnx")
    assert "dead" not in {node.name for node in found.graph.node}
    assert [node.name for node in found.graph.node if node.op_type == "Conv"] == ["c1"]


def test_a_subgraph_may_capture_a_quantized_tensor(here: Path) -> None:
    result = run(
        between(
            """top = ReduceMax <keepdims = 0> (a) c = Greater (top, k) [odd] b = If (c) <
            then_branch = t () => (float[n, 4, 8, 8] o1) { o1 = Sigmoid (a) },
            else_branch = e () => (float[n, 4, 8, 8] o2) { o2 = Tanh (a) }>""",
            k=np.float32(0),
        )
    )
    assert result.exit_code == 0, result.output
    assert "odd" in result.stderr
    assert "ONNX Runtime runs what torch cannot" in result.stderr
    found = load_model(here / "model_mrecg_w4a4.onnx")
    branches = next(node for node in found.graph.node if node.op_type == "If")
    captured = {attribute.g.node[0].input[0] for attribute in branches.attribute}
    made = {output: node.op_type for node in found.graph.node for output in node.output}
    assert {made[name] for name in captured} == {"DequantizeLinear"}


def test_parts_that_do_not_meet_are_both_quantized(tmp_path: Path) -> None:
    model = parse(
        """g (float[n, 3, 8, 8] x, float[n, 3, 8, 8] z, float[n, 2] idle) => (float[n, 4, 8, 8] y, float[n, 4, 8, 8] u) {
        y1 = Conv <pads = [1, 1, 1, 1]> (x, w1) y = Relu (y1) u1 = Conv <pads = [1, 1, 1, 1]> (z, w1) u = Relu (u1) }"""
    )
    feeds = {"x": random(8, 3, 8, 8), "z": random(8, 3, 8, 8) + 1, "idle": random(8, 2)}
    np.savez(tmp_path / "calib.npz", **feeds)
    result = quantize(
        model, tmp_path / "calib.npz", Settings(iters=3, batch_size=4, threads=1), output=tmp_path / "q.onnx"
    )
    assert result.verification.exact == 1.0
    assert len(result.plan.quantized_layers) == 2
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x", "z", "idle"]
    assert [y.shape for y in session.run(None, feeds)] == [(8, 4, 8, 8)] * 2
