"""The bridge: loading, normalizing, converting to torch, comparing, saving."""

from __future__ import annotations

import copy
import gc
import importlib
import linecache
import subprocess
import sys
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.fx import graph_module

from mrecg_onnx.converters import check_parity, check_writable, load_model, normalize, save_model, to_torch
from mrecg_onnx.converters.errors import ConversionError, DataError, ExportError, ModelError
from mrecg_onnx.converters.ops.weighted import OnnxConv, OnnxConvTranspose, OnnxGemm, OnnxMatMulConst
from mrecg_onnx.converters.parity import all_finite, relative_error, run_onnx
from mrecg_onnx.converters.passes.gemm import split_matmul_bias

OPSETS = range(7, 26)
RELU = "g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }"


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)


def make(body: str, opset: int = 17, seed: int = 0, ir_version: int = 8, **constants) -> onnx.ModelProto:
    """Parse a graph in ONNX's text form and add initializers: arrays, or shapes to be filled at random."""
    text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{body}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, value in constants.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def feeds(model: onnx.ModelProto, seed: int = 1, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name not in constants:
            sizes = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
            found[value.name] = rng.standard_normal(sizes).astype(np.float32)
    return found


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_same(model: onnx.ModelProto, tolerance: float = 1e-5) -> ir.Model:
    """Normalize, and check that both forms compute the same on ONNX Runtime and in torch."""
    before = model.SerializeToString()
    graph = normalize(model)
    assert model.SerializeToString() == before
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    inputs = feeds(model)
    expected, actual = run_onnx(model, inputs), run_onnx(proto, inputs)
    assert list(expected) == list(actual)
    for name in expected:
        assert relative_error(actual[name], expected[name]) < tolerance
    for source in (model, graph):
        assert check_parity(model, to_torch(source), inputs) < tolerance
    names = [node.name for node in graph.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    made = [output.name for node in graph.graph for output in node.outputs] + list(graph.graph.initializers)
    assert len(set(made)) == len(made)
    return graph


CNN = """
net (float[batch, 3, 16, 16] image) => (float[batch, 5] logits) {
    [stem] c1 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, w1)
    [stem_bn] n1 = BatchNormalization<epsilon = 0.001>(c1, s1, b1, m1, v1)
    [stem_relu] r1 = Relu(n1)
    [pool] p1 = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r1)
    [depthwise] c2 = Conv<pads = [1, 1, 1, 1], group = 8>(p1, w2, bias2)
    [depthwise_bn] n2 = BatchNormalization(c2, s1, b1, m1, v1)
    [same] n2i = Identity(n2)
    [residual] sum = Add(n2i, p1)
    [act] r2 = Relu(sum)
    [mean] pooled = GlobalAveragePool(r2)
    [shape] sizes = Shape(pooled)
    [zero] first = Constant<value = int64 {0}>()
    [gather] batch_size = Gather<axis = 0>(sizes, first)
    [unsqueeze] batch_1d = @UNSQUEEZE@
    [rest] rest = Constant<value = int64[1] {-1}>()
    [concat] target = Concat<axis = 0>(batch_1d, rest)
    [flatten] flat = Reshape(pooled, target)
    [fc] logits = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(flat, w3, bias3)
}
"""


def cnn(opset: int) -> onnx.ModelProto:
    body = CNN
    if opset < 13:
        body = body.replace("@UNSQUEEZE@", "Unsqueeze<axes = [0]>(batch_size)")
    else:
        body = body.replace("@UNSQUEEZE@", "Unsqueeze(batch_size, axes0)")
    extra = {} if opset < 13 else {"axes0": np.array([0], np.int64)}
    return make(
        body,
        opset,
        ir_version=6 if opset < 13 else 10,
        w1=(8, 3, 3, 3),
        s1=(8,),
        b1=(8,),
        m1=(8,),
        v1=np.linspace(0.1, 2, 8, dtype=np.float32),
        w2=(8, 1, 3, 3),
        bias2=(8,),
        w3=(5, 8),
        bias3=(5,),
        **extra,
    )


class TestWholeNetwork:
    @pytest.mark.parametrize("opset", OPSETS)
    def test_computes_the_same_in_every_opset(self, opset):
        graph = assert_same(cnn(opset))
        assert graph.opset_imports[""] == max(opset, 13)
        expected = ["Conv", "Relu", "MaxPool", "Conv", "Add", "Relu", "GlobalAveragePool", "Reshape", "Gemm"]
        assert op_types(graph) == expected

    def test_keeps_names(self):
        model = cnn(17)
        graph = normalize(model)
        names = ["stem", "stem_relu", "pool", "depthwise", "residual", "act", "mean", "flatten", "fc"]
        assert [node.name for node in graph.graph] == names
        assert [value.name for value in graph.graph.inputs] == ["image"]
        assert str(graph.graph.inputs[0].shape) == "[batch,3,16,16]"
        assert [value.name for value in graph.graph.outputs] == ["logits"]
        outputs = {node.name: node.outputs[0].name for node in graph.graph}
        assert outputs["stem"] == "n1"
        assert outputs["depthwise"] == "n2"
        assert {"w1", "w2", "w3", "bias2", "bias3"} <= set(graph.graph.initializers)

    def test_every_value_has_shape_and_type(self):
        graph = normalize(cnn(11))
        for node in graph.graph:
            assert node.outputs[0].dtype == ir.DataType.FLOAT
            assert node.outputs[0].shape is not None
            assert str(node.outputs[0].shape[0]) == "batch"
        for value in graph.graph.initializers.values():
            assert value.shape is not None
            assert value.dtype is not None

    def test_keeps_docs_and_metadata(self):
        model = cnn(17)
        model.doc_string = "a model"
        model.producer_name = "somebody"
        helper.set_model_props(model, {"classes": "5"})
        model.graph.node[0].doc_string = "the stem"
        model.graph.doc_string = "a graph"
        model.graph.input[0].doc_string = "an image"
        proto = ir.to_proto(normalize(model))
        assert (proto.doc_string, proto.producer_name) == ("a model", "somebody")
        assert proto.metadata_props[0].value == "5"
        assert proto.graph.node[0].doc_string == "the stem"
        assert proto.graph.doc_string == "a graph"
        assert proto.graph.input[0].doc_string == "an image"

    def test_normalizing_twice_changes_nothing(self):
        once = ir.to_proto(normalize(cnn(12)))
        twice = ir.to_proto(normalize(once))
        assert [node.SerializeToString() for node in once.graph.node] == [
            node.SerializeToString() for node in twice.graph.node
        ]

    def test_fixed_batch(self):
        model = cnn(17)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        assert "Shape" not in op_types(assert_same(model))

    def test_initializers_among_the_inputs(self):
        model = cnn(17)
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph = normalize(model)
        assert [value.name for value in graph.graph.inputs] == ["image"]
        assert to_torch(model)(torch.zeros(1, 3, 16, 16)).shape == (1, 5)

    def test_nodes_without_names_get_some(self):
        model = cnn(17)
        for node in model.graph.node:
            node.name = ""
        assert_same(model)
        assert "Conv_c1" in to_torch(model).onnx_nodes.values()


class TestGeneratedSource:
    """torch.fx keeps the source of every module that it generates, megabytes for a large network; ours goes with the module."""

    @staticmethod
    def kept() -> set[str]:
        gc.collect()
        return {*linecache.cache, *graph_module._loader.eval_cache}

    def test_is_kept_while_a_module_or_a_copy_lives(self):
        before = self.kept()
        module = to_torch(make(RELU))
        other = copy.deepcopy(module)
        name = module.forward.__code__.co_filename
        assert "def forward" in "".join(linecache.getlines(name))  # what a traceback shows
        assert self.kept() - before == {name, other.forward.__code__.co_filename}
        del module
        assert self.kept() - before == {other.forward.__code__.co_filename}
        del other
        assert self.kept() == before

    def test_goes_when_it_is_written_anew(self):
        module = to_torch(make(RELU))
        before = self.kept()
        for _ in range(3):
            module.recompile()
        assert len(self.kept()) == len(before)
        assert torch.equal(module(torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 2.0]]))


