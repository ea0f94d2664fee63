"""Targets: rules as data, forms that compute what the file for ONNX Runtime does, and what the rules exclude."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import PATTERNS, Graph, residual
from helpers.command_line import fails, works
from helpers.stages import feeds, simulated, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import mrecg_onnx
from mrecg_onnx.converters import normalize
from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.data import open_validation
from mrecg_onnx.machine.cache import Store
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.branches import branch_narrow_reads
from mrecg_onnx.quantizers import Grid, fake_quantize, symmetric_eight
from mrecg_onnx.runtimes import input_specs, open_session, open_with, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import CONTAINER_NAMES, TARGET_NAMES, load_target
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.writing.containers import contained, container_of
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget, target_of
from mrecg_onnx.writing.rule_checks import broken_rules

RULES = Path(mrecg_onnx.__file__).parent / "targets" / "rules"
SAMPLES = Path(__file__).parents[2] / "samples"
OTHERS = [name for name in TARGET_NAMES if name != "ort"]


def padded() -> onnx.ModelProto:
    """Two layers with a Pad of zeros between them, as TensorFlow's exporters write it."""
    g = Graph()
    x = g.conv(g.input(3, 12), 3, 8)
    x = g.op("Pad", [g.relu(x, "relu"), g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))], "pad")
    g.classifier(g.conv(x, 8, 8, name="conv2"), 8)
    return g.model()


@cache
def _file(pattern: str, target: str, wbits: int, abits: int) -> bytes:
    """The file for ONNX Runtime, calibrated for ``target``."""
    model = padded() if pattern == "padded" else PATTERNS[pattern]()
    graph = raise_opset(normalize(model), load_target(target).opset[0])
    stage = simulated(graph, tensors(model), wbits=wbits, abits=abits, target=target)
    return export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model.SerializeToString()


def quantized(pattern: str, target: str = "ort", wbits: int = 4, abits: int = 4) -> onnx.ModelProto:
    return onnx.load_from_string(_file(pattern, target, wbits, abits))


def outputs(model: onnx.ModelProto, level: str = "off") -> list[np.ndarray]:
    return open_session(model, level=level, threads=1).run(None, feeds(model, 8))


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("pattern", [*PATTERNS, "padded"])
def test_somebody_reads_what_every_node_makes(pattern: str, target: str) -> None:
    bits = (8, 8) if target == "tensorrt" else (4, 4)
    rules, plain = load_target(target), quantized(pattern, target, *bits)
    for container in rules.containers:
        held = contained(retarget(plain, rules), container).model
        read = {name for node in held.graph.node for name in node.input} | {v.name for v in held.graph.output}
        assert not [node.name for node in held.graph.node if not read.intersection(node.output)]
        assert not [tensor.name for tensor in held.graph.initializer if tensor.name not in read]


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_form_computes_the_same_and_keeps_the_rules(pattern: str, target: str) -> None:
    plain, rules = quantized(pattern, target), load_target(target)
    before = plain.SerializeToString()
    aimed = retarget(plain, rules)
    assert plain.SerializeToString() == before
    assert target_of(aimed) == target
    assert not broken_rules(aimed, rules)
    onnx.checker.check_model(aimed, full_check=True)
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)
    outputs(aimed, "all")


@pytest.mark.parametrize("bits", [(2, 2), (8, 8), (4, 32)])
def test_tensorrt_at_other_widths(bits: tuple[int, int]) -> None:
    plain = quantized("residual", "tensorrt", *bits)
    aimed = retarget(plain, load_target("tensorrt"))
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_tensorrt_has_int8_zero_point_zero_float_bias_and_float_bounds() -> None:
    aimed = retarget(quantized("conv_clip", "tensorrt"), load_target("tensorrt"))
    constants = {t.name: t for t in aimed.graph.initializer}
    zeros = [constants[n.input[2]] for n in aimed.graph.node if n.op_type.endswith("uantizeLinear")]
    assert {t.data_type for t in zeros} == {TensorProto.INT8}
    assert not any(onnx.numpy_helper.to_array(t).any() for t in zeros)
    made = {o: n for n in aimed.graph.node for o in n.output}
    for node in aimed.graph.node:
        if node.op_type == "Conv":
            assert constants[node.input[2]].data_type == TensorProto.FLOAT
        if node.op_type == "Clip":
            assert constants[node.input[1]].data_type == TensorProto.FLOAT
            assert made[node.input[0]].op_type == "Conv"


