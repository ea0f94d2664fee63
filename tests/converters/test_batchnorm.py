"""BatchNormalization that no Conv in front takes: merged into the layers behind, or a depthwise convolution between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from helpers.stages import planned, simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mrecg_onnx.converters import check_parity, normalize, to_torch
from mrecg_onnx.inspecting.inspection import inspect
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.planning.activations import is_bridge
from mrecg_onnx.quantization import quantize
from mrecg_onnx.rewriting import apply_scale, find_streams
from mrecg_onnx.running import fused_op_counts, open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

if TYPE_CHECKING:
    from pathlib import Path

NORM = "BatchNormalization"


def weights(*shape: int) -> np.ndarray:
    random = np.random.default_rng(list(shape))
    return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def statistics(channels: int, seed: int = 0) -> list[np.ndarray]:
    """gamma (one negative), beta, mean, variance."""
    random = np.random.default_rng(seed)
    gamma = random.uniform(0.5, 1.5, channels).astype(np.float32)
    gamma[0] *= -1
    beta, mean = random.normal(0, 0.5, (2, channels)).astype(np.float32)
    return [gamma, beta, mean, random.uniform(0.3, 2, channels).astype(np.float32)]


def parse(body: str, opset: int = 17, outputs: str = "float[n, 4, oh, ow] y", **constants: Any) -> onnx.ModelProto:
    """``body`` from x [n, 3, 12, 12] on; ``n1`` and so on stand for the statistics of a BatchNormalization."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[n, 3, 12, 12] x) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def norm(name: str, source: str, made: str) -> str:
    return f"[{name}] {made} = {NORM} ({source}, {name}g, {name}b, {name}m, {name}v)"


def params(*names: str, channels: int = 8) -> dict[str, np.ndarray]:
    return {
        name + kind: value
        for seed, name in enumerate(names)
        for kind, value in zip("gbmv", statistics(channels, seed), strict=True)
    }


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 12, 12)).astype(np.float32)


def preact(blocks: int = 2) -> onnx.ModelProto:
    """A ResNet with pre-activation: stem, blocks of BN, Relu, Conv, BN, Relu, Conv and a sum, then BN, Relu, pool, classifier."""
    body, last, constants = ["[stem] s = Conv <pads = [1, 1, 1, 1]> (x, w)"], "s", {"w": weights(8, 3, 3, 3)}
    for i in range(blocks):
        body += [
            norm(f"n{i}", last, f"a{i}"), f"b{i} = Relu (a{i})", f"[conv{i}] c{i} = Conv <pads = [1, 1, 1, 1]> (b{i}, w{i})",
            norm(f"m{i}", f"c{i}", f"d{i}"), f"e{i} = Relu (d{i})", f"[second{i}] f{i} = Conv <pads = [1, 1, 1, 1]> (e{i}, v{i})",
            f"[add{i}] t{i} = Add ({last}, f{i})",
        ]  # fmt: skip
        last = f"t{i}"
        constants |= {f"w{i}": weights(8, 8, 3, 3), f"v{i}": weights(8, 8, 3, 3) / 2, **params(f"n{i}", f"m{i}")}
    body += [
        norm("last", last, "o"),
        "p = Relu (o)",
        "q = GlobalAveragePool (p)",
        "r = Flatten (q)",
        "[fc] y = Gemm (r, wf)",
    ]
    constants |= {**params("last"), "wf": weights(8, 5)}
    return parse(" ".join(body), outputs="float[n, 5] y", **constants)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_same(model: onnx.ModelProto) -> ir.Model:
    graph, x = normalize(model), {"x": images(2)}
    expected, found = (open_session(m, level="off").run(None, x) for m in (model, ir.to_proto(graph)))
    for own, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, own, rtol=1e-4, atol=1e-5 * np.abs(own).max())
    assert check_parity(model, to_torch(graph), x) < 1e-5
    return graph


BEHIND = "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Relu (a)"