class TestRaisingTheOpset:
    @pytest.mark.parametrize(
        ("opset", "node", "constants"),
        [
            (9, "y = Squeeze<axes = [1]>(a)", {}),
            (11, "y = Squeeze(a)", {}),
            (12, "y = Unsqueeze<axes = [0, 3]>(x)", {}),
            (9, "y = ReduceSum<axes = [1, 2], keepdims = 0>(x)", {}),
            (11, "y = ReduceSum(x)", {}),
            (9, "y = ReduceMean<axes = [2, 3], keepdims = 0>(x)", {}),
            (11, "y, z = Split<axis = 1, split = [1, 3]>(x)", {}),
            (12, "y, z = Split<axis = 1>(x)", {}),
            (9, "y = Clip<min = -0.5, max = 0.25>(x)", {}),
            (10, "y = Clip<max = 0.25>(x)", {}),
            (10, "y = Clip(x)", {}),
            (11, "y = Clip(x, low, high)", {"low": np.float32(-1), "high": np.float32(0.5)}),
            (9, "y = Pad<pads = [0, 1, 0, 2, 0, 0, 1, 1], value = 1.5>(x)", {}),
            (10, 'y = Pad<mode = "reflect", pads = [0, 0, 2, 2, 0, 0, 1, 1]>(x)', {}),
            (9, "y = Slice<axes = [1, 3], starts = [1, -3], ends = [4, 9223372036854775807]>(x)", {}),
            (9, "y = Slice<starts = [0, 1], ends = [1, 3]>(x)", {}),
            (9, "y = Dropout<ratio = 0.3>(x)", {}),
            (10, "y = Dropout(x)", {}),
            (12, "y = Dropout(x, ratio)", {"ratio": np.float32(0.3)}),
            (9, "y, z = TopK<axis = 1, k = 2>(x)", {}),
            (10, "y, z = TopK<axis = 1>(x, k)", {"k": np.array([2], np.int64)}),
            (9, 'y = Upsample<mode = "nearest">(x, scales)', {"scales": np.array([1, 1, 2, 1.5], np.float32)}),
            (9, 'y = Upsample<mode = "linear">(x, scales)', {"scales": np.array([1, 1, 2, 2], np.float32)}),
            (10, 'y = Resize<mode = "nearest">(x, scales)', {"scales": np.array([1, 1, 2, 3], np.float32)}),
            (10, 'y = Resize<mode = "linear">(x, scales)', {"scales": np.array([1, 1, 2, 0.5], np.float32)}),
            (9, "y = Softmax(x)", {}),
            (11, "y = Softmax<axis = -1>(x)", {}),
            (12, "y = LogSoftmax<axis = 2>(x)", {}),
            (12, "y = Hardmax<axis = 1>(x)", {}),
            (12, "y = Softmax(a)", {}),
            (9, "y = Flatten<axis = 2>(x)", {}),
            (9, "y = PRelu(x, slope)", {"slope": np.full((4, 1, 1), 0.2, np.float32)}),
            (10, "y = AveragePool<kernel_shape = [2, 2], ceil_mode = 1, strides = [2, 2]>(x)", {}),
            (9, "y = BatchNormalization(x, p, p, p, p)", {"p": np.linspace(0.5, 1, 4, dtype=np.float32)}),
        ],
    )
    def test_keeps_the_meaning(self, opset, node, constants):
        outputs = "y, z" if "z = " in node or "y, z" in node else "y"
        kinds = {"y": "float[a0] y", "z": "int64[b0] z" if "TopK" in node else "float[b0] z"}
        declared = ", ".join(kinds[name] for name in outputs.split(", "))
        body = f"""g (float[2, 4, 5, 6] x) => ({declared}) {{
            [max] a = ReduceMax<axes = [1]>(x)
            [op] {node}
        }}"""
        model = make(body, opset, ir_version=6, **constants)
        _set_ranks(model)
        graph = assert_same(model)
        assert graph.opset_imports[""] == 13

    def test_names_the_node_that_cannot_be_raised(self):
        model = make("g (float[2, 4] x) => (float[2, 4] y) { [odd] y = Softmax(x) }", 9)
        model.graph.node[0].op_type = "Relu"
        model.opset_import[0].version = 9
        graph = ir.from_proto(model)
        graph.graph[0].op_type = "NoSuchOperator"
        with pytest.raises(ModelError, match=r"'odd'.*NoSuchOperator"):
            normalize(ir.to_proto(graph))