def _made(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("swapped", [False, True])
def test_tensorrt_gets_one_operand_of_an_add_straight_from_its_layer(swapped: bool) -> None:
    """The skip operand alone is quantized; where both come from a convolution, the shortcut: the one with fewer in front."""
    model = residual()
    for node in model.graph.node:
        if node.op_type == "Add" and swapped:
            node.input[:] = node.input[::-1]
    stage = simulated(model, wbits=4, abits=4, target="tensorrt")
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, load_target("tensorrt"))
    made = _made(aimed)
    straight = [made[name] for node in aimed.graph.node if node.op_type == "Add" for name in node.input]
    assert [n.name for n in straight if n.op_type == "Conv"] == ["conv2", "conv4"]
    assert sum(n.op_type == "DequantizeLinear" for n in straight) == 2
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_tensorrt_quantizes_no_output_for_float_ops_alone() -> None:
    aimed = retarget(quantized("sigmoid_gate", "tensorrt"), load_target("tensorrt"))
    made = _made(aimed)
    assert {made[n.input[0]].op_type for n in aimed.graph.node if n.op_type == "Sigmoid"} == {"Conv"}


def test_quantizers_that_tensorrt_wants_left_out_are_refused(tmp_path: Path) -> None:
    """Leaving them out of a finished file would change what it computes."""
    rules, file = load_target("tensorrt"), tmp_path / "parted.toml"
    text = (RULES / "tensorrt.toml").read_text()
    file.write_text(
        text.replace('"residual"', '"plain"').replace('layer_outputs = "float"', 'layer_outputs = "quantized"')
    )
    plain = quantized("residual", str(file))
    with pytest.raises(
        SettingsError, match=r"is quantized between a layer and an Add.*quantize with --target tensorrt"
    ):
        retarget(plain, rules)
    said = "\n".join(broken_rules(retarget(plain, load_target(str(file))), rules))
    assert "parts an Add from the layer in front of it" in said
    gate = retarget(quantized("sigmoid_gate", str(file)), load_target(str(file)))
    assert "quantizes for float ops alone (Sigmoid)" in "\n".join(broken_rules(gate, rules))


def test_the_checker_finds_each_broken_rule() -> None:
    """The file for ONNX Runtime breaks all of TensorRT's."""
    said = "\n".join(broken_rules(quantized("conv_clip"), load_target("tensorrt")))
    for text in ("writes uint8, not int8", "is an int32 bias", "is a Clip of codes"):
        assert text in said
    assert not broken_rules(quantized("conv_clip"), load_target("ort"))
    narrow = dataclasses.replace(load_target("ort"), opset=(20, 21))
    assert "opset" in broken_rules(quantized("conv_clip"), narrow)[0]


def test_asymmetric_eight_bits_are_refused_where_the_target_is_symmetric() -> None:
    with pytest.raises(SettingsError, match=r"'input' has asymmetric codes of 8 bits .*--target tensorrt"):
        retarget(quantized("conv_clip"), load_target("tensorrt"))


def test_only_a_file_for_ort_gets_another_target() -> None:
    aimed = retarget(quantized("conv_clip"), load_target("portable"))
    with pytest.raises(ModelError, match="was written for portable"):
        retarget(aimed, load_target("qnn"))
    with pytest.raises(ModelError, match=r"opset 19, target .* takes up to"):
        retarget(quantized("conv_clip"), dataclasses.replace(load_target("qnn"), opset=(11, 12)))


