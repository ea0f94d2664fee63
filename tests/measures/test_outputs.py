"""Networks with several outputs: heads at different depths and of different magnitude, none drowning another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers.stages import feeds, simulated, tensors
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.calibrating.sensitivity import measure_sensitivity
from mrecg_onnx.commands import main
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning.losses import output_weights
from mrecg_onnx.machine.cache import Pool, Store
from mrecg_onnx.machine.parallel import ALONE
from mrecg_onnx.measures import Heads, likeness, sqnr_db
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import ValidationResult, validate
from mrecg_onnx.widths.costs import measure_costs

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(7)
PAD = {"pads": [1, 1, 1, 1]}


def weight(*shape: int) -> np.ndarray:
    """He-scaled random weights."""
    return (RNG.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(","), outputs.split(","), name=f"{op}_{outputs}", **attributes)


def model(
    nodes: list[onnx.NodeProto], outputs: dict[str, Any], constants: dict[str, Any], types: dict[str, int] | None = None
) -> onnx.ModelProto:
    """A model on images of 3 x 16 x 16 with those outputs (their shapes behind the batch)."""
    types = types or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), ["n", *shape])
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def heads() -> onnx.ModelProto:
    """Two heads at different depths, the stream behind the first one badly balanced."""
    second, third = weight(8, 8, 1, 1), weight(4, 8, 1, 1)
    second[3] *= 100
    third[:, 3] /= 100
    nodes = [
        node("Conv", "x,w1", "a"), node("Relu", "a", "b"), node("Conv", "b,wh", "early"),
        node("Conv", "b,w2", "c"), node("Relu", "c", "d"), node("Conv", "d,w3", "late"),
    ]  # fmt: skip
    constants = {"w1": weight(8, 3, 1, 1), "wh": weight(2, 8, 1, 1), "w2": second, "w3": third}
    return model(nodes, {"early": [2, 16, 16], "late": [4, 16, 16]}, constants)


def detector(*outputs: str, offset: float = 320.0, unit: float = 1.0) -> onnx.ModelProto:
    """Scores, and boxes in pixels; an unbalanced stream hurts the scores alone, ``offset`` and ``unit`` are the boxes'."""
    random = np.random.default_rng(3)
    first, second = (random.standard_normal(shape).astype(np.float32) / 5 for shape in ((16, 3, 3, 3), (16, 16, 3, 3)))
    first[4] *= 300
    second[:, 4] /= 300
    rest = {
        n: random.standard_normal(s).astype(np.float32) / 4
        for n, s in {"w3": (4, 16, 1, 1), "w4": (4, 16, 1, 1)}.items()
    }
    nodes = [
        node("Conv", "x,w1", "a", **PAD), node("Relu", "a", "b"), node("Conv", "b,w2", "c", **PAD), node("Relu", "c", "d"),
        node("Conv", "d,w3", "scores"), node("Conv", "d,w4", "raw"), node("Mul", "raw,unit", "scaled"),
        node("Add", "scaled,offset", "boxes"),
    ]  # fmt: skip
    constants = {"w1": first, "w2": second, **rest, "unit": np.float32(unit), "offset": np.float32(offset)}
    whole = model(nodes, {name: [4, 16, 16] for name in outputs}, constants)
    if "boxes" not in outputs:
        del whole.graph.node[-3:]
        for name in ("w4", "unit", "offset"):
            whole.graph.initializer.remove(next(t for t in whole.graph.initializer if t.name == name))
    return whole


def segmentation() -> onnx.ModelProto:
    """A map at the input's size, an auxiliary one from further in front, and the classes of the first."""
    nodes = [
        node("Conv", "x,w1", "a", strides=[2, 2], **PAD), node("Relu", "a", "b"), node("Conv", "b,wa", "low"),
        node("Resize", "low,,s2", "aux", mode="nearest"), node("Conv", "b,w2", "c", strides=[2, 2], **PAD),
        node("Relu", "c", "d"), node("Conv", "d,w3", "e"), node("Resize", "e,,s4", "out", mode="nearest"),
        node("ArgMax", "out", "classes", axis=1, keepdims=0),
    ]  # fmt: skip
    constants = {
        "w1": weight(8, 3, 3, 3), "wa": weight(5, 8, 1, 1), "w2": weight(12, 8, 3, 3), "w3": weight(5, 12, 1, 1),
        "s2": np.float32([1, 1, 2, 2]), "s4": np.float32([1, 1, 4, 4]),
    }  # fmt: skip
    shapes = {"out": [5, 16, 16], "aux": [5, 16, 16], "classes": [16, 16]}
    return model(nodes, shapes, constants, {"classes": TensorProto.INT64})


