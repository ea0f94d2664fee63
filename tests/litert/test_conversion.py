"""Files for LiteRT compute what ONNX Runtime does: every pattern, at every width, through the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command_line import fails, works
from helpers.contained import VERSION, quantized
from helpers.networks import Case
from helpers.stages import feeds, simulated, tensors
from helpers.targets import quantized as quantized_for
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.litert import run_litert, to_litert
from mrecg_onnx.running import open_session
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing import contained, retarget
from mrecg_onnx.writing.qdq import export

PATTERNS = (
    "average_pool",
    "concat",
    "conv_clip",
    "conv_relu",
    "depthwise",
    "gemm",
    "global_pool",
    "grouped",
    "hardswish_gate",
    "matmul_add",
    "max_pool",
    "residual",
    "sigmoid_gate",
    "two_inputs",
    "view_chain",
)


@pytest.fixture(autouse=True)
def _litert() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install 'mrecg-onnx[litert]')")


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4), (2, 2)], ids=["W8A8", "W4A8", "W4A4", "W2A2"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_flatbuffer_computes_what_the_file_does(pattern: str, bits: tuple[int, int]) -> None:
    model = quantized(pattern, *bits)
    found = to_litert(model, data=feeds(model, 16))
    # Sums of two scales are rounded in fixed point: single codes of the 8-bit stream may fall to the other side.
    assert min(found.opened.sqnr_by_output.values()) > (50 if pattern == "residual" else 120)
    layers = sum(node.op_type in {"Conv", "Gemm", "MatMul"} for node in model.graph.node)
    written = {
        name: count for name, count in found.operators.items() if name.split()[0].endswith(("CONV_2D", "CONNECTED"))
    }
    pools = sum(node.op_type == "AveragePool" for node in model.graph.node)
    assert sum(written.values()) == layers + pools
    assert (
        sum(count for name, count in written.items() if name.endswith("float")) <= 1
    )  # the classifier, whose output is float


def test_bounds_of_four_bits_behind_a_relu_take_no_operator() -> None:
    wide, narrow = (to_litert(quantized("max_pool", 4, abits)).operators for abits in (8, 4))
    assert wide == narrow


def test_a_pad_of_codes_is_one() -> None:
    model = quantized_for("padded")
    found = to_litert(model, data=feeds(model, 8))
    assert found.operators["PAD int8"] == 1
    assert found.opened.sqnr_by_output["output"] > 120


@pytest.mark.parametrize("network", ["shufflenet_v2", "yolo", "two_inputs"])
def test_networks_of_the_zoo(network: str) -> None:
    model = Case(network, "torchscript", 17, dynamic=True).model()
    stage = simulated(normalize(model), tensors(model, 4), wbits=4, abits=4)
    found = to_litert(export(stage.graph, stage.simulation, VERSION).model)
    assert min(found.opened.sqnr_by_output.values()) > 100


def test_weights_and_biases_are_those_of_the_file() -> None:
    """Codes of few bits are multiplied by a power of two, which their scale is divided by: the same values, bit for bit."""
    from ai_edge_litert.interpreter import Interpreter

    model = quantized("residual", 3, 8)
    stored = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    interpreter = Interpreter(model_content=to_litert(model).content)
    tensors_by_name = {detail["name"]: detail for detail in interpreter.get_tensor_details()}
    seen = 0
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        detail = tensors_by_name[name]
        scales = detail["quantization_parameters"]["scales"]
        values = interpreter.get_tensor(detail["index"]).astype(np.float32) * scales.reshape(-1, 1, 1, 1)
        source = name.removesuffix("_dequantized")
        expected = stored[f"{source}_quantized"].astype(np.float32) * stored[f"{source}_scale"].reshape(-1, 1, 1, 1)
        assert np.array_equal(values, expected.transpose(0, 2, 3, 1))
        assert np.abs(interpreter.get_tensor(detail["index"]).astype(int)).max() > 63
        seen += 1
    assert seen == 6


def test_filters_of_four_bits() -> None:
    """``packed`` holds codes that fit in int4; those that do not stay and are named.

    LiteRT runs them on its portable kernels, which round twice: some codes differ by one.
    """
    model = quantized("residual", 2, 8, ends=2)
    plain, packed = (to_litert(model, container, data=feeds(model, 16)) for container in ("int8", "packed"))
    assert len(packed.content) < len(plain.content)
    assert packed.opened.sqnr_by_output["output"] > 20
    wide = to_litert(quantized("residual", 8, 8), "packed")
    assert "stay in int8" in wide.notes[0]
    with pytest.raises(SettingsError, match="no container 'typed'"):
        to_litert(model, "typed")


def test_any_container_is_read_and_other_targets_are_not() -> None:
    model = quantized("residual")
    packed = contained(model, "packed").model
    assert to_litert(packed).content == to_litert(model).content
    with pytest.raises(ModelError, match="was written for target openvino"):
        to_litert(retarget(model, load_target("openvino")))


def test_any_batch_runs() -> None:
    model = quantized("residual")
    found = to_litert(model)
    assert found.layouts == {"input": (0, 2, 3, 1), "output": (0, 1)}
    data = feeds(model, 5)
    one = [run_litert(found.content, {"input": data["input"][i : i + 1]}, found.layouts)["output"] for i in range(5)]
    assert np.array_equal(run_litert(found.content, data, found.layouts)["output"], np.concatenate(one))


def test_maps_leave_with_their_channels_last() -> None:
    model = quantized("conv_relu")
    found = to_litert(model, data=feeds(model, 2))
    assert found.layouts["output"] == (0, 2, 3, 1)
    assert found.opened.outputs["output"].shape == open_session(model).run(None, feeds(model, 2))[0].shape


def test_an_operator_that_is_not_written_ends_in_a_line() -> None:
    with pytest.raises(
        ExportError, match=r"node 'deconv' \(ConvTranspose\) cannot be written for LiteRT: the operator is not"
    ):
        to_litert(quantized("conv_transpose"))


def requantized(scale: float, zero: int, other: float, other_zero: int, high: int) -> onnx.ModelProto:
    """All codes of one grid brought to another one."""
    grids = {"s": np.float32(scale), "z": np.uint8(zero), "t": np.float32(other), "y": np.uint8(other_zero)}
    constants = {**grids, "low": np.uint8(0), "high": np.uint8(high)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("QuantizeLinear", ["d", "t", "y"], ["r"], name="r"),
        helper.make_node("Clip", ["r", "low", "high"], ["c"], name="c"),
        helper.make_node("DequantizeLinear", ["c", "t", "y"], ["out"], name="e"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 256]) for name in ("x", "out")]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, VERSION)
    return model


@pytest.mark.parametrize(
    ("scale", "zero", "other", "other_zero", "high"),
    [
        (0.0241, 0, 0.1907, 0, 15),
        (0.0241, 0, 0.03777, 0, 255),
        (0.02, 115, 0.0177, 133, 255),
        (0.0311, 130, 0.4, 7, 15),
    ],
)
def test_a_second_quantizer_gives_the_codes_of_the_file(
    scale: float, zero: int, other: float, other_zero: int, high: int
) -> None:
    """LiteRT's own operator for it, QUANTIZE of codes, gives others for up to one in seven (findings/)."""
    model = requantized(scale, zero, other, other_zero, high)
    x = ((np.arange(256, dtype=np.float32) - zero) * np.float32(scale))[None]
    assert to_litert(model, data={"x": x}).opened.sqnr_by_output["out"] > 120


def test_sizes_that_are_free_are_refused() -> None:
    model = requantized(0.1, 0, 0.2, 0, 15)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(ExportError, match="input 'x' has a free size"):
        to_litert(model)


def test_the_command(here: Path) -> None:
    Path("q.onnx").write_bytes(quantized("residual").SerializeToString())
    said = " ".join(works("convert", "q.onnx", "--to", "tflite", "--json", "q.json").stdout.split())
    found = json.loads(Path("q.json").read_text())
    assert found["after"]["size_bytes"] == Path("q.tflite").stat().st_size
    assert found["operators"]
    assert Path("q.tflite").read_bytes()[4:8] == b"TFL3"
    assert "CONV_2D int8 6" in said
    assert "opened by" in said
    assert "LiteRT" in said
    works("convert", "q.onnx", "--to", "tflite", "--container", "packed")
    assert Path("q_packed.tflite").is_file()
    fails("convert", "q.onnx", "--to", "tflite", "--container", "typed", code=2, says=("no container 'typed'",))
    fails("convert", "q.onnx", "--to", "tflite", "-o", "nowhere/q.tflite", code=2, says=("there is no folder nowhere",))
