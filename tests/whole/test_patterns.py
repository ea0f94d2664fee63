"""Whole small models, one for each way of writing one: torch equals ONNX Runtime, and W4A4 files are what was learned."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from mrecg_onnx.converters import check_parity, load_model, normalize, to_torch
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.versions import runtime_versions
from mrecg_onnx.inspecting.inspection import inspect
from mrecg_onnx.inspecting.ranking import sensitivity
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.validating import validate

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "g (float[n, 3, 12, 12] x) => (float[n, 5] y)"
STEM = "c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) r1 = Relu (c1)"
HEAD = "p = GlobalAveragePool (r2) f = Flatten (p) y = Gemm (f, fw)"


def weights(*shape: int) -> np.ndarray:
    """Random, seeded by the shape."""
    random = np.random.default_rng(list(shape))
    return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


CODES, SCALE = np.random.default_rng(0).integers(-127, 128, (6, 6, 3, 3)).astype(np.int8), np.float32(0.003)
COMMON = {"w1": weights(6, 3, 3, 3), "w2": weights(6, 6, 3, 3), "hw": weights(6, 6), "fw": weights(6, 5)}


def parse(text: str, opset: int = 17, ir_version: int = 8, **constants: Any) -> onnx.ModelProto:
    """A model with those constants, and those of :data:`COMMON` that it reads."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')
    read = {name for node in model.graph.node for name in node.input} - {n for x in model.graph.node for n in x.output}
    for name, value in {**{n: v for n, v in COMMON.items() if n in read}, **constants}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        if ir_version < 4:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, np.shape(value)))
    return model


def image(body: str, **constants: Any) -> onnx.ModelProto:
    """A stem, ``body`` from ``r1`` to ``r2``, and a classifier."""
    return parse(f"{IMAGE} {{ {STEM} {body} {HEAD} }}", **constants)


def through(body: str, **constants: Any) -> onnx.ModelProto:
    """A convolution whose weight ``w`` comes out of ``body``."""
    return image(f"{body} c2 = Conv (r1, w) r2 = Relu (c2)", **constants)


def gemm(attributes: str, source: str, weight: np.ndarray) -> onnx.ModelProto:
    """A Gemm with ``attributes`` behind two other layers."""
    return parse(
        f"""{IMAGE} {{ {STEM} p = GlobalAveragePool (r1) f = Flatten (p) h0 = Gemm (f, hw) h = Relu (h0)
        t = Transpose <perm = [1, 0]> (h) y = Gemm <{attributes}> ({source}, own, b) }}""",
        own=weight,
        b=weights(5),
    )


def inside(node: str, **constants: Any) -> onnx.ModelProto:
    """A node with a subgraph between two convolutions: it makes ``odd`` of ``r1``."""
    return image(f"{node} c2 = Conv <pads = [1, 1, 1, 1]> (odd, w2) r2 = Relu (c2)", **constants)


def constant_node() -> onnx.ModelProto:
    model = through("w = Identity (w2)")
    node = next(node for node in model.graph.node if node.op_type == "Identity")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    node.CopyFrom(helper.make_node("Constant", [], ["w"], value=tensor))
    model.graph.initializer.remove(tensor)
    return model


def functions(outer: int = 17, inner: int = 17, more: str = ', "local" : 1') -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {outer}, "local" : 1]>
        {IMAGE} {{ r1 = local.block (x, w1) r2 = local.block (r1, w2) {HEAD} }}
        <domain: "local", opset_import: ["" : {inner}{more}]>
        block (a, w) => (b) {{ c = Conv <pads = [1, 1, 1, 1]> (a, w) b = local.act (c) }}
        <domain: "local", opset_import: ["" : {inner}]> act (a) => (b) {{ b = Relu (a) }}"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(COMMON[name], name) for name in ("w1", "w2", "fw"))
    return model


def declared(inner: str, output: str = "float[n, 5] y") -> onnx.ModelProto:
    """A network whose file declares these shapes."""
    return parse(
        f"""g (float[n, 3, 12, 12] x) => ({output}) {f"<{inner}>" if inner else ""} {{ {STEM}
        c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu (c2) {HEAD} }}"""
    )


def looked_up(kind: str) -> onnx.ModelProto:
    return parse(
        f"""g (float[n, 3, 12, 12] x, {kind}[n] id) => (float[n, 5] y) {{ {STEM} p = GlobalAveragePool (r1) f = Flatten (p)
        e = Gather (table, id) s = Add (f, e) h0 = Gemm (s, hw) h = Relu (h0) y = Gemm (h, fw) }}""",
        table=weights(10, 6),
    )