class TestForm:
    @pytest.mark.parametrize("groups", [1, 2, 8])
    @pytest.mark.parametrize("bias", [False, True])
    def test_a_layer_without_pads_takes_it(self, groups: int, bias: bool) -> None:
        inputs = "c, v, u" if bias else "c, v"
        body = f"{BEHIND} {norm('n', 'b', 'c')} y = Conv <group = {groups}> ({inputs})"
        more = {"u": weights(8)} if bias else {}
        graph = assert_same(
            parse(
                body,
                outputs="float[n, 8, h, k] y",
                w=weights(8, 3, 3, 3),
                v=weights(8, 8 // groups, 3, 3),
                **more,
                **params("n"),
            )
        )
        assert ops(graph) == ["Conv", "Relu", "Conv"]

    def test_all_its_readers_take_it_or_none(self) -> None:
        body = f"{BEHIND} {norm('n', 'b', 'c')} d = Conv (c, v) e = Conv <{{}}> (c, v) y = Add (d, e)"
        constants = {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 1, 1), **params("n")}
        assert ops(assert_same(parse(body.replace("<{}>", ""), **constants))) == ["Conv", "Relu", "Conv", "Conv", "Add"]
        padded = "<kernel_shape = [1, 1], pads = [1, 1, 1, 1], strides = [2, 2]>"
        model = parse(body.replace("<{}>", padded).replace("y = Add (d, e)", "y = Identity (e) z = Identity (d)"),
                      outputs="float[n, 4, h, k] y, float[n, 4, l, m] z", **constants)  # fmt: skip
        assert ops(assert_same(model)) == ["Conv", "Relu", "Conv", "Conv", "Conv"]

    def test_a_padded_layer_takes_a_scale_and_no_shift(self) -> None:
        body = f"{BEHIND} {norm('n', 'b', 'c')} y = Conv <pads = [1, 1, 1, 1]> (c, v)"
        constants = {"w": weights(8, 3, 3, 3), "v": weights(4, 8, 3, 3), **params("n")}
        assert ops(assert_same(parse(body, **constants))) == ["Conv", "Relu", "Conv", "Conv"]
        constants["nb"] = constants["nm"] = np.zeros(8, np.float32)
        assert ops(assert_same(parse(body, **constants))) == ["Conv", "Relu", "Conv"]

    def test_a_gemm_takes_it(self) -> None:
        body = f"{BEHIND} p = GlobalAveragePool (b) f = Flatten (p) {norm('n', 'f', 'c')} y = Gemm <transB = {{}}> (c, v, u)"
        for transposed, shape in ((0, (8, 5)), (1, (5, 8))):
            model = parse(
                body.format(transposed),
                outputs="float[n, 5] y",
                w=weights(8, 3, 3, 3),
                v=weights(*shape),
                u=weights(5),
                **params("n"),
            )
            assert NORM not in ops(assert_same(model))

    def test_what_no_layer_takes_is_a_depthwise_layer_with_its_name(self) -> None:
        graph = assert_same(preact())
        bridges = [node for node in graph.graph if is_bridge(node)]
        assert [node.name for node in bridges] == ["n0", "n1", "last"]
        assert [node.outputs[0].name for node in bridges] == ["a0", "a1", "o"]
        assert NORM in ops(normalize(preact(), keep_batchnorm=True))

    def test_an_output_keeps_its_name_and_statistics_that_are_computed_their_node(self) -> None:
        body = f"{BEHIND} {norm('n', 'b', 'y')}"
        graph = assert_same(parse(body, outputs="float[n, 8, h, k] y", w=weights(8, 3, 3, 3), **params("n")))
        assert ops(graph) == ["Conv", "Relu", "Conv"]
        body = f"{BEHIND} d = ReduceMean <axes = [0, 2, 3], keepdims = 0> (b) y = {NORM} (b, ng, d, nm, nv)"
        graph = assert_same(parse(body, outputs="float[n, 8, h, k] y", w=weights(8, 3, 3, 3), **params("n")))
        assert NORM in ops(graph)