@given(st.floats(0.01, 10.0), st.integers(0, 255), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_symmetric_grids_cover_the_range_and_fit_int8(scale: float, zero: int, seed: int) -> None:
    grid = Grid(torch.tensor(scale), torch.tensor(float(zero)), 8)
    found = symmetric_eight(grid)
    assert found.qmin - float(found.zero_point) >= -128
    assert found.qmax - float(found.zero_point) <= 127
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.uniform(-zero * scale, (255 - zero) * scale, 100).astype(np.float32))
    error = (fake_quantize(x, found) - x).abs().max()
    assert float(error) <= float(found.scale) * 0.502  # nothing is clipped
    narrow = Grid(torch.tensor(scale), torch.tensor(float(zero % 16)), 4)
    assert symmetric_eight(narrow) is narrow


def test_openvino_opens_the_file_and_runs_it_in_integers() -> None:
    pytest.importorskip("openvino")
    model = retarget(quantized("residual"), load_target("openvino"))
    opened = open_with(load_target("openvino"), model, feeds(model, 32))
    assert opened.runtime.startswith("OpenVINO 20")
    assert opened.kernels["Convolution I8"] == 6
    written = run_padded(open_session(model, level="off"), feeds(model, 32))["output"]
    assert np.mean(opened.outputs["output"].argmax(1) == written.argmax(1)) >= 0.9
    assert opened.sqnr_by_output["output"] > 60


def test_packed_weights_take_no_type_that_the_target_lacks() -> None:
    """OpenVINO has UINT4 and no UINT2, which the opsets of its rules say."""
    rules = load_target("openvino")
    model = retarget(quantized("residual", "openvino", 2, 4), rules)
    kinds = {t.data_type for t in contained(model, "packed", highest=rules.opset[1]).model.graph.initializer}
    assert TensorProto.UINT4 in kinds
    assert TensorProto.UINT2 not in kinds
    unlimited = contained(model, "packed").model
    assert TensorProto.UINT2 in {t.data_type for t in unlimited.graph.initializer}
    pytest.importorskip("openvino")
    with pytest.raises(ExportError, match="OpenVINO refuses the file: Unsupported data type UINT2"):
        open_with(rules, unlimited, None)


def test_a_runtime_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    opened = open_with(load_target("openvino"), quantized("residual"), None)
    assert opened.line() == "not opened: OpenVINO is not installed (pip install openvino)"