def _set_ranks(model: onnx.ModelProto) -> None:
    """Give the outputs the rank that shape inference finds."""
    bare = copy.deepcopy(model)
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare)
    for output, found in zip(model.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(found)
        if not found.type.tensor_type.HasField("shape"):
            output.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
            for _ in range(4):
                output.type.tensor_type.shape.dim.add()


class TestBatchNormalization:
    NORM = "BatchNormalization(c, s, b, m, v)"
    PARAMETERS: ClassVar = {
        "s": np.array([1.5, -0.5, 0.0, 2.0], np.float32),
        "b": np.array([0.1, 0.2, -0.3, 0.4], np.float32),
        "m": np.array([1.0, -1.0, 0.5, 0.0], np.float32),
        "v": np.array([0.5, 1.0, 2.0, 1e-4], np.float32),
    }

    @pytest.mark.parametrize(
        ("layer", "weight"),
        [
            ("Conv<pads = [1, 0, 0, 2]>(x, w)", (4, 4, 3, 3)),
            ("Conv<group = 2>(x, w, bias)", (4, 2, 1, 1)),
            ("ConvTranspose<strides = [2, 2]>(x, w)", (4, 4, 2, 2)),
            ("ConvTranspose<group = 2, output_padding = [1, 0], strides = [2, 2]>(x, w, bias)", (4, 2, 3, 3)),
        ],
    )
    def test_is_folded(self, layer, weight):
        body = f"g (float[2, 4, 5, 6] x) => (float[2, 4, h, w0] y) {{ [l] c = {layer} [bn] y = {self.NORM} }}"
        constants = {"bias": (4,)} if "bias" in layer else {}
        graph = assert_same(make(body, w=weight, **constants, **self.PARAMETERS))
        assert [node.name for node in graph.graph] == ["l"]

    def test_is_folded_into_gemm(self):
        for attributes, weight in (("", (6, 4)), ("<transB = 1, alpha = 0.5>", (4, 6))):
            body = f"g (float[2, 6] x) => (float[2, 4] y) {{ [l] c = Gemm{attributes}(x, w) [bn] y = {self.NORM} }}"
            assert op_types(assert_same(make(body, w=weight, **self.PARAMETERS))) == ["Gemm"]

    def test_is_folded_into_a_copy_of_a_shared_weight(self):
        body = f"""g (float[2, 4, 5, 6] x) => (float[2, 4, 5, 6] y, float[2, 4, 5, 6] z) {{
            [l] c = Conv(x, w) [bn] y = {self.NORM} [other] z = Conv(x, w) }}"""
        graph = assert_same(make(body, w=(4, 4, 1, 1), **self.PARAMETERS))
        assert op_types(graph) == ["Conv", "Conv"]
        assert graph.graph[1].inputs[1].name == "w"
        assert graph.graph[0].inputs[1].name != "w"

    @pytest.mark.parametrize(
        ("extra", "outputs"),
        [("[r] z = Relu(c)", "float[2, 4, 5, 6] z"), ("", "float[2, 4, 5, 6] c")],
    )
    def test_is_a_layer_of_its_own_where_the_layer_in_front_has_another_reader(self, extra, outputs):
        body = f"""g (float[2, 4, 5, 6] x) => (float[2, 4, 5, 6] y, {outputs}) {{
            [l] c = Conv(x, w) [bn] y = {self.NORM} {extra} }}"""
        graph = assert_same(make(body, w=(4, 4, 1, 1), **self.PARAMETERS))
        assert graph.graph.node("bn").op_type == "Conv"
        assert "BatchNormalization" not in op_types(graph)

    def test_is_a_layer_of_its_own_behind_a_computed_weight(self):
        body = f"""g (float[2, 4, 5, 6] x, float[4, 4, 1, 1] w) => (float[2, 4, 5, 6] y) {{
            [l] c = Conv(x, w) [bn] y = {self.NORM} }}"""
        assert op_types(assert_same(make(body, **self.PARAMETERS))) == ["Conv", "Conv"]

    def test_an_affine_map_is_folded_too(self):
        body = """g (float[2, 4, 5, 6] x) => (float[2, 4, 5, 6] y) {
            [l] c = Conv(x, w) [m] d = Mul(scale, c) [a] e = Add(d, shift) [q] y = Div(e, two) }"""
        model = make(body, w=(4, 4, 1, 1), scale=(4, 1, 1), shift=(1, 4, 1, 1), two=np.float32(2))
        graph = assert_same(model)
        assert [(node.name, node.outputs[0].name) for node in graph.graph] == [("l", "y")]

    def test_a_map_that_varies_in_space_stays(self):
        body = "g (float[2, 4, 5, 6] x) => (float[2, 4, 5, 6] y) { [l] c = Conv(x, w) [a] y = Add(c, grid) }"
        assert op_types(assert_same(make(body, w=(4, 4, 1, 1), grid=(1, 1, 5, 6)))) == ["Conv", "Add"]


class TestConstants:
    def test_weights_behind_other_nodes_are_folded(self):
        body = """g (float[2, 4] x) => (float[2, 3] y) {
            [i] a = Identity(w) [c] b = Cast<to = 1>(a) [t] t = Transpose<perm = [1, 0]>(b) [r] r = Reshape(t, shape)
            [mm] y = MatMul(x, r) }"""
        graph = assert_same(make(body, w=np.ones((4, 3)), shape=np.array([4, 3], np.int64)))
        assert [node.name for node in graph.graph] == ["mm"]
        assert graph.graph[0].inputs[1].name == "r"

    def test_constant_nodes_become_initializers(self):
        body = """g (float[2, 4] x) => (float[2, 4] y) {
            [c] low = Constant<value_float = -0.5>() [d] high = Constant<value = float {0.5}>()
            [clip] y = Clip(x, low, high) }"""
        graph = assert_same(make(body))
        assert op_types(graph) == ["Clip"]
        assert set(graph.graph.initializers) == {"low", "high"}

    def test_a_constant_graph_output_is_kept(self):
        body = """g (float[2, 4] x) => (float[2, 4] y, float[2] z) {
            [r] y = Relu(x) [c] z = Constant<value = float[2] {1, 2}>() }"""
        graph = assert_same(make(body))
        assert [value.name for value in graph.graph.outputs] == ["y", "z"]

    def test_split_of_a_constant(self):
        body = """g (float[2, 4] x) => (float[2, 4] y) {
            [s] a, b = Split<axis = 0>(w) [m] c = Mul(x, a) [n] y = Add(c, b) }"""
        assert op_types(assert_same(make(body, w=(2, 4)))) == ["Mul", "Add"]

    def test_identity_between_an_input_and_an_output_stays(self):
        body = "g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) { [i] y = Identity(x) [r] z = Relu(x) }"
        assert op_types(assert_same(make(body))) == ["Identity", "Relu"]

    def test_identity_between_two_outputs_stays(self):
        body = "g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) { [r] y = Relu(x) [i] z = Identity(y) }"
        graph = assert_same(make(body))
        assert [value.name for value in graph.graph.outputs] == ["y", "z"]

    def test_identity_in_front_of_an_output_goes(self):
        body = "g (float[2, 4] x) => (float[2, 4] z) { [r] y = Relu(x) [i] z = Identity(y) }"
        graph = assert_same(make(body))
        assert [(node.name, node.outputs[0].name) for node in graph.graph] == [("r", "z")]

    def test_weights_stored_in_integers_are_floats_again(self):
        body = """g (float[2, 4] x) => (float[2, 3] y) {
            [dq] w = DequantizeLinear(q, scale) [mm] y = MatMul(x, w) }"""
        model = make(body, q=np.arange(12, dtype=np.int8).reshape(4, 3), scale=np.float32(0.1))
        graph = assert_same(model)
        assert op_types(graph) == ["MatMul"]
        assert "w" in graph.graph.initializers

    def test_quantization_of_an_activation_is_not_undone(self):
        body = """g (float[2, 4] x) => (float[2, 3] y) { [q] c = QuantizeLinear(x, scale) [dx] d = DequantizeLinear(c, scale)
            [dq] w = DequantizeLinear(q, scale) [mm] y = MatMul(d, w) }"""
        model = make(body, q=np.ones((4, 3), np.int8), scale=np.float32(0.1))
        assert op_types(normalize(model)) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]

    def test_local_functions_are_inlined(self):
        text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
            g (float[2, 4] x) => (float[2, 4] y) { [call] y = mine.twice(x) }
            <domain: "mine", opset_import: ["" : 17]> twice (a) => (b) { c = Relu(a) b = Add(c, c) }"""
        graph = assert_same(onnx.parser.parse_model(text))
        assert op_types(graph) == ["Relu", "Add"]


class TestShapeArithmetic:
    FRONT = "[conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)"

    def model(self, chain: str, opset: int = 17, **constants) -> onnx.ModelProto:
        body = f"g (float[n, 3, 4, 5] x) => (float[n, k] y) {{ {self.FRONT} {chain} }}"
        return make(body, opset, w=(6, 3, 3, 3), **constants)

    @pytest.mark.parametrize(
        ("chain", "target"),
        [
            (
                "s = Shape(c) b = Gather(s, i0) u = Unsqueeze(b, a0) t = Concat<axis = 0>(u, m1) y = Reshape(c, t)",
                [0, -1],
            ),
            (
                "s = Shape(x) b = Gather(s, i0) u = Unsqueeze(b, a0) t = Concat<axis = 0>(u, n120) y = Reshape(c, t)",
                [0, 120],
            ),
            ("s = Shape(c) u = Slice(s, a0, a1, a0) t = Concat<axis = 0>(u, m1) y = Reshape(c, t)", [0, -1]),
            ("s = Shape<start = 0, end = 1>(c) t = Concat<axis = 0>(s, m1) y = Reshape(c, t)", [0, -1]),
            (
                """s = Shape(c) b = Gather(s, a0) d = Gather(s, a1) h = Gather(s, a2) v = Gather(s, a3)
                p = Mul(d, h) q = Mul(p, v) t = Concat<axis = 0>(b, q) y = Reshape(c, t)""",
                [0, 120],
            ),
        ],
    )
    def test_a_flatten_with_free_batch_gets_a_constant_target(self, chain, target):
        names = {"i0": 0, "a0": [0], "a1": [1], "a2": [2], "a3": [3], "m1": [-1], "n120": [120]}
        used = {
            name: np.array(value, np.int64)
            for name, value in names.items()
            if f"{name})" in chain or f"{name}," in chain
        }
        graph = assert_same(self.model(chain, **used))
        assert op_types(graph) == ["Conv", "Reshape"]
        assert graph.graph[1].inputs[1].const_value.numpy().tolist() == target

    @pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
    def test_a_resize_to_another_tensors_size_gets_constant_scales(self, coordinates):
        body = f"""g (float[n, 4, 5, 6] x, float[n, 3, 9, 13] like) => (float[n, 4, 9, 13] y) {{
            s = Shape(like) hw = Slice(s, two, four) t = Shape(x) nc = Slice(t, zero, two) z = Concat<axis = 0>(nc, hw)
            y = Resize<mode = "linear", coordinate_transformation_mode = "{coordinates}">(x, , , z) }}"""
        constants = {name: np.array([value], np.int64) for name, value in {"zero": 0, "two": 2, "four": 4}.items()}
        assert op_types(assert_same(make(body, 13, **constants))) == ["Resize"]

    @pytest.mark.parametrize("allowzero", [0, 1])
    def test_the_name_of_the_batch_survives_a_constant_target(self, allowzero):
        chain = f"y = Reshape<allowzero = {allowzero}>(c, target)"
        graph = assert_same(self.model(chain, target=np.array([-1, 120], np.int64)))
        assert graph.graph[1].inputs[1].const_value.numpy().tolist() == [0, 120]
        assert str(graph.graph[1].outputs[0].shape[0]) == "n"

    def test_a_target_with_two_unknown_sizes_stays(self):
        body = """g (float[n, 4, h, w] x) => (float[a, b, c] y) {
            s = Shape(x) b = Gather(s, a0) h = Gather(s, a2) v = Gather(s, a3)
            t = Concat<axis = 0>(h, v, b, four) r = Reshape(x, t) y = ReduceMax<axes = [0], keepdims = 0>(r) }"""
        constants = {
            name: np.array([value], np.int64) for name, value in {"a0": 0, "a2": 2, "a3": 3, "four": 4}.items()
        }
        graph = assert_same(make(body, **constants))
        assert "Concat" in op_types(graph)

    def test_pads_computed_from_constants_are_folded(self):
        body = """g (float[n, 3, 4, 4] x) => (float[n, 3, 6, 6] y) {
            shape = ConstantOfShape<value = int64[1] {0}>(four) p = Concat<axis = 0>(front, shape) r = Reshape(p, two)
            v = Slice(r, m1, big, z, m1) t = Transpose<perm = [1, 0]>(v) f = Reshape(t, m1) i = Cast<to = 7>(f)
            y = Pad(x, i) }"""
        constants = {
            "four": [4],
            "front": [1, 1, 1, 1],
            "two": [-1, 2],
            "m1": [-1],
            "big": [-9223372036854775807],
            "z": [0],
        }
        model = make(body, **{name: np.array(value, np.int64) for name, value in constants.items()})
        model.graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
        for _ in range(4):
            model.graph.output[0].type.tensor_type.shape.dim.add()
        assert op_types(assert_same(model)) == ["Pad"]


class TestGemmAndMean:
    @pytest.mark.parametrize("bias", [(3,), (1, 3)])
    @pytest.mark.parametrize("order", ["p, b", "b, p"])
    def test_matmul_and_add_become_gemm(self, bias, order):
        body = f"g (float[n, 4] x) => (float[n, 3] y) {{ [mm] p = MatMul(x, w) [add] y = Add({order}) }}"
        graph = assert_same(make(body, w=(4, 3), b=bias))
        (node,) = graph.graph
        assert (node.op_type, node.name, node.outputs[0].name) == ("Gemm", "mm", "y")
        assert node.inputs[2].name == "b"
        assert len(node.inputs[2].shape) == 1

    @pytest.mark.parametrize("bias", [(3,), (1, 1, 3)])
    @pytest.mark.parametrize("order", ["p, b", "b, p"])
    def test_with_three_axes_the_matmul_takes_the_bias(self, bias, order):
        """No ONNX operator: torch computes it, and taken apart it is what the user wrote."""
        body = f"g (float[n, 5, 4] x) => (float[n, 5, 3] y) {{ [mm] p = MatMul(x, w) [add] y = Add({order}) }}"
        model = make(body, w=(4, 3), b=bias)
        graph = normalize(model)
        (node,) = graph.graph
        assert (node.op_type, node.name, node.outputs[0].name) == ("MatMul", "mm", "y")
        assert list(node.outputs[0].shape) == ["n", 5, 3]
        assert list(node.inputs[2].shape) == [3]
        x = np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)
        expected = run_onnx(model, {"x": x})["y"]
        with torch.no_grad():
            np.testing.assert_allclose(to_torch(graph)(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-5)
        split_matmul_bias(node)
        assert [(n.op_type, n.name) for n in graph.graph] == [("MatMul", "mm"), ("Add", "add")]
        np.testing.assert_allclose(run_onnx(ir.to_proto(graph), {"x": x})["y"], expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("body", "bias"),
        [
            ("g (float[n, 5, 4] x) => (float[n, 5, 3] y) { p = MatMul(x, w) y = Add(p, b) }", (5, 1)),
            ("g (float[n, 5, 4] x) => (float[n, 5, 3] y) { p = MatMul(x, w) y = Add(p, b) }", (1,)),
            ("g (float[n, 5, 4] x) => (float[2, n, 5, 3] y) { p = MatMul(x, w) y = Add(p, b) }", (2, 1, 5, 3)),
            ("g (float[n, 5, 4] x) => (float[1, n, 5, 3] y) { p = MatMul(x, w) y = Add(p, b) }", (1, 1, 1, 3)),
        ],
    )
    def test_a_constant_that_is_no_bias_stays_an_add(self, body, bias):
        assert op_types(assert_same(make(body, w=(4, 3), b=bias))) == ["MatMul", "Add"]

    def test_integers_stay_an_add(self):
        body = "g (int32[n, 5, 4] x) => (int32[n, 5, 3] y) { p = MatMul(x, w) y = Add(p, b) }"
        model = make(body, w=np.arange(12, dtype=np.int32).reshape(4, 3), b=np.arange(3, dtype=np.int32))
        graph = normalize(model)
        assert op_types(graph) == ["MatMul", "Add"]
        x = np.arange(40, dtype=np.int32).reshape(2, 5, 4)
        assert np.array_equal(to_torch(graph)(torch.from_numpy(x)).numpy(), run_onnx(model, {"x": x})["y"])

    def test_not_in_front_of_an_output(self):
        body = """g (float[n, 5, 4] x) => (float[n, 5, 3] p, float[n, 5, 3] y) {
            p = MatMul(x, w) y = Add(p, b) }"""
        assert op_types(assert_same(make(body, w=(4, 3), b=(3,)))) == ["MatMul", "Add"]

    def test_not_where_the_product_is_read_twice(self):
        body = """g (float[n, 4] x) => (float[n, 3] y, float[n, 3] z) {
            [mm] p = MatMul(x, w) [add] y = Add(p, b) [r] z = Relu(p) }"""
        assert op_types(assert_same(make(body, w=(4, 3), b=(3,)))) == ["MatMul", "Add", "Relu"]

    @pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), ()])
    def test_factors_go_into_the_constants(self, bias):
        body = "g (float[n, 4] x) => (float[n, 3] y) { [l] y = Gemm<alpha = 0.3, beta = -2.0, transB = 1>(x, w, b) }"
        graph = assert_same(make(body, w=(3, 4), b=np.full(bias, 0.7, np.float32)))
        (node,) = graph.graph
        assert set(node.attributes) == {"transB"}
        assert list(node.inputs[2].shape) == [3]

    @pytest.mark.parametrize(("opset", "keepdims"), [(9, 0), (13, 1), (17, 0), (18, 1), (21, 0)])
    def test_a_spatial_mean_becomes_a_pool(self, opset, keepdims):
        axes = {"axes": np.array([-1, 2], np.int64)} if opset >= 18 else {}
        mean = (
            f"ReduceMean<keepdims = {keepdims}>(x, axes)"
            if axes
            else f"ReduceMean<axes = [2, 3], keepdims = {keepdims}>(x)"
        )
        shape = "[n, 4, 1, 1]" if keepdims else "[n, 4]"
        graph = assert_same(make(f"g (float[n, 4, 5, 6] x) => (float{shape} y) {{ [mean] y = {mean} }}", opset, **axes))
        assert op_types(graph) == ["GlobalAveragePool"] + ([] if keepdims else ["Flatten"])
        assert graph.graph[0].name == "mean"
        assert graph.graph[-1].outputs[0].name == "y"

    @pytest.mark.parametrize("keepdims", [0, 1])
    def test_a_mean_of_an_nhwc_map_becomes_a_pool(self, keepdims):
        shape = "[n, 1, 1, 4]" if keepdims else "[n, 4]"
        body = f"""g (float[n, 4, 5, 6] x) => (float{shape} y) {{
            t = Transpose<perm = [0, 2, 3, 1]>(x) [mean] y = ReduceMean<axes = [1, -2], keepdims = {keepdims}>(t) }}"""
        graph = assert_same(make(body))
        assert op_types(graph) == ["GlobalAveragePool", "Transpose" if keepdims else "Flatten"]
        assert graph.graph[0].name == "mean"

    @pytest.mark.parametrize(("perm", "axes"), [([0, 2, 3, 1], [0, 1]), ([1, 2, 3, 0], [1, 2]), ([0, 2, 3, 1], [1])])
    def test_a_mean_of_another_transposed_map_stays(self, perm, axes):
        body = f"""g (float[3, 4, 5, 6] x) => (float[a, b, c, d] y) {{
            t = Transpose<perm = {perm}>(x) y = ReduceMean<axes = {axes}>(t) }}"""
        assert op_types(assert_same(make(body))) == ["Transpose", "ReduceMean"]

    def test_a_mean_over_other_axes_stays(self):
        body = "g (float[n, 4, 5, 6] x) => (float[n, 1, 5, 1] y) { y = ReduceMean<axes = [1, 3]>(x) }"
        assert op_types(assert_same(make(body))) == ["ReduceMean"]


class TestTransposes:
    def test_those_that_undo_each_other_go(self):
        body = """g (float[n, 4, 5, 6] x) => (float[n, 4, 5, 6] y) {
            a = Relu(x) b = Transpose<perm = [0, 2, 3, 1]>(a) c = Transpose<perm = [0, 3, 1, 2]>(b) [last] y = Neg(c) }"""
        assert op_types(assert_same(make(body))) == ["Relu", "Neg"]

    def test_reversed_axes_are_the_default(self):
        body = """g (float[n, 4, 5] x) => (float[n, 4, 5] y) {
            a = Transpose(x) b = Transpose<perm = [2, 1, 0]>(a) c = Transpose<perm = [0, 1, 2]>(b) y = Neg(c) }"""
        assert op_types(assert_same(make(body))) == ["Neg"]

    def test_normalization_between_them_is_folded(self):
        """With Transposes of its own, as TensorFlow's exporter leaves it."""
        body = """g (float[n, 5, 6, 4] x) => (float[n, 5, 6, 8] y) {
            a = Transpose<perm = [0, 3, 1, 2]>(x) [conv] b = Conv(a, w) c = Transpose<perm = [0, 2, 3, 1]>(b)
            d = Transpose<perm = [0, 3, 1, 2]>(c) e = BatchNormalization(d, s, t, m, v) y = Transpose<perm = [0, 2, 3, 1]>(e) }"""
        one = np.linspace(0.5, 2, 8, dtype=np.float32)
        graph = assert_same(make(body, w=(8, 4, 1, 1), s=one, t=(8,), m=(8,), v=one))
        assert op_types(graph) == ["Transpose", "Conv", "Transpose"]

    @pytest.mark.parametrize("second", ["[0, 3, 2, 1]", "[0, 2, 3, 1]"])
    def test_others_stay(self, second):
        body = f"""g (float[n, 4, 5, 6] x) => (float[n, a, b, c] y) {{
            a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = {second}>(a) y = Neg(b) }}"""
        assert op_types(assert_same(make(body))) == ["Transpose", "Transpose", "Neg"]

    def test_one_that_something_else_reads_stays(self):
        body = """g (float[n, 4, 5, 6] x) => (float[n, 5, 6, 4] y, float[n, 4, 5, 6] z) {
            a = Neg(x) b = Transpose<perm = [0, 2, 3, 1]>(a) y = Abs(b) z = Transpose<perm = [0, 3, 1, 2]>(b) }"""
        graph = assert_same(make(body))
        assert op_types(graph) == ["Neg", "Transpose", "Abs"]
        assert [v.name for v in graph.graph.outputs] == ["y", "z"]

    def test_outputs_keep_their_names(self):
        """An input cannot be called like an output."""
        body = """g (float[n, 4, 5, 6] x) => (float[n, 4, 5, 6] y) {
            b = Transpose<perm = [0, 2, 3, 1]>(x) y = Transpose<perm = [0, 3, 1, 2]>(b) }"""
        assert op_types(assert_same(make(body))) == ["Transpose", "Transpose"]