def keypoints() -> onnx.ModelProto:
    """Heatmaps, offsets in pixels that later layers read, too, and a depth map of those."""
    nodes = [
        node("Conv", "x,w1", "a", **PAD), node("Relu", "a", "b"), node("Conv", "b,wo", "o"), node("Mul", "o,unit", "offsets"),
        node("Conv", "b,wh", "h"), node("Sigmoid", "h", "heat"), node("Conv", "offsets,w2", "c", **PAD),
        node("Relu", "c", "d"), node("Conv", "d,w3", "depth"),
    ]  # fmt: skip
    constants = {
        "w1": weight(8, 3, 3, 3), "wo": weight(4, 8, 1, 1), "wh": weight(2, 8, 1, 1), "w2": weight(6, 4, 3, 3) / 50,
        "w3": weight(1, 6, 1, 1), "unit": np.float32(64),
    }  # fmt: skip
    return model(nodes, {"heat": [2, 16, 16], "offsets": [4, 16, 16], "depth": [1, 16, 16]}, constants)


def distances(float_model: onnx.ModelProto, result: QuantizationResult) -> dict[str, float]:
    """SQNR of every float output at the default level against the float model, dB."""
    fed = feeds(float_model, 32)
    wanted, made = (run_padded(open_session(m), fed) for m in (float_model, result.model))
    return {n: sqnr_db(r, made[n]) for n, r in wanted.items() if r.dtype.kind == "f"}


@pytest.mark.parametrize("method", ["nearest", "brecq", "adaround", "lapq", "aciq"])
@pytest.mark.parametrize("make", [heads, segmentation, keypoints])
def test_heads_at_different_depths_go_through_every_kind_of_method(make, method, tmp_path):
    source = make()
    np.savez(tmp_path / "calib.npz", **feeds(source, 32))
    settings = Settings(wbits=8, abits=8, method=method, iters=10, lapq_evaluations=10, lapq_images=16)
    result = quantize(source, tmp_path / "calib.npz", settings)
    assert min(distances(source, result).values()) > 25


@pytest.mark.parametrize(
    "settings", [{"loss": "fisher"}, {"bias_correction": True}, {"protect": 1}, {"avg_wbits": 4.0}]
)
def test_heads_at_different_depths_go_with_what_else_looks_at_outputs(settings, tmp_path):
    source = heads()
    np.savez(tmp_path / "calib.npz", **feeds(source, 32))
    result = quantize(source, tmp_path / "calib.npz", Settings(wbits=4, abits=4, iters=10, method="brecq", **settings))
    assert min(distances(source, result).values()) > 3


def test_an_output_in_pixels_does_not_drown_the_scores(tmp_path):
    alone, both = detector("scores"), detector("scores", "boxes", unit=100.0)
    np.savez(tmp_path / "calib.npz", **feeds(alone, 32))
    found = [quantize(m, tmp_path / "calib.npz", Settings(wbits=8, abits=8, method="nearest")) for m in (alone, both)]
    assert [e.alpha > 0 for e in found[1].equalized] == [e.alpha > 0 for e in found[0].equalized]
    assert any(e.alpha > 0 for e in found[0].equalized)
    scores = [distances(m, r)["scores"] for m, r in zip((alone, both), found, strict=True)]
    assert scores[1] > scores[0] - 1
    assert scores[1] > 25