# --- 16 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_activations_of_sixteen_bits(pattern: str) -> None:
    """All of them are uint16, the file computes what the simulation does, and nothing in it needs what ONNX Runtime lacks."""
    model, rules = PATTERNS[pattern](), load_target("qnn")
    stage = simulated(model, wbits=4, abits=16, target="qnn")
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"})
    assert not plain.integer_layers
    assert not plain.integer_ops
    aimed = retarget(plain.model, rules)
    onnx.checker.check_model(aimed, full_check=True)
    assert not broken_rules(aimed, rules)
    assert {i.version for i in aimed.opset_import if not i.domain} == {21}
    constants = {t.name: t for t in aimed.graph.initializer}
    kinds = {constants[n.input[2]].data_type for n in aimed.graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {TensorProto.UINT16}
    expected = stage.simulation.run({n: torch.from_numpy(x) for n, x in feeds(aimed, 8).items()})
    for level in ("off", "all"):
        for name, found in zip(expected, outputs(aimed, level), strict=True):
            np.testing.assert_allclose(expected[name].numpy(), found, rtol=0, atol=2e-3 * np.abs(found).max())


@given(st.floats(1e-5, 1.0), st.integers(0, 65535), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_codes_of_sixteen_bits_are_kept_without_loss(scale: float, zero: int, seed: int) -> None:
    grid = Grid(torch.tensor(scale), torch.tensor(float(zero)), 16)
    codes = np.random.default_rng(seed).integers(0, 65536, (3, 50))
    x = (torch.from_numpy(codes.astype(np.float32)) - grid.zero_point) * grid.scale
    assert torch.equal(Store.of(x, grid).read(0, 3), fake_quantize(x, grid))


def test_one_layer_of_sixteen_bits() -> None:
    stage = simulated(residual(), wbits=8, abits=8, target="qnn", bits=(BitRule.parse("conv4=W4A16"),))
    assert [p.name for p in stage.simulation.plan.activations if p.bits == 16] == [
        stage.simulation.plan.layer("conv4").input
    ]
    exported = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"})
    assert "conv4" not in exported.integer_layers["Conv"]
    assert "conv1" in exported.integer_layers["Conv"]
    aimed = retarget(exported.model, load_target("qnn"))
    for x, y in zip(outputs(exported.model), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_sixteen_bits_are_learned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, calib = str(SAMPLES / "digits.onnx"), str(SAMPLES / "calib")
    options = ("--iters", "10", "--samples", "64", "--threads", "1", "--json", "r.json", "-o", "q.onnx")
    works("quantize", model, "--calib", calib, "--target", "qnn", "--abits", "16", *options)
    report = json.loads(Path("r.json").read_text())
    assert not report["verification"]["warnings"]
    assert report["verification"]["sqnr_db"] > 40
    works("validate", model, "q.onnx", "--data", str(SAMPLES / "val"), "--repeats", "0", "--json", "v.json")
    assert json.loads(Path("v.json").read_text())["quantized"]["top1"]["value"] > 0.9


def test_sixteen_bits_where_the_target_has_none(here: Path) -> None:
    fails(
        "quantize", "model.onnx", "--calib", "images", "--abits", "16",
        code=2, says=("target ort: --wbits, --abits asks for 16-bit activations", "2 to 8; target qnn has 16"),
    )  # fmt: skip
    with pytest.raises(SettingsError, match="asks for 16-bit activations"):
        Settings(target="tensorrt", bits=(BitRule.parse("head=A16"),))
    for text in ("head=W16", "head=A12"):
        with pytest.raises(SettingsError, match="widths go from 2 to 8"):
            BitRule.parse(text)
    with pytest.raises(SettingsError, match="--allocate milp chooses among 2 to 8 bits"):
        Settings(target="qnn", abits=16, allocation="milp")


# --- rules as files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_the_rules_can_be_copied(name: str, tmp_path: Path) -> None:
    shutil.copy(RULES / f"{name}.toml", tmp_path / "mine.toml")
    assert load_target(str(tmp_path / "mine.toml")) == dataclasses.replace(load_target(name), name="mine")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('activation = "uint8"', 'activation = "uint7"', "activation is 'uint7': choose one of uint8, int8"),
        ('bias = "int32"', "", "lacks bias"),
        ('bias = "int32"', 'bias = "int32"\nspeed = 2', "has the unknown rule speed"),
        ("wbits = [2, 8]", "wbits = [8, 2]", r"wbits is \[8, 2\]: expected \[lowest, highest\] within 2 and 8"),
        ('"packed"', '"crushed"', "containers has the unknown 'crushed'"),
        ("[19, 25]", "[19, ", "cannot be read as TOML"),
        ('activation = "uint8"', 'activation = "int8"', "int8 activations need zero_point 'zero'"),
        ('zero_point = "any"', 'zero_point = "zero"', "needs int8 activations"),
        ("wide_abits = []", "wide_abits = [12]", r"wide_abits is \[12\]: expected \[\] or \[16\]"),
        ("wide_abits = []", "wide_abits = [16]", "needs uint8 activations, bounds 'float' and opset 21"),
    ],
)
def test_rules_that_break_their_form(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (RULES / "ort.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=says):
        load_target(str(file))


def test_settings_that_the_rules_exclude(tmp_path: Path) -> None:
    file = tmp_path / "eight.toml"
    file.write_text((RULES / "qnn.toml").read_text().replace("wbits = [2, 8]", "wbits = [4, 8]"))
    with pytest.raises(
        SettingsError, match=r"target eight: --wbits, --abits asks for 2-bit weights; its rules allow 4 to 8"
    ):
        Settings(wbits=2, target=str(file))
    with pytest.raises(SettingsError, match="--bits 'head' asks for 3-bit weights"):
        Settings(target=str(file), bits=(BitRule("head", 3, None),))
    for options, says in (
        (
            {"target": "tensorrt", "container": "packed"},
            "target tensorrt has no container 'packed': choose one of int8",
        ),
        ({"target": "tensorrt", "method": "lapq"}, "method lapq does not keep"),
        ({"target": "qnn", "method": "aciq"}, "cannot hold widths a channel"),
        ({"target": "abacus"}, "target 'abacus' is neither ort, openvino"),
    ):
        with pytest.raises(SettingsError, match=says):
            Settings(**options)


# --- the command -----------------------------------------------------------------------------------------------------


def test_quantize_and_convert_for_a_target(here: Path) -> None:
    nearest = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--samples", "8", "--threads", "1")
    result = works(*nearest, "--target", "tensorrt", "-o", "trt.onnx")
    assert "nothing here runs this target; its rules were checked" in result.stdout
    assert not broken_rules(onnx.load("trt.onnx"), load_target("tensorrt"))
    works("validate", "model.onnx", "trt.onnx", "--data", "images", "--repeats", "0")
    works(*nearest, "-o", "plain.onnx")
    said = works("convert", "plain.onnx", "--target", "portable").stdout
    assert "ort -> portable" in said
    assert "the same bit for bit" in said
    assert not broken_rules(onnx.load("plain_portable.onnx"), load_target("portable"))
    fails(
        "convert",
        "plain.onnx",
        "--target",
        "tensorrt",
        code=2,
        says=("asymmetric codes of 8 bits", "--target tensorrt"),
    )
    fails("convert", "plain.onnx", "--target", "qnn", "--container", "typed", code=2, says=("no container 'typed'",))
    fails("convert", "plain_portable.onnx", "--target", "qnn", says=("was written for target portable",))
    fails("convert", "plain.onnx", "--target", "abacus", code=2, says=("abacus",))


def on_sample(*more: str) -> tuple[str, ...]:
    """Quantize the sample without learning."""
    model, calib = str(SAMPLES / "digits.onnx"), str(SAMPLES / "calib")
    return "quantize", model, "--calib", calib, "--method", "nearest", "--samples", "64", "--threads", "1", *more


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_the_sample_for_every_target_in_every_container(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file keeps the rules, is opened by its runtime where that is installed, and predicts what FP32 does."""
    monkeypatch.chdir(tmp_path)
    rules = load_target(target)
    said = works(*on_sample("--target", target, "-o", "int8.onnx")).stdout
    if rules.runtime == "openvino":
        assert ("OpenVINO 20" if find_spec("openvino") else "pip install openvino") in said
    for container in (name for name in CONTAINER_NAMES if name != "int8"):
        convert = ("convert", "int8.onnx", "--container", container, "-o", f"{container}.onnx")
        if container in rules.containers:
            assert "the same bit for bit" in works(*convert).stdout
        else:
            fails(*convert, code=2, says=(f"target {target} has no container '{container}': choose one of",))
            fails(
                *on_sample("--target", target, "--container", container), code=2, says=(f"no container '{container}'",)
            )
            assert not Path(f"{container}.onnx").exists()
    for container in rules.containers:
        model = onnx.load(f"{container}.onnx")
        assert (target_of(model), container_of(model)) == (target, container)
        if container != "typed":  # the rules are about codes of 8 bits
            assert not broken_rules(model, rules)
        data = ("--data", str(SAMPLES / "val"), "--repeats", "0", "--json", "v.json")
        works("validate", str(SAMPLES / "digits.onnx"), f"{container}.onnx", *data)
        assert json.loads(Path("v.json").read_text())["quantized"]["top1"]["value"] > 0.8


def test_a_runtime_that_is_not_installed_is_said_by_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.runtimes.others.importlib.util.find_spec", lambda _name: None)
    said = works(*on_sample("--target", "openvino", "-o", "ov.onnx")).stdout
    assert "target openvino: not opened: OpenVINO is not installed (pip install openvino)" in " ".join(said.split())


def test_openvino_predicts_on_the_sample_what_onnx_runtime_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every convolution in integers, also behind an Add, and the same predictions: nothing in between stays unrounded."""
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    works(*on_sample("-o", "plain.onnx"))
    for container in ("int8", "packed"):
        works("convert", "plain.onnx", "--target", "openvino", "--container", container, "-o", "ov.onnx")
        model = onnx.load("ov.onnx")
        specs = input_specs(open_session(model))
        images = open_validation(SAMPLES / "val", specs, stored_preprocess(open_session(model), "ov.onnx"))
        feeds_all = next(iter(images.batches(450)))[0]
        opened = open_with(load_target("openvino"), model, feeds_all)
        assert opened.agreement is not None
        assert opened.agreement >= 0.985
        assert opened.kernels["Convolution I8"] == sum(n.op_type == "Conv" for n in model.graph.node)
        assert not any(name.startswith("Convolution") and name != "Convolution I8" for name in opened.kernels)
        assert opened.kernels["Eltwise I8"] >= sum(n.op_type == "Add" for n in model.graph.node)


@pytest.mark.parametrize("option", ["--wbits", "--abits"])
def test_widths_that_the_rules_exclude_end_the_command(here: Path, option: str) -> None:
    rules = (RULES / "qnn.toml").read_text()
    Path("eight.toml").write_text(rules.replace(f"{option[2:]} = [2, 8]", f"{option[2:]} = [8, 8]"))
    what = {"--wbits": "weights", "--abits": "activations"}[option]
    fails(
        "quantize", "model.onnx", "--calib", "images", "--target", "eight.toml", option, "3",
        code=2, says=(f"target eight: --wbits, --abits asks for 3-bit {what}; its rules allow 8 to 8",),
    )  # fmt: skip


def test_a_file_of_another_tool_is_not_converted(here: Path) -> None:
    says = ("model.onnx: was not written by mrecg-onnx quantize",)
    fails("convert", "model.onnx", "--container", "packed", says=says)
    fails("convert", "model.onnx", "--target", "openvino", says=says)
    Path("text.onnx").write_text("no model")
    fails("convert", "text.onnx", "--container", "packed", says=("text.onnx",))


def test_an_add_and_the_convolution_in_front_stay_apart_for_openvino() -> None:
    aimed = retarget(quantized("residual", "openvino"), load_target("openvino"))
    made = {o: n for n in aimed.graph.node for o in n.output}
    pooled = [n for n in aimed.graph.node if n.op_type == "MaxPool"]
    assert [made[n.input[0]].op_type for n in pooled] == ["QuantizeLinear"] * 3  # one Add has one, the other two
    assert not any(n.op_type == "MaxPool" for n in retarget(quantized("residual"), load_target("qnn")).graph.node)


@pytest.mark.parametrize("target", OTHERS)
def test_branches_of_a_stream_are_plain(target: str) -> None:
    settings = {"wbits": 4, "abits": 4, "target": target}
    graph = normalize(residual())
    assert branch_narrow_reads(graph, Settings(**settings)) == 1
    stage = simulated(graph, tensors(residual()), **settings)
    plain = export(stage.graph, stage.simulation, {"mrecg_onnx.version": "test"}).model
    aimed = retarget(plain, load_target(target))
    assert [n.op_type for model in (plain, aimed) for n in model.graph.node].count("LeakyRelu") == 1
    for x, y in zip(outputs(plain), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)