class TestClamps:
    @pytest.mark.parametrize(
        ("steps", "bounds"),
        [
            ("a = Relu(x) [last] y = Min(a, high)", (0, 6)),
            ("a = Min(high, x) [last] y = Relu(a)", (0, 6)),
            ("a = Max(x, low) [last] y = Min(high, a)", (-1, 6)),
            ("a = Min(x, high) [last] y = Max(a, low)", (-1, 6)),
            ("a = Relu(x) [last] y = Clip(a, low, half)", (0, 0.5)),
            ("a = Clip(x, low, half) [last] y = Relu(a)", (0, 0.5)),
            ("a = Clip(x, low, half) b = Clip(a, , high) [last] y = Relu(b)", (0, 0.5)),
            ("a = Clip(x, , half) [last] y = Clip(a, low)", (-1, 0.5)),
            ("a = Clip(x, , half) [last] y = Min(a, high)", (None, 0.5)),
            ("a = Relu(x) [last] y = Max(a, half)", (0.5,)),
        ],
    )
    def test_those_in_a_row_become_a_clip(self, steps, bounds):
        body = f"g (float[n, 4] x) => (float[n, 4] y) {{ {steps} }}"
        model = make(body, high=np.array([6], np.float32), low=np.float32(-1), half=np.float32(0.5))
        graph = assert_same(model)
        (node,) = graph.graph
        assert (node.op_type, node.name, node.outputs[0].name) == ("Clip", "last", "y")
        assert tuple(None if v is None else float(v.const_value.numpy()) for v in node.inputs[1:]) == bounds

    @pytest.mark.parametrize("steps", ["a = Relu(x)", "a = Max(x, low)", "a = Relu(x) a1 = Relu(a)"])
    def test_a_relu_behind_them_is_one_relu(self, steps):
        """ONNX Runtime below 1.31 drops both in front of a quantizer, and then does not open the file."""
        last = steps.count("=") - 1
        body = f"g (float[n, 4] x) => (float[n, 4] y) {{ {steps} [last] y = Relu(a{last or ''}) }}"
        (node,) = assert_same(make(body, low=np.float32(-1))).graph
        assert (node.op_type, node.name, len(node.inputs)) == ("Relu", "last", 1)

    @pytest.mark.parametrize(
        "steps",
        [
            "a = Max(x, high) y = Min(a, low)",
            "a = Relu(x) y = Min(a, channels)",
            "a = Relu(x) y = Min(a, high, low)",
            "a = Relu(x) b = Min(a, high) y = Add(a, b)",
        ],
    )
    def test_what_is_no_clip_stays(self, steps):
        body = f"g (float[n, 4] x) => (float[n, 4] y) {{ {steps} }}"
        graph = assert_same(make(body, high=np.float32(6), low=np.float32(-1), channels=(4,)))
        assert "Clip" not in op_types(graph)