class TestPlan:
    def test_bridges_are_no_first_or_last_layers_and_cost_no_width(self) -> None:
        model = preact()
        body = model.graph.node
        first = onnx.helper.make_node(NORM, ["x", "ig", "ib", "im", "iv"], ["x0"], name="data")
        body[0].input[0] = "x0"
        body.insert(0, first)
        for kind, value in zip("gbmv", statistics(3), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(value, f"i{kind}"))
        _, plan = planned(model, wbits=4, abits=4)
        layers = {layer.name: layer for layer in plan.layers}
        assert {n for n, layer in layers.items() if layer.first} == {"stem"}
        assert {n for n, layer in layers.items() if layer.last} == {"fc"}
        assert {(layer.wbits, layer.abits) for layer in plan.layers if layer.bridge} == {(8, 8)}
        widths = {a.name: a.bits for a in plan.activations}
        assert widths["s"] == widths["t0"] == 8  # what a bridge and a sum read
        assert widths["b0"] == widths["e1"] == 4

    def test_units_are_those_that_there_are_with_batchnormalization(self) -> None:
        _, plan = planned(preact(3))
        assert [[n for n in unit.layers if n[0] not in "nl"] for unit in plan.units] == [
            ["stem"], ["conv0", "second0"], ["conv1", "second1"], ["conv2", "second2"], ["fc"],
        ]  # fmt: skip
        assert sorted(n for unit in plan.units for n in unit.layers) == sorted(layer.name for layer in plan.layers)

    def test_inspect_lists_them(self) -> None:
        found = inspect(preact())
        assert [layer.name for layer in found.plan.layers if layer.bridge] == ["n0", "n1", "last"]


@given(st.lists(st.floats(0.05, 20), min_size=8, max_size=8))
@settings(max_examples=20, deadline=None)
def test_channels_are_rescaled_through_it(scale: list[float]) -> None:
    graph = normalize(preact(1))
    streams = {s.name: s for s in find_streams(graph)}
    assert "n0" in streams["s"].consumers
    assert streams["a0"].producers == ("n0",)
    before = to_torch(graph)(torch.from_numpy(images(2)))
    for name in ("s", "a0"):
        apply_scale(graph, streams[name], scale)
    after = to_torch(graph)(torch.from_numpy(images(2)))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


class TestFile:
    @pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
    def test_everything_between_the_ends_runs_in_integers(self, bits: tuple[int, int]) -> None:
        stage = simulated(preact(), {"x": torch.from_numpy(images(32))}, wbits=bits[0], abits=bits[1])
        result = export(stage.graph, stage.simulation, {})
        counts = fused_op_counts(result.model)
        assert (counts["QLinearConv"], counts["QLinearAdd"], counts["QGemm"]) == (8, 2, 1)
        assert not counts.keys() & {"Conv", "FusedConv", NORM, "Mul", "Add"}
        off, default = (
            open_session(result.model, level=level).run(None, {"x": images()})[0] for level in ("off", "all")
        )
        assert sqnr_db(off, default) > 20
        exact = {name: float((w.dequantize() - own).abs().max() / own.abs().max()) for name, w, own in _bridges(stage)}
        assert max(exact.values()) < 1e-6

    def test_w8a8_keeps_the_network(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", images(64))
        for method, more in (("nearest", {}), ("brecq", {"iters": 20}), ("adaround", {"iters": 20})):
            chosen = Settings(wbits=8, abits=8, method=method, threads=1, samples=32, **more)
            result = quantize(preact(), tmp_path / "x.npy", chosen)
            assert not result.verification.warnings
            expected, found = (open_session(m).run(None, {"x": images()})[0] for m in (preact(), result.model))
            assert sqnr_db(expected, found) > 25

    @pytest.mark.parametrize("target", ["openvino", "tensorrt", "qnn", "portable"])
    def test_other_targets_take_it(self, tmp_path: Path, target: str) -> None:
        np.save(tmp_path / "x.npy", images(16))
        result = quantize(
            preact(), tmp_path / "x.npy", Settings(wbits=8, abits=8, method="nearest", threads=1, target=target)
        )
        expected, found = (open_session(m).run(None, {"x": images()})[0] for m in (preact(), result.model))
        assert sqnr_db(expected, found) > 25

    def test_budgets_leave_it_alone(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", images(16))
        result = quantize(
            preact(), tmp_path / "x.npy", Settings(wbits=4, abits=4, method="nearest", threads=1, avg_wbits=3.0)
        )
        assert {layer.wbits for layer in result.plan.layers if layer.bridge} == {8}


def _bridges(stage: Any) -> list[tuple[str, Any, torch.Tensor]]:
    return [
        (layer.name, stage.simulation.weights[layer.name], stage.network.step(layer.name).module.weight)
        for layer in stage.plan.layers
        if layer.bridge
    ]