def test_sensitivities_and_costs_do_not_depend_on_an_outputs_unit_of_measure():
    rows = []
    for source in (detector("scores", "boxes", offset=0), detector("scores", "boxes", offset=320, unit=64)):
        stage = simulated(source, wbits=4, abits=4)
        found = {s.name: s.error for s in measure_sensitivity(stage.simulation, stage.data)}
        costs = measure_costs(
            stage.network,
            stage.plan,
            tensors(source, 32),
            Settings(method="nearest"),
            layers={x.name: (4,) for x in stage.plan.quantized_layers},
            tensors={a.name: (4,) for a in stage.plan.activations},
        )
        rows.append((found, {n: x[4] for n, x in (costs.weights | costs.tensors).items()}))
    for plain, pixels in zip(*rows, strict=True):
        assert plain.keys() == pixels.keys()
        # The grid of the boxes themselves has to reach from 0 to where they are.
        assert all(pixels[n] == pytest.approx(plain[n], rel=0.02, abs=1e-6) for n in plain if n != "boxes")


def test_a_quantizer_behind_an_output_does_not_count_at_that_output():
    stage = simulated(keypoints(), wbits=8, abits=2)
    found = {s.name: s.error for s in measure_sensitivity(stage.simulation, stage.data)}
    assert "offsets" in found
    reference = stage.network.run(stage.data)
    hook = stage.simulation.activation_hook({"offsets"})
    moved = stage.network.run(stage.data, activation=hook)["depth"]
    error = float((moved - reference["depth"]).square().mean() / reference["depth"].var(correction=0))
    assert found["offsets"] == pytest.approx(np.sqrt(error / 3), rel=1e-4)


def test_a_units_outputs_weigh_alike_and_one_alone_as_ever():
    pool = Pool()
    values = {"scores": torch.randn(8, 4), "pixels": 300 + 100 * torch.randn(8, 4)}
    stores = {}
    for name, x in values.items():
        stores[name] = Store(pool, 8)
        stores[name].write(0, x)
    found = output_weights(stores, 2.0, ALONE)
    ratio = float(values["pixels"].var(correction=0) / values["scores"].var(correction=0))
    assert found["scores"] / found["pixels"] == pytest.approx(ratio, rel=1e-3)
    assert found["scores"] * found["pixels"] == pytest.approx(1)
    assert output_weights({"pixels": stores["pixels"]}, 2.0, ALONE) == {"pixels": 1.0}


# --- what may be called classes ----------------------------------------------------------------------------------


def dense(
    outputs: int, *behind: onnx.NodeProto, inputs: int = 12, scale: float = 3.0, **constants: Any
) -> onnx.ModelProto:
    """Two Gemms on [n, inputs], which make ``h``, and what is behind, which makes ``y``."""
    nodes = [node("Gemm", "x,w1", "a"), node("Relu", "a", "b"), node("Gemm", "b,w2", "h" if behind else "y"), *behind]
    constants |= {"w1": weight(16, inputs).T.copy(), "w2": scale * weight(outputs, 16).T.copy()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compared(source: onnx.ModelProto, folder: Path, **options: Any) -> ValidationResult:
    """A model against itself."""
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in source.graph.input]
    random = np.random.default_rng(5)
    unlike = 3 * random.normal(size=(40, shapes[0][0], *[1] * (len(shapes[0]) - 1)))
    np.save(folder / "x.npy", (unlike + random.normal(size=(40, *shapes[0]))).astype(np.float32))
    return validate(source, source, folder / "x.npy", repeats=0, **options)


SOFTMAX = node("Softmax", "h", "y")


@pytest.mark.parametrize(
    ("source", "classes"),
    [
        (dense(5), True),
        (dense(5, SOFTMAX), True),
        (dense(5, node("LogSoftmax", "h", "y")), True),
        (dense(5, node("Add", "h,bias", "y"), bias=np.float32([0.1, 0, 0, 0, 0])), True),
        (dense(12), False),  # a reconstruction: as many values as the input
        (dense(5, node("Sigmoid", "h", "y")), False),  # several at a time, or pixels
        (dense(5, node("LpNormalization", "h", "y", axis=1)), False),  # an embedding
        (dense(4, node("Add", "h,where", "y"), where=np.float32([0, 0, 300, 200])), False),  # boxes in pixels
        (dense(5, scale=0.05), False),  # a regression of small numbers
        (dense(1), False),
    ],
    ids=["logits", "softmax", "log", "bias", "reconstruction", "sigmoid", "embedding", "boxes", "small", "one"],
)
def test_rows_are_classes_only_where_they_behave_like_them(source, classes, tmp_path):
    found = compared(source, tmp_path)
    assert (found.agreement == 1.0) if classes else (found.agreement is None)
    assert found.scores == ("y" if classes else None)
    assert classes == (not any("no agreement" in warning for warning in found.warnings))
    assert any("no labels: agreement only" in warning for warning in found.warnings) == classes
    assert found.sqnr_db == np.inf