class TestLoading:
    def write(self, folder, content: bytes, name: str = "model.onnx"):
        path = folder / name
        path.write_bytes(content)
        return path

    def test_reads_what_was_written(self, tmp_path):
        model = cnn(17)
        assert load_model(self.write(tmp_path, model.SerializeToString())) == model
        assert load_model(str(tmp_path / "model.onnx")) == model
        assert load_model(model) is model

    def test_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
            load_model(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="is a folder"):
            load_model(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01",
            b"\x89PNG\r\n\x1a\n\x00\x00",
            b"hello, world\n",
            b"PK\x03\x04",
            b"\x08",
        ],
    )
    def test_not_onnx(self, tmp_path, content):
        path = self.write(tmp_path, content)
        with pytest.raises(ModelError, match=r"model\.onnx: .*(is not an ONNX file|truncated)"):
            load_model(path)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"PK\x03\x04rest", r"but a zip, as torch\.save and torch\.export write it: .*torch\.onnx\.export"),
            (b"\x80\x02\x8a", r"but a pickle, as torch\.save wrote it: .*torch\.onnx\.export"),
            (b"\x1c\x00\x00\x00TFL3", "but a TFLite model"),
            (b"\x18\x00\x00\x00ORTM", "but ONNX Runtime's own format"),
            (b"\x89PNG\r\n\x1a\n", "but an image: .*--calib or --data"),
            (b"\x93NUMPY\x01\x00", "but an array: .*--calib or --data"),
            (b"# a model card\n", "give what torch.onnx.export or another exporter wrote"),
        ],
    )
    def test_what_is_no_onnx_is_named_where_its_kind_is_known(self, tmp_path, content, said):
        with pytest.raises(ModelError, match=r"model\.onnx: is not an ONNX file.*" + said):
            load_model(self.write(tmp_path, content))

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
    def test_truncated(self, tmp_path, share):
        content = cnn(17).SerializeToString()
        path = self.write(tmp_path, content[: int(len(content) * share)])
        with pytest.raises(ModelError, match="truncated") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)

    def test_external_data(self, tmp_path):
        model = cnn(17)
        path = tmp_path / "model.onnx"
        onnx.save(copy.deepcopy(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        loaded = load_model(path)
        assert not any(tensor.external_data for tensor in loaded.graph.initializer)
        inputs = feeds(model)
        assert relative_error(run_onnx(loaded, inputs)["logits"], run_onnx(model, inputs)["logits"]) == 0
        unread = onnx.load(path, load_external_data=False)
        (tmp_path / "weights.bin").write_bytes(b"12")
        with pytest.raises(ModelError, match=r"tensor 'w1' is truncated.*weights\.bin"):
            load_model(path)
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(ModelError, match=r"tensor 'w1' is missing.*weights\.bin"):
            load_model(path)
        with pytest.raises(ModelError, match=r"tensor 'w1'"):
            load_model(unread)

    @pytest.mark.parametrize(("opset", "message"), [(6, "opset 6 is too old"), (999, "opset 999 is unknown")])
    def test_opset_out_of_range(self, opset, message):
        model = cnn(13)
        model.opset_import[0].version = opset
        with pytest.raises(ModelError, match=message):
            load_model(model)

    def test_invalid_graph(self):
        model = cnn(17)
        model.graph.node[2].input[0] = "nothing"
        with pytest.raises(ModelError, match=r"not valid ONNX.*nothing") as caught:
            load_model(model)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf")])
    def test_weights_that_are_not_finite(self, tmp_path, value, word):
        model = cnn(17)
        weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weight[0, 0, 0, 0] = value
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
        for source in (model, self.write(tmp_path, model.SerializeToString())):
            with pytest.raises(ModelError, match=f"'w1' holds {word}"):
                load_model(source)

    def test_an_open_bound_is_no_error(self):
        model = make(
            "g (float[2] x) => (float[2] y) { y = Clip(x, low, high) }", low=np.float32(0), high=np.float32(np.inf)
        )
        assert load_model(model) is model

    def test_custom_operators_only(self):
        model = cnn(17)
        model.opset_import[0].domain = "custom"
        with pytest.raises(ModelError, match="no opset of the standard"):
            load_model(model)


class TestBridge:
    def test_names_map_one_to_one(self):
        graph = normalize(cnn(17))
        module = to_torch(graph)
        calls = [node for node in module.graph.nodes if node.op == "call_module"]
        assert [node.meta["onnx_node"] for node in calls] == [node.name for node in graph.graph]
        assert module.onnx_nodes == {node.name: node.meta["onnx_node"] for node in calls}
        assert all(module.layer(node.meta["onnx_node"]) is module.get_submodule(node.target) for node in calls)
        with pytest.raises(KeyError, match="nobody"):
            module.layer("nobody")
        for call, node in zip(calls, graph.graph, strict=True):
            assert call.meta["onnx_inputs"] == [value.name if value is not None else "" for value in node.inputs]
            assert call.meta["onnx_outputs"] == [value.name for value in node.outputs]

    def test_is_in_eval_mode_without_gradients(self):
        module = to_torch(cnn(17))
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_several_inputs_and_outputs_keep_their_order(self):
        body = """g (float[2, 4] a, float[2, 4] b) => (float[2, 4] p, float[2, 2] r, float[2, 2] q, float[2, 4] b2) {
            [d] p = Sub(a, b) [s] q, r = Split<axis = 1>(a) [i] b2 = Identity(b) }"""
        model = make(body)
        inputs = feeds(model)
        a, b = (torch.from_numpy(inputs[name]) for name in "ab")
        p, r, q, b2 = to_torch(model)(a, b)
        assert torch.equal(p, a - b)
        assert torch.equal(q, a[:, :2])
        assert torch.equal(r, a[:, 2:])
        assert torch.equal(b2, b)

    def test_one_tensor_may_be_given_out_twice_and_used_often(self):
        body = "g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) { y = Relu(x) z = Add(y, y) }"
        y, z = to_torch(make(body))(torch.ones(2, 4))
        assert torch.equal(z, 2 * y)

    @pytest.mark.parametrize(("slope", "passed_on"), [(1.0, True), (0.5, False)])
    def test_a_branch_hands_on_what_it_reads(self, slope, passed_on):
        module = to_torch(make(f"g (float[2, 4] x) => (float[2, 4] y) {{ y = LeakyRelu<alpha = {slope}>(x) }}"))
        x = torch.tensor([[-1.0, 0.0, 2.0, -3.0]] * 2)
        assert (module(x) is x) == passed_on
        assert torch.equal(module(x), torch.where(x < 0, slope * x, x))

    def test_absent_inputs_in_the_middle(self):
        body = "g (float[2, 4] x) => (float[2, 4] y) { y = Clip(x, , high) }"
        model = make(body, high=np.float32(0.5))
        assert check_parity(model, to_torch(model), feeds(model)) == 0

    def test_names_that_torch_does_not_like(self):
        model = make("g (float[2, 4] x) => (float[2, 4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
        model.graph.input[0].name = model.graph.node[0].input[0] = "1.input/x:0"
        for node, name in zip(model.graph.node, ["forward", "a.b/c", "training"], strict=True):
            node.name = name
        module = to_torch(model)
        assert list(module.onnx_nodes.values()) == ["forward", "a.b/c", "training"]
        assert check_parity(model, module, feeds(model)) < 1e-6

    def test_initializers_as_arguments_are_named(self):
        module = to_torch(make("g (float[2, 4] x) => (float[2, 4] y) { y = Add(x, shift) }", shift=(4,)))
        (node,) = [node for node in module.graph.nodes if node.op == "get_attr"]
        assert node.meta["onnx_tensor"] == "shift"

    def test_weighted_modules_hold_the_initializer_as_it_is(self):
        body = """g (float[2, 4, 5, 5] x) => (float[2, 3] y, float[2, 4, 3, 5] left) {
            [c] a = Conv<pads = [1, 1, 1, 1]>(x, wc, bc) [t] b = ConvTranspose<group = 2>(a, wt)
            [p] g0 = GlobalAveragePool(b) [f] f = Flatten(g0)
            [g] h = Gemm<transB = 1>(f, wg, bg) [m] y = MatMul(h, wm) [l] left = MatMul(wl, x) }"""
        model = make(body, wc=(6, 4, 3, 3), bc=(6,), wt=(6, 2, 3, 3), wg=(5, 4), bg=(5,), wm=(5, 3), wl=(3, 5))
        module = to_torch(model)
        assert check_parity(model, module, feeds(model)) < 1e-5
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        kinds = {"c": OnnxConv, "t": OnnxConvTranspose, "g": OnnxGemm, "m": OnnxMatMulConst, "l": OnnxMatMulConst}
        for node in module.graph.nodes:
            if node.meta.get("onnx_node") not in kinds:
                continue
            layer = module.get_submodule(node.target)
            name = node.meta["onnx_node"]
            assert type(layer) is kinds[name]
            np.testing.assert_array_equal(layer.weight.numpy(), weights[f"w{name}"])
            assert (layer.bias is None) == (name not in "cg")
            x = (
                torch.randn(2, 4, 5, 5)
                if name in "cl"
                else torch.randn(2, 6, 5, 5)
                if name == "t"
                else torch.randn(2, layer.weight.shape[1] if name == "g" else 5)
            )
            twice = layer.compute(x, 2 * layer.weight, None if layer.bias is None else 2 * layer.bias)
            torch.testing.assert_close(twice, 2 * layer(x))

    def test_computed_weights_and_biases(self):
        body = """g (float[2, 4, 5, 5] x, float[6, 4, 3, 3] w, float[6] b)
            => (float[2, 6, 3, 3] y, float[2, 6, 3, 3] z) {
            y = Conv(x, w, b) z = Conv(x, wc, b) }"""
        model = make(body, wc=(6, 4, 3, 3))
        assert check_parity(model, to_torch(model), feeds(model)) < 1e-5

    def test_all_that_cannot_be_converted_is_named(self):
        text = """<ir_version: 8, opset_import: ["" : 17, "vendor" : 2]>
            g (float[2, 4] x) => (float[2, 4] y) {
                [first] a = vendor.Odd(x) [ok] b = Relu(a) [second] y = vendor.Even(b) }"""
        with pytest.raises(ConversionError, match=r"'first': vendor::Odd version 2.*'second': vendor::Even") as caught:
            to_torch(onnx.parser.parse_model(text))
        assert "\n" not in str(caught.value)
        assert "'ok'" not in str(caught.value)

    def test_a_long_list_is_cut(self):
        nodes = " ".join(f"[n{i}] x{i + 1} = vendor.Odd(x{i})" for i in range(9))
        text = f"""<ir_version: 8, opset_import: ["" : 17, "vendor" : 2]>
            g (float[2, 4] x0) => (float[2, 4] x9) {{ {nodes} }}"""
        with pytest.raises(ConversionError, match=r"'n4'.*and 4 more nodes"):
            to_torch(onnx.parser.parse_model(text))

    def test_copies_keep_the_names(self):
        module = to_torch(cnn(17))
        assert copy.deepcopy(module).onnx_nodes == module.onnx_nodes

    def test_gradients_flow_to_a_substituted_weight(self):
        layer = to_torch(
            make("g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) { [c] y = Conv(x, w) }", w=(3, 2, 1, 1))
        )
        conv = layer.layer("c")
        weight = conv.weight.clone().requires_grad_()
        conv.compute(torch.ones(1, 2, 4, 4), weight, None).sum().backward()
        assert weight.grad is not None


class TestTorchvision:
    PROBE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise {error}("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Blocked())
import onnx, onnx.parser, torch
from mrecg_onnx.converters import to_torch
assert "torchvision" not in sys.modules
text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {{ y = Relu(x) }}'
model = onnx.parser.parse_model(text)
assert to_torch(model)(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
text = '''<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 4] b, float[1, 1, 3] s) => (int64[n, 3] y)
    {{ [boxes] y = NonMaxSuppression(b, s) }}'''
print(to_torch(onnx.parser.parse_model(text)).fallback_nodes)
"""

    @pytest.mark.parametrize("error", ["ImportError", pytest.param("RuntimeError", marks=pytest.mark.slow)])
    def test_only_the_two_operators_that_need_it_fall_back_without(self, error):
        run = subprocess.run(
            [sys.executable, "-c", self.PROBE.format(error=error)], capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith("{'boxes': 'ai.onnx::NonMaxSuppression version 11 needs a working")

    def test_errors_do_not_import_torch(self):
        code = "import sys, mrecg_onnx.converters.errors; assert not {'torch', 'onnx'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_functions_win_over_modules_of_the_same_name(self):
        importlib.import_module("mrecg_onnx.converters.normalize")
        assert importlib.import_module("mrecg_onnx.converters").normalize is normalize
        assert callable(normalize)


class TestParity:
    def test_names_the_first_node_that_differs(self):
        graph = normalize(cnn(17))
        module = to_torch(graph)
        inputs = feeds(cnn(17))
        assert check_parity(graph, module, inputs) < 1e-6
        module.layer("depthwise").weight *= 1.01
        with pytest.raises(ConversionError, match=r"node 'depthwise' \(Conv\).*'n2' differs"):
            check_parity(graph, module, inputs)

    def test_rounding_that_a_network_amplifies_is_no_difference(self, caplog):
        """Each step of the logistic map doubles what two runs differ by."""
        steps = " ".join(f"a{i} = Sub(one, x{i}) b{i} = Mul(a{i}, x{i}) x{i + 1} = Mul(b{i}, four)" for i in range(8))
        model = make(f"g (float[2, 400] x0) => (float[2, 400] x8) {{ {steps} }}", one=np.float32(1), four=np.float32(4))
        inputs = {"x0": np.random.default_rng(0).random((2, 400), np.float32)}

        class Precise(torch.nn.Module):
            factor = 4.0

            def forward(self, x):
                x = x.double()
                for _ in range(8):
                    x = (1 - x) * x * self.factor
                return x.float()

        assert 1e-5 < check_parity(model, Precise(), inputs, tolerance=1e-5) < 1e-3
        assert "rounding that the network amplifies" in caplog.text
        other = Precise()
        other.factor = 3.999
        with pytest.raises(ConversionError, match="differs"):
            check_parity(model, other, inputs, tolerance=1e-5)

    def test_names_the_first_activation_that_is_not_finite(self):
        body = "g (float[2, 4] x) => (float[2, 4] y) { [a] p = Abs(x) [n] q = Neg(p) [s] r = Sqrt(q) [e] y = Exp(r) }"
        model = make(body)
        with pytest.raises(ModelError, match=r"'r' of node 's' \(Sqrt\) holds NaN or Inf"):
            check_parity(model, to_torch(model), feeds(model))

    def test_an_overflow_that_an_output_hides_is_found(self):
        body = (
            "g (float[2, 4] x) => (float[2, 4] y) { [e] p = Exp(x) [f] q = Exp(p) [g] r = Exp(q) [m] y = Min(r, one) }"
        )
        model = make(body, one=np.float32(1))
        with pytest.raises(ModelError, match=r"'r' of node 'g'"):
            check_parity(model, to_torch(model), {"x": np.full((2, 4), 3, np.float32)})

    def test_a_zero_pad_in_front_of_a_max_pool(self):
        body = """g (float[2, 4, 5, 5] x) => (float[2, 4, 3, 3] y) {
            p = Pad(x, pads) y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(p) }"""
        model = make(body, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        inputs = {"x": np.full((2, 4, 5, 5), -1, np.float32)}
        assert check_parity(model, to_torch(model), inputs) == 0

    def test_bad_inputs(self):
        model = cnn(17)
        module = to_torch(model)
        with pytest.raises(DataError, match="input 'image'"):
            check_parity(model, module, {})
        with pytest.raises(DataError, match="'image' holds NaN"):
            check_parity(model, module, {"image": np.full((1, 3, 16, 16), np.nan, np.float32)})


class TestSaving:
    @pytest.mark.parametrize("as_ir", [False, True])
    def test_writes_what_can_be_read(self, tmp_path, as_ir):
        path = tmp_path / "out.onnx"
        path.write_bytes(b"old")
        model = cnn(17)
        save_model(ir.from_proto(model) if as_ir else model, path)
        inputs = feeds(model)
        assert relative_error(run_onnx(load_model(path), inputs)["logits"], run_onnx(model, inputs)["logits"]) == 0
        assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]

    @pytest.mark.parametrize("as_ir", [False, True])
    def test_large_models_keep_their_tensors_outside(self, tmp_path, monkeypatch, as_ir):
        monkeypatch.setattr("mrecg_onnx.converters.save.EXTERNAL_DATA_BYTES", 100)
        monkeypatch.setattr("mrecg_onnx.converters.save._INLINE_BYTES", 64)
        model = cnn(17)
        before = model.SerializeToString()
        graph = ir.from_proto(model)
        save_model(graph if as_ir else model, tmp_path / "out.onnx")
        assert model.SerializeToString() == before
        assert ir.to_proto(graph).SerializeToString() == ir.to_proto(ir.from_proto(model)).SerializeToString()
        assert {item.suffix for item in tmp_path.iterdir()} == {".onnx", ".data"}
        inputs = feeds(model)
        loaded = load_model(tmp_path / "out.onnx")
        assert relative_error(run_onnx(loaded, inputs)["logits"], run_onnx(model, inputs)["logits"]) == 0

    def test_a_path_that_cannot_be_written(self, tmp_path):
        with pytest.raises(ExportError, match="no folder"):
            check_writable(tmp_path / "none" / "out.onnx")
        with pytest.raises(ExportError, match="is a folder"):
            save_model(cnn(17), tmp_path)

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "out.onnx"
        path.write_bytes(b"old")

        def fail(*_args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.write_bytes", fail)
        with pytest.raises(ExportError, match="No space left"):
            save_model(cnn(17), path)
        assert path.read_bytes() == b"old"
        assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]


def single(op_type: str, shape, attributes, constants, opset: int) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x", *constants], ["y"], name="op", **attributes)
    sizes = [f"d{axis}" for axis in range(len(shape))]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@st.composite
def windows(draw):
    """Draw a window that fits into its input."""
    axes = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    pads = [draw(st.integers(0, size - 1)) for size in kernel * 2]
    strides = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    dilations = draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))
    sizes = draw(st.lists(st.integers(6, 9), min_size=axes, max_size=axes))
    return {"kernel_shape": kernel, "pads": pads, "strides": strides, "dilations": dilations}, (2, 4, *sizes)


class TestSlidingWindows:
    """Every combination of pads, strides and dilations computes what ONNX Runtime computes."""

    @staticmethod
    def check(model: onnx.ModelProto) -> None:
        inputs = feeds(model)
        assert check_parity(model, to_torch(model), inputs, tolerance=1e-5) < 1e-5

    @settings(max_examples=40, deadline=None)
    @given(windows(), st.sampled_from(["AveragePool", "MaxPool"]), st.booleans(), st.booleans())
    def test_pools(self, window, op_type, ceil_mode, count_include_pad):
        attributes, shape = window
        attributes = {**attributes, "ceil_mode": int(ceil_mode)}
        if op_type == "AveragePool":
            attributes["count_include_pad"] = int(count_include_pad)
        self.check(single(op_type, shape, attributes, {}, 22))

    @settings(max_examples=40, deadline=None)
    @given(windows(), st.sampled_from([1, 2, 4]), st.booleans(), st.booleans())
    def test_convolutions(self, window, group, transpose, with_bias):
        attributes, shape = window
        rng = np.random.default_rng(0)
        sizes = (4, 8 // group) if transpose else (8, 4 // group)
        constants = {"w": rng.standard_normal((*sizes, *attributes["kernel_shape"])).astype(np.float32)}
        if with_bias:
            constants["b"] = rng.standard_normal(8).astype(np.float32)
        op_type = "ConvTranspose" if transpose else "Conv"
        self.check(single(op_type, shape, {**attributes, "group": group}, constants, 13))

    @pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
    @pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool", "Conv", "ConvTranspose"])
    def test_auto_pad(self, op_type, auto_pad):
        weight = np.random.default_rng(0).standard_normal((4, 4, 3, 2)).astype(np.float32)
        attributes = {"strides": [2, 1], "auto_pad": auto_pad, "kernel_shape": [3, 2]}
        constants = {"w": weight} if "Conv" in op_type else {}
        self.check(single(op_type, (2, 4, 7, 8), attributes, constants, 13))

    @pytest.mark.parametrize("output", [{"output_padding": [1, 0]}, {"output_shape": [15, 13]}])
    def test_transposed_convolution_with_a_given_size(self, output):
        weight = np.random.default_rng(0).standard_normal((4, 4, 3, 2)).astype(np.float32)
        self.check(single("ConvTranspose", (2, 4, 7, 6), {"strides": [2, 2], **output}, {"w": weight}, 13))


class TestOperators:
    """Operators with meanings that changed between opsets, or that torch has in another form."""

    @pytest.mark.parametrize(
        ("opset", "op_type", "attributes", "constants"),
        [
            (14, "HardSwish", {}, {}),
            (22, "HardSwish", {}, {}),
            (22, "HardSigmoid", {"alpha": 0.25}, {}),
            (18, "Mish", {}, {}),
            (20, "Gelu", {"approximate": "tanh"}, {}),
            (22, "Selu", {}, {}),
            (22, "Elu", {"alpha": 0.5}, {}),
            (16, "PRelu", {}, {"slope": np.full((4, 1, 1), 0.3, np.float32)}),
            (16, "PRelu", {}, {"slope": np.linspace(0, 1, 6, dtype=np.float32)}),
            (13, "Softmax", {"axis": 1}, {}),
            (17, "LayerNormalization", {"axis": 2}, {"s": np.full((5, 6), 1.1, np.float32)}),
            (
                21,
                "GroupNormalization",
                {"num_groups": 2},
                {"s": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32)},
            ),
            (18, "ReduceMax", {}, {"axes": np.array([1, -1])}),
            (18, "ReduceL2", {"keepdims": 1}, {"axes": np.array([2])}),
            (19, "Pad", {"mode": "wrap"}, {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 3])}),
            (18, "Pad", {"mode": "edge"}, {"p": np.array([1, 2, 0, 1]), "v": np.float32(0), "a": np.array([2, -1])}),
            (13, "Slice", {}, {"s": np.array([-1]), "e": np.array([-100]), "a": np.array([3]), "t": np.array([-2])}),
            (19, "Reshape", {}, {"s": np.array([0, -1, 6, 1])}),
            (21, "Transpose", {"perm": [0, 2, 3, 1]}, {}),
            (13, "DepthToSpace", {"blocksize": 2, "mode": "CRD"}, {}),
            (13, "DepthToSpace", {"blocksize": 2}, {}),
            (13, "LRN", {"size": 3, "alpha": 0.5}, {}),
            (22, "LpPool", {"kernel_shape": [2, 2], "p": 3}, {}),
            (22, "GlobalMaxPool", {}, {}),
            (13, "Expand", {}, {"s": np.array([2, 4, 5, 6])}),
            (13, "Tile", {}, {"s": np.array([1, 2, 1, 2])}),
            (21, "Identity", {}, {}),
        ],
    )
    def test_computes_what_onnx_runtime_computes(self, opset, op_type, attributes, constants):
        model = single(op_type, (2, 4, 5, 6), attributes, constants, opset)
        if opset > 18:
            model.ir_version = 10
        TestSlidingWindows.check(model)

    @pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
    @pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
    @pytest.mark.parametrize("factors", [(2.0, 3.0), (0.5, 1.0)])
    def test_resize(self, mode, coordinates, factors):
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
        constants = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, *factors], np.float32)}
        TestSlidingWindows.check(single("Resize", (1, 2, 6, 5), attributes, constants, 13))

    def test_unequal_split_of_opset_18(self):
        body = """g (float[2, 7] x) => (float[2, 3] a, float[2, 3] b, float[2, 1] c) {
            a, b, c = Split<axis = 1, num_outputs = 3>(x) }"""
        model = make(body, 18)
        assert check_parity(model, to_torch(model), feeds(model)) == 0

    def test_sizes_computed_at_run_time(self):
        body = """g (float[n, 4, 5, 5] x, float[n, 4, 9, 9] like) => (float[n, 4, 9, 9] y) {
            s = Shape(like) y = Resize<mode = "nearest">(x, , , s) }"""
        model = make(body, 13)
        assert check_parity(model, to_torch(model), feeds(model)) < 1e-6


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, 2.0], True),
        ([], True),
        ([1.0, float("nan")], False),
        ([float("inf"), float("-inf")], False),
        ([3e38] * 4, True),
    ],
)
def test_a_sum_tells_what_is_not_finite_and_one_too_large_does_not(values, finite):
    assert all_finite(torch.tensor(values)) is finite
    assert all_finite(torch.tensor([1, 2]))


def test_a_module_of_somebody_else_sees_its_inputs_in_order():
    class Viewing(torch.nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    source = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> g (float[2, 3, 4, 5] x) => (float[2, 60] y) { y = Flatten(x) }'
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert check_parity(source, Viewing(), {"x": x}) == 0.0
    assert check_parity(source, to_torch(source), {"x": x}) == 0.0