#: Models by name, with the number of layers they have.
PATTERNS = {
    "shared weight": (
        lambda: image(
            """c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) a = Relu (c2)
            c3 = Conv <pads = [1, 1, 1, 1]> (a, w2) r2 = Relu (c3)"""
        ),
        4,
    ),
    "shared weight, one reader through Transpose": (
        lambda: image(
            """wt = Transpose <perm = [1, 0, 2, 3]> (w2) c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) a = Relu (c2)
            c3 = Conv <pads = [1, 1, 1, 1]> (a, wt) r2 = Relu (c3)"""
        ),
        4,
    ),
    "weight through Constant": (constant_node, 3),
    "weight through Identity": (lambda: through("w = Identity (w2)"), 3),
    "weight through Cast": (lambda: through("w = Cast <to = 1> (half)", half=COMMON["w2"].astype(np.float16)), 3),
    "weight through Transpose": (lambda: through("w = Transpose <perm = [3, 2, 0, 1]> (k)", k=weights(3, 3, 6, 6)), 3),
    "weight through Reshape": (lambda: through("w = Reshape (k, s)", k=weights(6, 54), s=[6, 6, 3, 3]), 3),
    "weight through all of them": (
        lambda: through(
            "a = Identity (k) b = Cast <to = 1> (a) c = Reshape (b, s) w = Transpose <perm = [3, 2, 0, 1]> (c)",
            k=weights(3, 3, 36).astype(np.float16),
            s=[3, 3, 6, 6],
        ),
        3,
    ),
    "Gemm, transB": (lambda: gemm("transB = 1", "h", weights(5, 6)), 3),
    "Gemm, transA": (lambda: gemm("transA = 1", "t", weights(6, 5)), 3),
    "Gemm, alpha": (lambda: gemm("alpha = 0.5, beta = 0.0", "h", weights(6, 5)), 3),
    "Gemm, all": (lambda: gemm("transA = 1, transB = 1, alpha = 0.5, beta = 2.0", "t", weights(5, 6)), 3),
    "MatMul, weight on the left": (
        lambda: parse(
            """g (float[n, 6, 8] x) => (float[n, 5, 8] y) {
            h0 = MatMul (a, x) h = Relu (h0) k0 = MatMul (b, h) k = Relu (k0) y = MatMul (c, k) }""",
            a=weights(7, 6),
            b=weights(9, 7),
            c=weights(5, 9),
        ),
        3,
    ),
    "MatMul of two activations": (
        lambda: parse(
            """g (float[n, 6, 8] x) => (float[n, 6, 8] y) { q = MatMul (x, a) k = MatMul (x, b) v = MatMul (x, c)
            kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) m = Softmax (s) z = MatMul (m, v) y = MatMul (z, d) }""",
            **{name: weights(8, 8) for name in "abcd"},
        ),
        4,
    ),
    "functions": (functions, 3),
    "If": (
        lambda: inside(
            """top = ReduceMax <keepdims = 0> (x) c = Greater (top, zero) odd = If (c) <
            then_branch = t () => (float[n, 6, 12, 12] o1) { o1 = Sigmoid (r1) },
            else_branch = e () => (float[n, 6, 12, 12] o2) { o2 = Tanh (r1) }>""",
            zero=np.float32(0),
        ),
        3,
    ),
    "Loop": (
        lambda: inside(
            """odd = Loop (trips, , r1) <body = b (int64 i, bool go, float[n, 6, 12, 12] s) =>
            (bool on, float[n, 6, 12, 12] t) { on = Identity (go) t = Sigmoid (s) }>""",
            trips=np.int64(2),
        ),
        3,
    ),
    "Scan": (
        lambda: inside(
            """first = GlobalAveragePool (r1) last, odd = Scan <num_scan_inputs = 1, scan_input_axes = [3],
            scan_output_axes = [3], body = b (float[n, 6, 1, 1] s, float[n, 6, 12] u) =>
            (float[n, 6, 1, 1] so, float[n, 6, 12] t) { so = Identity (s) q = Squeeze (s, axis) t = Add (u, q) }> (first, r1)""",
            axis=[3],
        ),
        3,
    ),
    "several inputs and outputs": (
        lambda: parse(
            f"""g (float[n, 3, 12, 12] x, float[n, 2, 12, 12] z) => (float[n, 5] y, float[n, 6, 12, 12] r2, float[n, 2, 12, 12] q)
            {{ c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) c0 = Conv <pads = [1, 1, 1, 1]> (z, w0) s = Add (c1, c0) r1 = Relu (s)
            c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu (c2) q = Sigmoid (z) {HEAD} }}""",
            w0=weights(6, 2, 3, 3),
        ),
        4,
    ),
    "image of bytes, NHWC": (
        lambda: parse(
            f"""g (uint8[n, 12, 12, 3] raw) => (float[n, 5] y) {{ a = Cast <to = 1> (raw) b = Mul (a, k)
            x = Transpose <perm = [0, 3, 1, 2]> (b) {STEM} c2 = Conv (r1, w2) r2 = Relu (c2) {HEAD} }}""",
            k=np.float32(1 / 255),
        ),
        3,
    ),
    "row of a table, int64": (lambda: looked_up("int64"), 3),
    "row of a table, int32": (lambda: looked_up("int32"), 3),
    "row of a table, found by an earlier layer": (
        lambda: parse(
            f"""{IMAGE} {{ {STEM} p = GlobalAveragePool (r1) f = Flatten (p) id = ArgMax <axis = 1, keepdims = 0> (f)
            a0 = Gemm (f, hw) a = Relu (a0) b0 = Gemm (a, hw) b = Relu (b0) c0 = Gemm (b, hw) c = Relu (c0)
            e = Gather (table, id) s = Add (c, e) y = Gemm (s, fw) }}""",
            table=weights(10, 6),
        ),
        5,
    ),
    "mask as an input": (
        lambda: parse(
            f"""g (float[n, 3, 12, 12] x, bool[n, 5] keep) => (float[n, 5] y) {{ {STEM} c2 = Conv (r1, w2) r2 = Relu (c2)
            p = GlobalAveragePool (r2) f = Flatten (p) h0 = Gemm (f, hw) h = Relu (h0)
            l = Gemm (h, fw) y = Where (keep, l, zero) }}""",
            zero=np.float32(0),
        ),
        4,
    ),
    "NHWC between Transposes": (
        lambda: parse(
            """g (float[n, 12, 12, 3] x) => (float[n, 12, 12, 5] y) { xt = Transpose <perm = [0, 3, 1, 2]> (x)
            c1 = Conv <pads = [1, 1, 1, 1]> (xt, w1) t1 = Transpose <perm = [0, 2, 3, 1]> (c1) b1 = Add (t1, b) r1 = Relu (b1)
            t2 = Transpose <perm = [0, 3, 1, 2]> (r1) c2 = Conv <pads = [1, 1, 1, 1]> (t2, w2)
            t3 = Transpose <perm = [0, 2, 3, 1]> (c2) a = Add (t3, r1) m = MatMul (a, fw) y = Relu (m) }""",
            b=weights(6),
        ),
        3,
    ),
    "free height and width": (
        lambda: parse(
            """g (float[n, 3, h, w] x) => (float[n, 5, h, w] y) { c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
            r1 = Relu (c1) c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu (c2) c3 = Conv <pads = [1, 1, 1, 1]> (r2, w2)
            r3 = Relu (c3) c4 = Conv <pads = [1, 1, 1, 1]> (r3, w2) r4 = Relu (c4) xs = Shape (x) hw = Slice (xs, two, four)
            rs = Shape (r4) nc = Slice (rs, zero, two) size = Concat <axis = 0> (nc, hw)
            u = Resize <mode = "linear"> (r4, , , size) y = Conv (u, w3) }""",
            w3=weights(5, 6, 1, 1),
            zero=[0],
            two=[2],
            four=[4],
        ),
        5,
    ),
    "BatchNormalization behind ReLU, and a concatenation": (
        lambda: image(
            """n1 = BatchNormalization (r1, s, b, b, s) a1 = Relu (n1) c2 = Conv <pads = [1, 1, 1, 1]> (a1, w2)
            both = Concat <axis = 1> (r1, c2) n2 = BatchNormalization (both, s2, b2, b2, s2) a2 = Relu (n2) r2 = Conv (a2, w3)""",
            s=np.abs(weights(6)) + 0.5,
            b=weights(6),
            s2=np.abs(weights(12)) + 0.5,
            b2=weights(12),
            w3=weights(6, 12, 1, 1),
        ),
        6,
    ),
    "BatchNormalization of what is read twice": (
        lambda: image(
            """c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) n = BatchNormalization (c2, s, b, b, s) g = Sigmoid (c2)
            r2 = Mul (n, g)""",
            s=np.abs(weights(6)) + 0.5,
            b=weights(6),
        ),
        4,
    ),
    "Pad of a tensor with negative values": (
        lambda: image(
            """c2 = Conv (r1, w2) p2 = Pad (c2, pads) c3 = Conv (p2, w2) r2 = Relu (c3)""",
            pads=[0, 0, 1, 2, 0, 0, 2, 1],
        ),
        4,
    ),
}