def several() -> onnx.ModelProto:
    """Boxes in front, class scores behind, and the index of the largest."""
    nodes = [
        node("Conv", "x,w1", "a", **PAD), node("Relu", "a", "b"), node("GlobalAveragePool", "b", "p"), node("Flatten", "p", "f"),
        node("Gemm", "f,wb", "raw"), node("Add", "raw,where", "boxes"), node("Gemm", "f,ws", "scores"),
        node("ArgMax", "scores", "top", axis=1, keepdims=0),
    ]  # fmt: skip
    constants = {
        "w1": weight(8, 3, 3, 3),
        "wb": weight(8, 4),
        "ws": 40 * weight(8, 6),
        "where": np.float32([9, 9, 300, 200]),
    }
    return model(nodes, {"boxes": [4], "scores": [6], "top": []}, constants, {"top": TensorProto.INT64})


def test_beside_other_outputs_scores_are_chosen_by_name(tmp_path):
    source = several()
    whole = compared(source, tmp_path)
    assert (whole.agreement, whole.scores) == (None, None)
    assert "--outputs NAME" in whole.warnings[0]
    assert whole.equal_by_output == {"top": 1.0}
    assert list(whole.sqnr_by_output) == ["boxes", "scores"]
    chosen = compared(source, tmp_path, outputs=["scores"])
    assert (chosen.agreement, chosen.scores) == (1.0, "scores")
    assert list(chosen.sqnr_by_output) == ["scores"]
    assert chosen.equal_by_output == {}
    with pytest.raises(SettingsError, match=r"--outputs score: .*did you mean scores"):
        compared(source, tmp_path, outputs=["score"])


def test_probabilities_are_found_among_other_outputs(tmp_path):
    source = several()
    source.graph.node.append(node("Softmax", "scores", "chances"))
    source.graph.output.append(helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["n", 6]))
    assert compared(source, tmp_path).scores == "chances"


def test_the_worst_output_is_what_is_printed_first(tmp_path):
    source = detector("scores", "boxes")
    onnx.save(source, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", feeds(source, 32)["x"])
    quantized, report = tmp_path / "q.onnx", tmp_path / "r.json"
    common = ["--calib", str(tmp_path / "x.npy"), "--method", "nearest", "--wbits", "4", "--abits", "4"]
    made = CliRunner().invoke(main, ["quantize", str(tmp_path / "m.onnx"), *common, "-o", str(quantized)])
    assert made.exit_code == 0, made.output
    where = [str(tmp_path / "m.onnx"), str(quantized), "--data", str(tmp_path / "x.npy"), "--repeats", "0"]
    shown = CliRunner().invoke(main, ["validate", *where, "--json", str(report)])
    assert shown.exit_code == 0, shown.output
    figures = json.loads(report.read_text())["sqnr_by_output"]
    worst, best = sorted(figures, key=lambda name: figures[name])
    assert shown.output.index(f"{worst}: {figures[worst]:.1f} dB") < shown.output.index(
        f"{best}: {figures[best]:.1f} dB"
    )
    assert json.loads(report.read_text())["sqnr_db"] == figures[worst]
    one = CliRunner().invoke(main, ["validate", *where, "--outputs", best])
    assert f"{worst}:" not in one.output
    assert CliRunner().invoke(main, ["validate", *where, "--outputs", "nothing"]).exit_code == 2


def test_likeness_of_fewer_items() -> None:
    """The worst output first; items that the other run did not make are left out."""
    rng = np.random.default_rng(0)
    scores, features = rng.dirichlet(np.ones(5), 8).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    reference = {"features": features, "scores": scores, "count": np.arange(8)}
    found = {name: array[:4].copy() for name, array in reference.items()}
    found["scores"][0] = np.roll(found["scores"][0], 1)
    same, figures = likeness(reference, found, Heads(frozenset()))
    assert list(figures) == ["scores", "features"]
    assert figures["features"] == np.inf
    assert figures["scores"] == pytest.approx(sqnr_db(scores[:4], found["scores"]))
    assert same == 0.75