def plain(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """A residual network with a MaxPool."""
    return parse(
        f"""{IMAGE} {{ {STEM} m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
        c2 = Conv <pads = [1, 1, 1, 1]> (m, w2) s = Add (c2, m) r2 = Relu (s)
        p = GlobalAveragePool (r2) f = Flatten (p) y = Gemm (f, fw, b) }}""",
        opset,
        ir_version,
        b=weights(5),
    )


def arrays(model: onnx.ModelProto, count: int) -> dict[str, np.ndarray]:
    """Random inputs, 12 pixels where the size is free."""
    random, found = np.random.default_rng(0), {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [count, *(size.dim_value or 12 for size in tensor.shape.dim[1:])]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        found[value.name] = (random.standard_normal(shape) if floating else random.integers(0, 6, shape)).astype(dtype)
    given = {tensor.name for tensor in model.graph.initializer}
    return {name: array for name, array in found.items() if name not in given}


#: Rounded to nearest: what is wrong with the graph shows at 8 bits, too.
EIGHT = Settings(wbits=8, abits=8, method="nearest", threads=1)


def quantized(
    model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray], folder: Path, settings: Settings | None = None
) -> QuantizationResult:
    np.savez(folder / "calib.npz", **feeds)
    settings = settings or Settings(wbits=4, abits=4, iters=3, batch_size=4, threads=1)
    return quantize(model, folder / "calib.npz", settings, output=folder / "quantized.onnx")


def check(model: onnx.ModelProto, folder: Path) -> QuantizationResult:
    """Parity as it is and normalized; a few iterations; the file opens at the default level and is what was simulated."""
    feeds = arrays(model, 8)
    for source in (model, normalize(model)):
        assert check_parity(model, to_torch(source), feeds) < 1e-5
    result = quantized(model, feeds, folder)
    assert result.verification.exact == 1.0
    assert not result.verification.warnings
    covered = [layer for unit in result.plan.units for layer in unit.layers]
    assert covered == [layer.name for layer in result.plan.layers]
    session = onnxruntime.InferenceSession(folder / "quantized.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(feeds)
    assert [value.name for value in session.get_outputs()] == [value.name for value in model.graph.output]
    session.run(None, feeds)
    return result


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(tmp_path, name):
    build, layers = PATTERNS[name]
    assert len(check(build(), tmp_path).plan.quantized_layers) == layers


def test_both_inputs_of_a_product_of_activations_are_quantized():
    plan = inspect(PATTERNS["MatMul of two activations"][0]()).plan
    bits = {name: entry.bits for entry in plan.activations for name in entry.members}
    assert {name: bits.get(name) for name in ("q", "kt", "m", "v")} == {"q": 8, "kt": 8, "m": 8, "v": 8}


@pytest.mark.parametrize("name", ["If", "Loop", "Scan"])
def test_what_has_a_body_stays_whole(tmp_path, name):
    model = PATTERNS[name][0]()
    result = quantized(model, arrays(model, 8), tmp_path)
    before, after = (
        [(n.op_type, [i.op_type for a in n.attribute if a.HasField("g") for i in a.g.node]) for n in m.graph.node]
        for m in (model, result.model)
    )
    whole = next(node for node in before if node[0] == name)
    assert whole in after
    assert whole[1]


@pytest.mark.parametrize(
    ("name", "count"),
    [("BatchNormalization behind ReLU, and a concatenation", 2), ("BatchNormalization of what is read twice", 1)],
)
def test_a_batch_normalization_that_cannot_be_folded_is_a_depthwise_convolution(tmp_path, name, count):
    model = PATTERNS[name][0]()
    names = {node.name or node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    result = quantized(model, arrays(model, 8), tmp_path)
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}
    bridges = [x for x in result.plan.quantized_layers if x.op == "Conv" and 1 < x.groups == x.shape[0]]
    assert len(bridges) == len(names) == count


def test_a_pad_holds_the_code_of_zero(tmp_path):
    model = PATTERNS["Pad of a tensor with negative values"][0]()
    result = quantized(model, arrays(model, 8), tmp_path)
    pad = next(node for node in result.model.graph.node if node.op_type == "Pad")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    reader = next(node for node in result.model.graph.node if node.input[0] == pad.output[0])
    assert reader.op_type == "DequantizeLinear"
    assert constants[pad.input[2]] == constants[reader.input[2]] > 0


def test_free_sizes_are_calibrated_at_the_size_of_the_data_and_stay_free(tmp_path):
    model = PATTERNS["free height and width"][0]()
    quantized(model, arrays(model, 8), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "quantized.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((3, 3, 20, 16), np.float32)})[0].shape == (3, 5, 20, 16)


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_opset(tmp_path, opset):
    result = check(plain(opset, 3 if opset < 9 else 8 if opset < 19 else 10), tmp_path)
    assert result.model.opset_import[0].version == min(max(opset, load_target("ort").opset[0]), runtime_versions()[0])


@pytest.mark.parametrize("ir_version", [3, 4, *range(8, onnx.IR_VERSION + 1)])
def test_ir_version(tmp_path, ir_version):
    result = check(plain(13, ir_version), tmp_path)
    assert result.model.ir_version == min(
        max(ir_version, 9), runtime_versions()[1]
    )  # 9 came with the target's lowest opset, 19


def test_versions_newer_than_onnx_runtime(tmp_path):
    opset, ir_version = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    if (opset, ir_version) <= runtime_versions():
        pytest.skip("ONNX Runtime knows all that onnx knows")
    model = plain(opset, ir_version)
    onnx.save(model, tmp_path / "model.onnx")
    quantized(tmp_path / "model.onnx", arrays(model, 8), tmp_path)
    found = validate(tmp_path / "model.onnx", tmp_path / "quantized.onnx", tmp_path / "calib.npz", repeats=2)
    assert found.images == 8
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)


def test_an_operator_newer_than_onnx_runtime_is_named():
    newest = runtime_versions()[0]
    new = [s for s in onnx.defs.get_all_schemas() if not s.domain and s.since_version > newest and s.name == "SwiGLU"]
    if not new:
        pytest.skip("ONNX Runtime knows all that onnx knows")
    model = parse(f"{IMAGE} {{ {STEM} [odd] r2 = SwiGLU (r1, r1) {HEAD} }}", onnx.defs.onnx_opset_version(), 10)
    with pytest.raises(ModelError, match=rf"'odd' \(SwiGLU\) is newer than opset {newest}.*export with opset"):
        inspect(model)


def test_external_data_docs_and_metadata(tmp_path):
    model = plain()
    model.doc_string, model.graph.doc_string, model.producer_name = "a model", "a graph", "somebody"
    model.graph.input[0].doc_string = "an image"
    helper.set_model_props(model, {"classes": "five"})
    for node in model.graph.node:
        node.doc_string = f"about {node.output[0]}"
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {tmp_path / "model.onnx", tmp_path / "weights.bin"}
    result = quantized(tmp_path / "model.onnx", arrays(plain(), 8), tmp_path)
    assert result.verification.exact == 1.0
    assert {path: path.read_bytes() for path in before} == before
    found = load_model(tmp_path / "quantized.onnx")
    assert (found.doc_string, found.graph.doc_string) == ("a model", "a graph")
    assert found.graph.input[0].doc_string == "an image"
    assert {entry.key: entry.value for entry in found.metadata_props}["classes"] == "five"
    docs = {node.name: node.doc_string for node in found.graph.node if node.doc_string}
    layers = [node for node in found.graph.node if node.op_type in {"Conv", "Gemm", "MaxPool"}]
    assert [docs.get(node.name, "").startswith("about") for node in layers] == [True] * 4


def conv(source: str, weight: str, made: str, op: str = "Conv", attributes: str = "") -> str:
    return f"{made} = {op} {f'<{attributes}>' if attributes else ''} ({source}, {weight})"


def products(rank: int, *shapes: tuple[int, ...], left: bool = False) -> onnx.ModelProto:
    """MatMuls by constants of ``shapes`` on an input of ``rank`` axes behind one layer, with a Relu behind each."""
    sizes = ", ".join(str(size) for size in (4, 2, 6, 8)[4 - rank + 1 :])
    body, last = ["[m0] h0 = MatMul (x, w0) r0 = Relu (h0)"], "r0"
    for i, _ in enumerate(shapes, 1):
        operands = f"w{i}, {last}" if left else f"{last}, w{i}"
        body.append(f"[m{i}] h{i} = MatMul ({operands}) r{i} = Relu (h{i})")
        last = f"r{i}"
    # Relu of an output is taken off: the last product is what the model gives.
    text = " ".join(body).replace(f"h{len(shapes)} = ", "y = ").rsplit(f" r{len(shapes)} = ", 1)[0]
    constants = {f"w{i}": weights(*shape) * 2 for i, shape in enumerate(shapes, 1)}
    return parse(
        f"g (float[n, {sizes}] x) => (float[{', '.join('n' if i == 0 else f'd{i}' for i in range(rank))}] y) {{ {text} }}",
        w0=weights(8, 8) * 2,
        **constants,
    )


def transposed(
    axes: int, attributes: str = "", groups: int = 1, *, bias: bool = True, behind: str = ""
) -> onnx.ModelProto:
    """A ConvTranspose over ``axes`` axes from 6 to 6 channels between two convolutions."""
    ones, sizes = [1] * axes, ", ".join(["8"] * axes)
    free = ", ".join(f"d{i}" for i in range(axes))
    given = f"group = {groups}, strides = {[2] * axes}{', ' if attributes else ''}{attributes}"
    made = "(r1, w2, b2)" if bias else "(r1, w2)"
    constants: dict[str, Any] = {"b2": weights(6) * 3} if bias else {}
    if behind:
        constants |= {"s": np.abs(weights(6)) + 0.5, "t": weights(6)}
    return parse(
        f"""g (float[n, 3, {sizes}] x) => (float[n, 5, {free}] y) {{ c1 = Conv (x, w1) r1 = Relu (c1)
        c2 = ConvTranspose <{given}> {made} {behind or "n2 = Identity (c2)"} r2 = Relu (n2) y = Conv (r2, w3) }}""",
        w1=weights(6, 3, *ones) * 3,
        w2=weights(6, 6 // groups, *[3] * axes) * 3,
        w3=weights(5, 6, *ones) * 3,
        **constants,
    )


def convolved(axes: int, groups: int) -> onnx.ModelProto:
    """A convolution in groups over ``axes`` axes between two others."""
    ones, sizes, free = [1] * axes, ", ".join(["8"] * axes), ", ".join(f"d{i}" for i in range(axes))
    return parse(
        f"""g (float[n, 3, {sizes}] x) => (float[n, 5, {free}] y) {{ c1 = Conv (x, w1) r1 = Relu (c1)
        c2 = Conv <group = {groups}, strides = {[2] * axes}, dilations = {ones}> (r1, w2, b2)
        r2 = Relu (c2) y = Conv (r2, w3) }}""",
        w1=weights(6, 3, *ones) * 3,
        w2=weights(6, 6 // groups, *[3] * axes) * 3,
        b2=weights(6),
        w3=weights(5, 6, *ones) * 3,
    )


def between(body: str, opset: int = 18, channels: int = 6, **constants: Any) -> onnx.ModelProto:
    """``body`` makes ``b`` of ``a``, what a convolution made, for another one over ``channels``."""
    return parse(
        f"g (float[n, 3, 12, 12] x) => (float[n, 5, h, w] y) {{ a = Conv (x, w1) {body} y = Conv (b, w2) }}",
        opset,
        w1=weights(6, 3, 1, 1) * 3,
        w2=weights(5, channels, 1, 1) * 3,
        **constants,
    )


def padded(body: str, **constants: Any) -> onnx.ModelProto:
    """A Pad of a Relu's output between convolutions that run in integers."""
    return between(f"r = Relu (a) {body} c = Conv (p, w) b = Relu (c)", w=weights(6, 6, 1, 1), **constants)


def halved(model: onnx.ModelProto, *, borders: bool = True) -> onnx.ModelProto:
    """The same in float16, with float32 borders or without, as converters to half precision write it."""
    half, names = TensorProto.FLOAT16, {value.name for value in (*model.graph.input, *model.graph.output)}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if borders and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = half
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
        if not borders:
            node.input[:] = [f"{name}_half" if name in names else name for name in node.input]
            node.output[:] = [f"{name}_half" if name in names else name for name in node.output]
    if not borders:
        read = [helper.make_node("Cast", [v.name], [f"{v.name}_half"], to=half) for v in model.graph.input]
        made = [helper.make_node("Cast", [f"{v.name}_half"], [v.name], to=1) for v in model.graph.output]
        nodes = [*read, *model.graph.node, *made]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


#: Models that ONNX Runtime runs, of kinds that were once refused or wrong.
KINDS = {
    "float16": lambda: halved(plain()),
    "float16 between float32 borders": lambda: halved(plain(), borders=False),
    "float16, opset 23": lambda: halved(plain(23, 11)),
    "float16, several outputs, one read further": lambda: halved(parse(
        f"""g (float[n, 3, 12, 12] x) => (float[n, 6, 12, 12] r1, float[n, 5] y, float[n, 6, 12, 12] t) {{ {STEM}
        t = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Sigmoid (t) {HEAD} }}"""
    )),
    "float16 with a float32 part and constants of its own": lambda: halved(between(
        """i = Cast <to = 1> (a) e = Exp (i) q = Cast <to = 10> (e) s = Shape (a)
        k = ConstantOfShape <value = float[1] {0.5}> (s) m = Mul (q, k)
        c = Clip (m, lo, hi) b = LayerNormalization <axis = 1> (c, g)""",
        lo=np.float32(0.1), hi=np.float32(3), g=np.ones((6, 12, 12), np.float32),
    )),
    "float16 in a body": lambda: halved(inside(
        """top = ReduceMax <keepdims = 0> (r1) zero = Sub (top, top) yes = Equal (zero, zero)
        odd = If (yes) <then_branch = t () => (float16[n, 6, 12, 12] o1) { o1 = Sigmoid (r1) },
        else_branch = e () => (float16[n, 6, 12, 12] o2) { o2 = Neg (r1) }>"""
    )),
    "weights behind DequantizeLinear": lambda: through("w = DequantizeLinear (codes, k, z)", codes=CODES, k=SCALE, z=np.int8(3)),
    "weights behind DequantizeLinear, a scale a channel": lambda: through(
        "t = DequantizeLinear <axis = 1> (codes, k) w = Transpose <perm = [1, 0, 2, 3]> (t)", codes=CODES, k=np.full(6, SCALE)
    ),
    "weights and bias behind DequantizeLinear": lambda: image(
        """w = DequantizeLinear (codes, k) b = DequantizeLinear (bias, k) c2 = Conv (r1, w, b) r2 = Relu (c2)""",
        codes=CODES, k=SCALE, bias=np.arange(6, dtype=np.int32),
    ),
    "weights that were rounded": lambda: through(
        "q = QuantizeLinear (w2, k, z) w = DequantizeLinear (q, k, z)", k=SCALE, z=np.int8(0)
    ),
    "float16 weights behind Cast": lambda: through("w = Cast <to = 1> (wh)", wh=weights(6, 6, 3, 3).astype(np.float16)),
    "integer weights behind Cast": lambda: through("i = Cast <to = 1> (codes) w = Mul (i, k)", codes=CODES, k=SCALE),
    **{
        f"a function of opset {inner} in a model of {outer}": lambda inner=inner, outer=outer: functions(outer, inner)
        for inner, outer in ((13, 17), (17, 13), (16, 17), (15, 18))
    },
    "functions that alone import a domain, or its other version": lambda: functions(17, 17, more=', "local" : 3, "unused" : 1'),
    "stale shapes inside": lambda: declared("float[1, 9, 2, 2] c1, float[7] r1, float[n, 6, 24, 24] r2, float[n, 6] p"),
    "stale shapes inside, of another size of the input": lambda: declared(
        "float[1, 6, 24, 24] c1, float[1, 6, 24, 24] r1, float[1, 6, 24, 24] c2, float[1, 6, 24, 24] r2"
    ),
    "a stale shape of the output": lambda: declared("", "float[n, 9] y"),
    "a stale rank of the output": lambda: declared("", "float[n, 5, 1, 1] y"),
    "bfloat16 weights": lambda: through("w = Cast <to = 1> (wb)", wb=weights(6, 6, 3, 3).astype(ml_dtypes.bfloat16)),
    "MatMul by [1, K, N]": lambda: products(3, (1, 8, 8), (8, 5)),
    "MatMul by [1, 1, K, N]": lambda: products(4, (1, 1, 8, 8), (8, 5)),
    "MatMul by [1, 2, K, N]": lambda: products(4, (1, 2, 8, 8), (2, 8, 5)),
    "MatMul by a stack": lambda: products(4, (2, 8, 8), (8, 5)),
    "MatMul by a stack that broadcasts": lambda: products(4, (2, 8, 8), (1, 8, 5)),
    "MatMul by a stack with more axes": lambda: products(3, (1, 8, 8), (8, 5)),
    "MatMul, [1, M, K] on the left": lambda: products(3, (1, 7, 6), (1, 5, 7), left=True),
    "MatMul, a stack on the left": lambda: products(4, (2, 7, 6), (2, 5, 7), left=True),
    **{
        f"ConvTranspose {axes}-D, {groups} groups": lambda axes=axes, groups=groups: transposed(axes, groups=groups)
        for axes in (1, 2, 3)
        for groups in (1, 2, 6)
    },
    "ConvTranspose, groups, output_padding": lambda: transposed(2, "output_padding = [1, 1]", 3),
    "ConvTranspose, groups, pads that differ": lambda: transposed(2, "pads = [0, 1, 1, 0], dilations = [2, 1]", 3),
    "ConvTranspose, groups, no bias": lambda: transposed(2, "auto_pad = \"SAME_UPPER\"", 2, bias=False),
    "ConvTranspose, groups, BatchNormalization": lambda: transposed(
        2, "", 2, behind="n2 = BatchNormalization (c2, s, t, t, s)"
    ),
    **{
        f"Conv {axes}-D, {groups} groups": lambda axes=axes, groups=groups: convolved(axes, groups)
        for axes in (1, 3)
        for groups in (1, 2, 6)
    },
    "Clip, computed lower bound": lambda: between("lo = ReduceMin <keepdims = 0> (a) b = Clip (a, lo)"),
    "Clip, computed upper bound": lambda: between(
        "hi = ReduceMax <keepdims = 0> (a) m = Mul (hi, k) b = Clip (a, , m)", k=np.float32(0.4)
    ),
    "Clip, one bound computed": lambda: between("hi = ReduceMax <keepdims = 0> (a) b = Clip (a, lo, hi)", lo=np.float32(-0.1)),
    "Max and Min, computed bounds": lambda: between(
        "lo = ReduceMin <keepdims = 0> (a) hi = ReduceMax <keepdims = 0> (a) m = Max (a, lo) b = Min (m, hi)"
    ),
    "Relu and Min, a computed bound": lambda: between(
        "hi = ReduceMax <keepdims = 1> (a, ax) m = Mul (hi, k) r = Relu (a) b = Min (r, m)", k=np.float32(0.5), ax=[1, 2, 3]
    ),
    "Pad with axes": lambda: padded("p = Pad (r, pads, , axes)", pads=[1, 2, 2, 1], axes=[2, 3]),
    "Pad with negative axes": lambda: padded("p = Pad (r, pads, , axes)", pads=[1, 2, 2, 1], axes=[-1, -2]),
    "Pad with all axes, by name": lambda: padded("p = Pad (r, pads, , axes)", pads=[0, 0, 1, 2, 0, 0, 2, 1], axes=[0, 1, 2, 3]),
    "Pad with axes, a value": lambda: padded("p = Pad (r, pads, v, axes)", pads=[1, 2], axes=[3], v=np.float32(0.5)),
    "Pad with axes, reflected": lambda: padded('p = Pad <mode = "reflect"> (r, pads, , axes)', pads=[1, 2, 2, 1], axes=[2, 3]),
    "Pad with axes, computed pads": lambda: padded(
        "s = Shape (r) h = Gather (s, two) q = Div (h, six) t = Sub (h, q) u = Unsqueeze (t, zero) v = Sub (u, ten) "
        "pads = Concat <axis = 0> (v, one, one, v) p = Pad (r, pads, , axes)",
        two=np.int64(2), six=np.int64(6), ten=[9], one=[1], zero=[0], axes=[-2, 3],
    ),
    "Pad, pads computed from values": lambda: padded(
        "top = ReduceMax <keepdims = 0> (x) z = Mul (top, nought) i = Cast <to = 7> (z) j = Reshape (i, one) k = Add (j, one) "
        "pads = Concat <axis = 0> (k, k) p = Pad (r, pads, , axes)",
        nought=np.float32(0), one=[1], axes=[3],
    ),
    "Slice of nothing, and Concat": lambda: between(
        "e = Slice (a, six, six, one) b = Concat <axis = 1> (a, e)", six=[6], one=[1]
    ),
    "Concat with an empty constant": lambda: between(
        "r = Relu (a) b = Concat <axis = 1> (e, r)", e=np.zeros((1, 0, 12, 12), np.float32)
    ),
    "an empty branch": lambda: between(
        "r = Relu (a) e = Slice (r, twelve, twelve, two) f = Mul (e, k) g = Sigmoid (f) "
        "b = Concat <axis = 2> (r, g)",
        twelve=[12], two=[2], k=np.float32(2),
    ),
    "a branch whose emptiness is computed": lambda: between(
        "top = ReduceMax <keepdims = 0> (x) z = Mul (top, nought) i = Cast <to = 7> (z) j = Reshape (i, one) "
        "e = Slice (a, zero, j, one) q = Sigmoid (e) b = Concat <axis = 1> (q, a)",
        nought=np.float32(0), one=[1], zero=[0],
    ),
}  # fmt: skip


def decibels(reference: np.ndarray, found: np.ndarray) -> float:
    """Signal (about its mean) over noise, in dB."""
    noise = np.mean(np.square(reference.astype(np.float64) - found))
    return float(10 * np.log10(np.var(reference.astype(np.float64)) / max(noise, 1e-30)))


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: str = "ENABLE") -> list[np.ndarray]:
    """All outputs of ``model`` at a level of ONNX Runtime, the default one, by its own batch where that is fixed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}_ALL")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or count
    rows = [np.arange(start, start + size).clip(max=count - 1) for start in range(0, count, size)]
    parts = [session.run(None, {n: x[index] for n, x in feeds.items()}) for index in rows]
    return [np.concatenate(part)[:count] for part in zip(*parts, strict=True)]


def worst(model: onnx.ModelProto, found: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """dB of the output that suffers most: ``found`` at ONNX Runtime's default level, ``model`` as it is written.

    Versions below 1.31 do not open some float models otherwise: a Transpose behind a DequantizeLinear without a zero point.
    """
    pairs = zip(outputs(model, feeds, "DISABLE"), outputs(found, feeds), strict=True)
    return min(decibels(*pair) for pair in pairs)


@pytest.mark.parametrize("name", KINDS)
def test_kind(tmp_path, name):
    model = KINDS[name]()
    feeds = arrays(model, 16)
    assert worst(model, quantized(model, feeds, tmp_path, EIGHT).model, feeds) > 25
    four = Settings(wbits=4, abits=4, method="brecq", iters=3, batch_size=4, threads=1, container="packed")
    result = quantized(model, feeds, tmp_path, four)
    assert result.verification.exact == 1.0
    assert not result.verification.warnings
    assert np.isfinite(worst(model, result.model, feeds))


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "qnn", "portable"])
@pytest.mark.parametrize(
    "name", ["Clip, computed lower bound", "Max and Min, computed bounds", "Pad with negative axes", "float16"]
)
def test_kind_for_targets(tmp_path, name, target):
    model = KINDS[name]()
    feeds = arrays(model, 16)
    settings = dataclasses.replace(EIGHT, target=target)
    assert worst(model, quantized(model, feeds, tmp_path, settings).model, feeds) > 25


@pytest.mark.parametrize("opset", [22, 23])
def test_an_opset_above_the_target_s_is_stamped_down(tmp_path, opset):
    model = plain(opset, 11)
    settings = Settings(wbits=4, abits=4, iters=3, batch_size=4, threads=1, target="tensorrt")
    result = quantized(model, arrays(model, 8), tmp_path, settings)
    assert result.model.opset_import[0].version == 19
    assert result.model.ir_version == 9
    assert worst(model, result.model, arrays(model, 8)) > 5


NEWS = "n = RMSNormalization <axis = 1> (a, s) b = Relu (n)", 23, {"s": np.ones((6, 12, 12), np.float32)}
SPECTRUM = (
    "u = Unsqueeze (a, last) d = DFT <axis = 2> (u) b = ReduceMax <axes = [4], keepdims = 0> (d)",
    17,
    {"last": [4]},
)


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        (
            NEWS,
            {"target": "openvino"},
            r"RMSNormalization.*opset 23 is newer than opset 21.*target openvino.*export the model",
        ),
        (SPECTRUM, {"container": "packed"}, r"DFT.*from opset 17 to 21.*--container packed"),
        (SPECTRUM, {"target": "qnn", "abits": 16}, r"DFT.*from opset 17 to 21.*--abits 16"),
    ],
)
def test_what_cannot_be_written_is_refused_when_it_is_loaded(body, options, message):
    text, opset, constants = body
    with pytest.raises(ModelError, match=message):
        inspect(between(text, opset, **constants), settings=Settings(**options))


def fixed(batch: int, body: str, made: str = "5", **constants: Any) -> onnx.ModelProto:
    """A model of that batch whose ``body`` makes ``y`` of ``r``, what a convolution and a Relu made."""
    return parse(
        f"g (float[{batch}, 3, 8, 8] x) => (float[{batch}, {made}] y) {{ a = Conv (x, w1) r = Relu (a) {body} }}",
        w1=weights(6, 3, 1, 1) * 3,
        **constants,
    )


IN_ORDER = "p0 = MatMul (s, wa) p = Relu (p0) q0 = MatMul (p, wb) q = Relu (q0) t0 = MatMul (q, wa) t = Relu (t0)"
SQUARE = {"wa": weights(64, 64) * 3, "wb": weights(64, 64) * 2}
PER_CHANNEL = {"wa": weights(6, 6) * 3, "wb": weights(6, 6) * 2}

#: Models of a fixed batch that give something else, or fail, on another, and those that can be freed of it.
FIXED = {
    "a Reshape": lambda: fixed(1, "f = Reshape (r, sizes) y = MatMul (f, w)", sizes=[1, 384], w=weights(384, 5)),
    "a mean and a Reshape": lambda: fixed(
        1, "p = ReduceMean <axes = [2, 3], keepdims = 0> (r) l = Gemm (p, w) y = Reshape (l, sizes)", "5, 2",
        w=weights(6, 10) * 3, sizes=[1, 5, 2],
    ),
    "no batch inside": lambda: fixed(
        1, f"sq = Squeeze (r, zero) s = Reshape (sq, flat) {IN_ORDER} m = ReduceSum <keepdims = 0> (t, zero) "
        "u = Unsqueeze (m, zero) y = Gemm (u, w)", **SQUARE, zero=[0], flat=[6, 64], w=weights(64, 5) * 2,
    ),
    "a norm over all axes": lambda: fixed(
        1, "n = ReduceMax <keepdims = 0> (r) d = Div (r, n) c0 = Conv (d, w2) c = Relu (c0) f = Flatten (c) y = MatMul (f, w)",
        w2=weights(6, 6, 1, 1) * 3, w=weights(384, 5),
    ),
    "the batch in the second place": lambda: fixed(
        1, f"s0 = Reshape (r, flat) s = Transpose <perm = [2, 0, 1]> (s0) {IN_ORDER} b = Transpose <perm = [1, 2, 0]> (t) "
        "f = Flatten (b) y = MatMul (f, w)", **PER_CHANNEL, flat=[0, 0, -1], w=weights(384, 5),
    ),
    "sizes that are computed": lambda: fixed(
        1, "sh = Shape (r) n = Slice (sh, zero, one) k = Mul (n, sixteen) both = Concat <axis = 0> (k, rest) "
        "s = Reshape (r, both) m0 = MatMul (s, wm) m = Relu (m0) f = Reshape (m, back) y = MatMul (f, w)",
        zero=[0], one=[1], sixteen=[16], rest=[24], back=[1, 384], wm=weights(24, 24) * 3, w=weights(384, 5),
    ),
    "four views": lambda: fixed(
        4, "v1, v2, v3, v4 = Split <axis = 0> (r, ones) c1 = Conv (v1, k) c2 = Conv (v2, k) c3 = Conv (v3, k) c4 = Conv (v4, k) "
        "c0 = Concat <axis = 0> (c1, c2, c3, c4) c = Relu (c0) f = Reshape (c, flat) y = MatMul (f, w)",
        ones=[1, 1, 1, 1], k=weights(6, 6, 1, 1) * 3, flat=[4, 384], w=weights(384, 5),
    ),
    "a batch of 4 between others": lambda: fixed(
        4, f"s0 = Reshape (r, flat) s1 = Transpose <perm = [1, 0, 2]> (s0) s = Reshape (s1, rows) {IN_ORDER} "
        "b0 = Reshape (t, turned) b = Transpose <perm = [1, 0, 2]> (b0) "
        "f = Reshape (b, back) y = MatMul (f, w)", **SQUARE, flat=[4, 6, 64], rows=[24, 64],
        turned=[6, 4, 64], back=[4, 384], w=weights(384, 5),
    ),
    "free sizes": lambda: parse(
        """g (float[1, 3, h, w] x) => (float[1, 2, k, l] y) { a = Conv <strides = [2, 2]> (x, w1) b = Relu (a)
        c0 = Conv <strides = [2, 2]> (b, w2) c = Relu (c0) s = Shape (b) hw = Slice (s, two, four) sc = Shape (c)
        nc = Slice (sc, zero, two) sz = Concat <axis = 0> (nc, hw) u = Resize <mode = "nearest"> (c, , , sz)
        d = Add (u, b) y = Conv (d, w3) }""",
        w1=weights(6, 3, 1, 1) * 3, w2=weights(6, 6, 1, 1) * 3, w3=weights(2, 6, 1, 1) * 3, zero=[0], two=[2], four=[4],
    ),
}  # fmt: skip
#: Those that run at their own batch.
KEPT = {
    "no batch inside", "a norm over all axes", "the batch in the second place", "four views", "a batch of 4 between others",
    "free sizes",
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_fixed_batch(tmp_path, caplog, name):
    model = FIXED[name]()
    feeds = arrays(model, 14)
    assert worst(model, quantized(model, feeds, tmp_path, EIGHT).model, feeds) > 25
    caplog.clear()
    four = Settings(wbits=4, abits=4, method="brecq", iters=3, batch_size=5, threads=1)
    result = quantized(model, feeds, tmp_path, four)
    said = [record.getMessage() for record in caplog.records if record.name == "mrecg_onnx.network.bridging"]
    assert len(said) == (name in KEPT)
    assert all("the network runs" in line and "export it with a free batch" in line for line in said)
    assert result.verification.exact == 1.0
    assert not result.verification.warnings
    onnx.save(model, tmp_path / "model.onnx")
    found = validate(tmp_path / "model.onnx", tmp_path / "quantized.onnx", tmp_path / "calib.npz", repeats=2)
    assert (found.images, found.latency_batch) == (14, model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def test_a_free_batch_in_the_second_place_runs_image_by_image(tmp_path, caplog):
    model = FIXED["the batch in the second place"]()
    for value in (*model.graph.input[:1], *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    feeds = arrays(model, 12)
    settings = Settings(wbits=4, abits=4, method="brecq", iters=3, batch_size=4, threads=1)
    result = quantized(model, feeds, tmp_path, settings)
    assert any("runs image by image" in record.getMessage() for record in caplog.records)
    assert result.verification.exact == 1.0
    assert len(result.units) == 2
    assert outputs(result.model, feeds)[0].shape == (12, 5)


def test_nodes_that_share_a_name_are_renamed_and_said_to_be(tmp_path, caplog):
    """onnx.checker lets them pass; ONNX Runtime 1.31 does not open such a file."""
    model = plain()
    for node, name in zip(model.graph.node, ["a", "a", "a", "a_2", "b", "b"], strict=False):
        node.name = name
    onnx.save(model, tmp_path / "model.onnx")
    source = (tmp_path / "model.onnx").read_bytes()
    result = quantized(tmp_path / "model.onnx", arrays(model, 8), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == source
    (said,) = [record.getMessage() for record in caplog.records if "share a name" in record.getMessage()]
    assert said.endswith("'a' -> 'a_3', 'a' -> 'a_4', 'b' -> 'b_2'")
    names = [node.name for node in result.model.graph.node]
    assert {"a", "a_2", "a_3", "b"} <= set(names)
    assert len(names) == len(set(names))
    assert [node.name for node in model.graph.node][:6] == ["a", "a", "a", "a_2", "b", "b"]
    found = validate(tmp_path / "model.onnx", tmp_path / "quantized.onnx", tmp_path / "calib.npz", repeats=2)
    assert found.images == 8


def test_a_function_keeps_what_its_own_opset_means():
    """Axes were an attribute before opset 13 and 18: ONNX Runtime takes the model's opset for all, and refuses."""
    for inner, outer, body in (
        (12, 17, "s = ReduceSum <axes = [2, 3], keepdims = 1> (c)"),
        (13, 18, "s = ReduceMean <axes = [2, 3], keepdims = 1> (c)"),
        (12, 18, "e = Squeeze <axes = [3]> (p) s = Unsqueeze <axes = [3]> (e)"),
        (18, 17, "s = ReduceMean <keepdims = 1> (c, ax)"),
    ):
        first = (
            "p = MaxPool <kernel_shape = [12, 12]> (c)" if "p)" in body else "ax = Constant <value_ints = [2, 3]> ()"
        )
        model = onnx.parser.parse_model(
            f"""<ir_version: 8, opset_import: ["" : {outer}, "local" : 1]> g (float[n, 3, 12, 12] x) => (float[n, 6, 1, 1] y) {{
            y = local.f (x, w1) }} <domain: "local", opset_import: ["" : {inner}]>
            f (a, w) => (s) {{ c = Conv <pads = [1, 1, 1, 1]> (a, w) {first if inner > 12 or "p)" in body else ""} {body} }}"""
        )
        model.graph.initializer.append(numpy_helper.from_array(COMMON["w1"], "w1"))
        before = model.SerializeToString()
        loaded = load_model(model)
        x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
        expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(COMMON["w1"]), padding=1)
        reduce = {"ReduceSum": torch.sum, "ReduceMean": torch.mean}.get(body.split()[2], torch.amax)
        np.testing.assert_allclose(
            to_torch(normalize(loaded))(torch.from_numpy(x)),
            reduce(expected, (2, 3), keepdim=True),
            rtol=1e-4,
            atol=1e-5,
        )
        assert check_parity(loaded, to_torch(normalize(loaded)), {"x": x}) < 1e-5
        assert model.SerializeToString() == before


def test_what_is_known_of_shapes_stays():
    """Inference says nothing of a custom operator's result: there the file's declaration counts."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[n, 3, 12, 12] x) => (float[n, 6, 12, 12] y)
        <float[n, 6, 12, 12] q, float[n, 7, 12, 12] c> { c = Conv <pads = [1, 1, 1, 1]> (x, w1) q = com.microsoft.QuickGelu (c)
        y = Conv <pads = [1, 1, 1, 1]> (q, w2) }"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(COMMON[name], name) for name in ("w1", "w2"))
    shapes = {value.name: value.shape for node in normalize(model).graph for value in node.outputs}
    assert [str(shapes[name][1]) for name in "cqy"] == ["6"] * 3
    assert str(shapes["q"][0]) == "n"


# --- up to the outputs -------------------------------------------------------------------------------------------

#: What follows ``r1`` up to the outputs ``y`` (and ``z``), and the kernels it runs on at the default level, besides views,
#: Transposes and the convolution of the stem. None of them is a float Conv.
ENDS = {
    "Conv": ("y = Conv (r1, w2)", {"QLinearConv": 1}),
    "Relu": ("c = Conv (r1, w2) y = Relu (c)", {"QLinearConv": 1}),
    "Clip": ("c = Conv (r1, w2) y = Clip (c, zero, one)", {"QLinearConv": 1}),
    "LeakyRelu": ("c = Conv (r1, w2) y = LeakyRelu (c)", {"QLinearConv": 1, "QLinearLeakyRelu": 1}),
    "SiLU": (
        "c = Conv (r1, w2) g = Sigmoid (c) y = Mul (c, g)",
        {"QLinearConv": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "GlobalAveragePool": (
        "c = Conv (r1, w2) r = Relu (c) p = GlobalAveragePool (r) y = Flatten (p)",
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1},
    ),
    "AveragePool": (
        "c = Conv (r1, w2) y = AveragePool <kernel_shape = [2, 2]> (c)",
        {"QLinearConv": 1, "QLinearAveragePool": 1},
    ),
    "MaxPool": ("c = Conv (r1, w2) y = MaxPool <kernel_shape = [2, 2]> (c)", {"QLinearConv": 1, "NhwcMaxPool": 1}),
    "Add": ("c = Conv (r1, w2) d = Conv (r1, w2) y = Add (c, d)", {"QLinearConv": 2, "QLinearAdd": 1}),
    "Concat of heads": (
        """c = Conv (r1, w2) ct = Transpose <perm = [0, 2, 3, 1]> (c) cr = Reshape (ct, rows) d = Conv (r1, w2)
        dt = Transpose <perm = [0, 2, 3, 1]> (d) dr = Reshape (dt, rows) y = Concat <axis = 1> (cr, dr)""",
        {"QLinearConv": 2, "QLinearConcat": 1},
    ),
    "Concat of boxes and scores": (
        "c = Conv (r1, w2) d = Conv (r1, boxes) y = Concat <axis = 1> (c, d)",
        {"QLinearConv": 2, "Concat": 1},
    ),
    "Transpose": ("c = Conv (r1, w2) y = Transpose <perm = [0, 2, 3, 1]> (c)", {"QLinearConv": 1}),
    "Split": ("c = Conv (r1, w2) y, z = Split <axis = 1> (c)", {"QLinearConv": 1, "Split": 1}),
    "Pad": ("c = Conv (r1, w2) y = Pad (c, pads)", {"QLinearConv": 1, "Pad": 1}),
    "Resize, linear": ("c = Conv (r1, w2) y = Resize <mode = \"linear\"> (c, , scales)", {"QLinearConv": 1, "Resize": 1}),
    "Sigmoid": ("c = Conv (r1, w2) y = Sigmoid (c)", {"QLinearConv": 1, "Sigmoid": 1}),
    "a float op": ("c = Conv (r1, w2) y = Erf (c)", {"QLinearConv": 1, "Erf": 1}),
    "Gemm": ("p = GlobalAveragePool (r1) f = Flatten (p) y = Gemm (f, fw)", {"QLinearGlobalAveragePool": 1, "QGemm": 1}),
    "Gemm, Relu": (
        "p = GlobalAveragePool (r1) f = Flatten (p) g = Gemm (f, fw) y = Relu (g)",
        {"QLinearGlobalAveragePool": 1, "QGemm": 1, "Relu": 1},
    ),
    "Gemm, Relu, Concat": (
        "p = GlobalAveragePool (r1) f = Flatten (p) g = Gemm (f, fw) h = Relu (g) k = Gemm (f, hw) y = Concat <axis = 1> (h, k)",
        {"QLinearGlobalAveragePool": 1, "QGemm": 2, "Concat": 1},
    ),
    "MatMul, Relu": (
        "t = Transpose <perm = [0, 2, 3, 1]> (r1) m = MatMul (t, fw) y = Relu (m)",
        {"MatMulIntegerToFloat": 1, "Relu": 1},
    ),
    "an output on the way": ("y = Conv (r1, w2) a = Relu (y) z = Conv (a, w2)", {"QLinearConv": 2}),
    "an output on the way, behind Relu": ("c = Conv (r1, w2) y = Relu (c) z = Conv (y, w2)", {"QLinearConv": 2}),
    "an output on the way, of a Gemm": (
        "p = GlobalAveragePool (r1) f = Flatten (p) y = Gemm (f, hw) h = Relu (y) z = Gemm (h, fw)",
        {"QLinearGlobalAveragePool": 1, "QGemm": 2},
    ),
    "an output on the way, of a sum": (
        "c = Conv <pads = [1, 1, 1, 1]> (r1, w2) y = Add (c, r1) z = Conv (y, w2)",
        {"QLinearConv": 2, "QLinearAdd": 1},
    ),
}  # fmt: skip
#: Ops that come and go with the layout and with what the runtime makes of single quantizers.
AROUND = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Flatten", "Reshape", "Clip", "QLinearLeakyRelu"}


def ending(name: str) -> onnx.ModelProto:
    """A stem with that end; shapes of the outputs are inferred."""
    body, outputs = ENDS[name][0], "float y, float z" if "z =" in ENDS[name][0] else "float y"
    constants = {
        "zero": np.float32(0), "one": np.float32(1), "rows": np.array([0, -1, 6]), "boxes": 100 * weights(4, 6, 3, 3),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    read = {n: v for n, v in constants.items() if f"{n})" in body or f"{n}," in body}
    model = parse(f"g (float[n, 3, 12, 12] x) => ({outputs}) {{ {STEM} {body} }}", **read)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ENDS)
def test_codes_reach_the_outputs(tmp_path, name, bits):
    model = ending(name)
    settings = Settings(wbits=bits, abits=bits, method="nearest")
    result = quantized(model, arrays(model, 8), tmp_path, settings)
    assert result.verification.warnings == ()
    stem = Counter({"QLinearConv": 1})
    fused = Counter({op: n for op, n in result.verification.fused.items() if op not in AROUND})
    assert fused == stem + Counter({op: n for op, n in ENDS[name][1].items() if op not in AROUND})
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]
    assert all(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in result.model.graph.output)
    if bits == 8:
        feed = arrays(model, 8)
        expected, found = (run_padded(open_session(m), feed) for m in (model, result.model))
        assert all(sqnr_db(value, found[output]) > 25 for output, value in expected.items())


@pytest.mark.parametrize("method", ["brecq", "bit-split", "lapq", "adaquant"])
@pytest.mark.parametrize("name", ["GlobalAveragePool", "Concat of boxes and scores", "an output on the way"])
def test_codes_reach_the_outputs_with_what_is_learned(tmp_path, name, method):
    model = ending(name)
    settings = Settings(wbits=4, abits=4, method=method, iters=10, lapq_evaluations=10)
    result = quantized(model, arrays(model, 16), tmp_path, settings)
    assert result.verification.warnings == ()
    assert result.verification.fused["QLinearConv"] == 1 + ENDS[name][1]["QLinearConv"]


def test_a_layer_of_computed_weights_is_counted_and_named(tmp_path):
    made = "k0 = ReduceMean <axes = [0], keepdims = 1> (r1) k = Conv (r1, k0)"
    model = image(f"{made} c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Mul (c2, k)")
    found = quantized(model, arrays(model, 8), tmp_path, Settings(method="nearest")).verification
    assert (found.layers, found.integer_layers) == (4, 3)
    assert list(found.float_layers.values()) == ["its weight is computed by the graph"]


def test_sensitivity_ranks_what_has_a_quantizer(tmp_path):
    model = ending("Concat of boxes and scores")
    np.savez(tmp_path / "calib.npz", **arrays(model, 16))
    found = sensitivity(model, tmp_path / "calib.npz", Settings(wbits=4, abits=4, first_last_bits=4))
    assert found.suggestions


def test_what_only_a_concat_reads_is_on_its_grid(tmp_path):
    body = "a0 = Conv (r1, w2) a = Relu (a0) b0 = Conv (r1, wide) b = Relu (b0) c = Concat <axis = 1> (a, b) r2 = Conv (c, w3)"
    model = image(body, wide=2 * weights(6, 6, 3, 3), w3=weights(6, 12, 3, 3))
    for settings in (
        Settings(wbits=8, abits=8, method="nearest"),
        Settings(wbits=4, abits=8, method="brecq", iters=10),
    ):
        result = quantized(model, arrays(model, 16), tmp_path, settings)
        values = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
        assert values["a_scale"] == values["b_scale"] == values["c_scale"]
        assert result.verification.fused["QLinearConcat"] == 1
        assert result.verification.warnings == ()
    # What another op reads, too, keeps the grid that suits it.
    model = image(
        f"{body.replace('r2 =', 'd =')} s = Conv (b, w2) r2 = Add (d, s)",
        wide=weights(6, 6, 3, 3),
        w3=weights(6, 12, 3, 3),
    )
    plan = {entry.name: entry for entry in inspect(model).plan.activations}
    assert (plan["c"].joins, plan["c"].copies) == (("a", "b"), ("a",))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "qdrop", "loss": "fisher"},
        {"method": "bit-split"},
        {"method": "lapq"},
        {"method": "aciq"},
        {"method": "nearest", "bias_correction": True},
        {"method": "brecq", "protect": 1, "absorb": "auto", "avg_wbits": 4.0},
    ],
    ids=lambda options: options["method"],
)
@pytest.mark.parametrize(
    "name", ["the batch in the second place", pytest.param("a batch of 4 between others", marks=pytest.mark.slow)]
)
def test_a_network_at_its_own_batch_by_every_kind_of_method(tmp_path, name, options):
    model = FIXED[name]()
    feeds = arrays(model, 14)
    settings = Settings(wbits=4, abits=4, iters=3, batch_size=3, threads=1, **options)
    result = quantized(model, feeds, tmp_path, settings)
    assert result.verification.exact == 1.0
    assert worst(model, result.model, feeds) > 7


def test_a_batch_that_is_free_in_name_only_is_said_when_the_model_is_loaded(tmp_path):
    model = FIXED["no batch inside"]()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    np.savez(tmp_path / "calib.npz", **arrays(model, 8))
    with pytest.raises(ModelError, match=r"declared free, but it only runs image by image: .*Squeeze"):
        quantize(model, tmp_path / "calib.npz", Settings(method="nearest", threads=1))


def _default_db(result: QuantizationResult) -> dict[str, float]:
    """SQNR of each output against FP32, the file at ONNX Runtime's default level."""
    return {check.name: check.default_db for check in result.verification.outputs}


@pytest.mark.parametrize(
    "behind",
    ["m = MaxPool <kernel_shape = [3, 3], strides = [3, 3]> (raw)", "m = Slice (raw, zero, two, one)"],
)
def test_an_output_keeps_its_whole_range_whatever_a_reader_behind_keeps_of_it(tmp_path, behind):
    model = parse(
        f"g (float[n, 3, 12, 12] x) => (float[n, 6, 12, 12] raw, float[n, k] y) {{ {STEM} "
        f"raw = Conv <pads = [1, 1, 1, 1]> (r1, w2) {behind} p = GlobalAveragePool (m) y = Flatten (p) }}",
        zero=[0],
        two=[2],
        one=[1],
    )
    result = quantized(model, arrays(model, 16), tmp_path, EIGHT)
    assert _default_db(result)["raw"] > 30


@pytest.mark.parametrize("size", [1e-6, 1e-10, 1e-13])
def test_activations_may_be_tiny(tmp_path, size):
    model = image(
        "c2 = Conv <pads = [1, 1, 1, 1]> (r1, tiny) t = Relu (c2) r2 = Mul (t, back)",
        tiny=weights(6, 6, 3, 3) * np.float32(size),
        back=np.float32(1 / size),
    )
    assert _default_db(quantized(model, arrays(model, 16), tmp_path, EIGHT))["y"] > 30
