from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph
from helpers.command_line import FAST, classifier, works, write_images
from onnx import numpy_helper

from mrecg_onnx import convert, validate
from mrecg_onnx.converters.module_names import NodeNames
from mrecg_onnx.data import Preprocess, open_validation
from mrecg_onnx.reporting.measuring import measure
from mrecg_onnx.running import input_specs, open_session
from mrecg_onnx.validating import int8_form, layers_of
from mrecg_onnx.validating.layer_errors import LayerErrors, measure_layers, weight_factors, with_outputs
from mrecg_onnx.validating.written_layers import Clamp, Codes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The float model, its file at W4A4 with 8 bits at the ends, and images."""
    folder = tmp_path_factory.mktemp("layers")
    onnx.save(classifier(), folder / "model.onnx")
    images = write_images(folder / "images", 24)
    command = ("quantize", folder / "model.onnx", "--calib", images, "--preprocess", "unit", "--method", "nearest")
    works(*command, "-o", folder / "quantized.onnx", *FAST)
    return folder


def measured(folder, name="quantized.onnx", **options) -> LayerErrors:
    specs = input_specs(open_session(folder / "model.onnx"))
    data = open_validation(folder / "images", specs, Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3), "none")
    return measure_layers(folder / "model.onnx", folder / name, data, **options)


def test_every_layer_is_compared_with_the_float_one(made):
    found = measured(made)
    assert [e.layer.name for e in found.layers] == [
        "stem", "conv1", "conv2", "depthwise", "project", "conv3", "conv4", "fc"
    ]  # fmt: skip
    by_name = {e.layer.name: e for e in found.layers}
    assert found.images == 24
    assert by_name["stem"].layer.wbits == 8
    assert by_name["conv2"].layer.wbits == by_name["conv2"].layer.abits == 4
    assert by_name["stem"].weights_db > 40
    assert 12 < by_name["conv2"].weights_db < 26  # 6 dB a bit
    assert all(e.makes_db > 5 for e in found.layers)
    assert by_name["stem"].makes_db > by_name["conv2"].makes_db
    assert [e.makes_db for e in found.worst_first] == sorted(e.makes_db for e in found.layers)


def test_a_layer_with_broken_weights_is_named_first(made, tmp_path):
    model = onnx.load(made / "quantized.onnx")
    (codes,) = [t for t in model.graph.initializer if t.name == "conv3.weight_quantized"]
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    onnx.save(model, tmp_path / "broken.onnx")
    found = measured(made, tmp_path / "broken.onnx")
    worst = found.worst_first[0]
    assert worst.layer.name == "conv3"
    assert worst.makes_db < 0
    assert worst.added > 100  # little of it comes from in front
    assert worst.weights_db == min(e.weights_db for e in found.layers)


def test_other_forms_of_a_file_have_the_same_layers(made, tmp_path):
    convert(made / "quantized.onnx", "packed", output=tmp_path / "packed.onnx")
    convert(made / "quantized.onnx", target="portable", output=tmp_path / "portable.onnx")
    first = measured(made)
    for name in ("packed", "portable"):
        other = measured(made, tmp_path / f"{name}.onnx")
        for one, same in zip(first.layers, other.layers, strict=True):
            assert (one.layer.name, one.layer.wbits, one.layer.abits) == (
                same.layer.name,
                same.layer.wbits,
                same.layer.abits,
            )
            assert same.weights_db == pytest.approx(one.weights_db)
            assert same.makes_db == pytest.approx(one.makes_db, abs=0.1)
            assert not same.layer.in_float


def test_channels_that_were_rescaled_count_as_they_are(made, tmp_path):
    """A layer whose outputs are eight times as large, and the next one's weights an eighth, computes the same."""
    model = onnx.load(made / "model.onnx")
    tensors = {t.name: t for t in model.graph.initializer}
    nodes = {n.name: n for n in model.graph.node}
    factor = 2.0 ** np.arange(8).astype(np.float32)[::-1] / 8
    first, second = nodes["conv1"], nodes["conv2"]
    for name, shape in ((first.input[1], (8, 1, 1, 1)), (first.input[2], (8,)), (second.input[1], (1, 8, 1, 1))):
        scale = factor.reshape(shape) if name != second.input[1] else 1 / factor.reshape(shape)
        tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * scale, name))
    onnx.save(model, tmp_path / "rescaled.onnx")
    images = ("--calib", made / "images", "--preprocess", "unit", "--method", "nearest", "--wbits", 8, "--abits", 8)
    works("quantize", made / "model.onnx", *images, "-o", tmp_path / "plain.onnx", *FAST)
    works("quantize", tmp_path / "rescaled.onnx", *images, "-o", tmp_path / "file.onnx", *FAST)
    for name, whole in (("plain.onnx", True), ("file.onnx", True)):
        found = {e.layer.name: e for e in measured(made, tmp_path / name).layers}
        assert (found["conv1"].makes_db > 25) is whole
        assert found["conv1"].weights_db > 35
        assert found["conv2"].weights_db > 35


def test_factors_of_weights_are_found_and_accidents_are_none():
    random = np.random.default_rng(0)
    plain = random.normal(size=(6, 4, 3, 3))
    out, ahead = np.exp(random.normal(size=6)), np.exp(random.normal(size=4))
    scaled = plain * out[:, None, None, None] * ahead[None, :, None, None]
    assert np.allclose(weight_factors(plain, scaled, "Conv", 1) * plain, scaled, rtol=1e-3)
    noisy = plain + 0.2 * random.normal(size=plain.shape)
    assert (weight_factors(plain, noisy, "Conv", 1) == 1).all()
    depthwise = random.normal(size=(6, 1, 3, 3))
    assert np.allclose(weight_factors(depthwise, depthwise * out[:, None, None, None], "Conv", 6)[:, 0, 0, 0], out)


def test_time_is_bounded(made):
    assert measured(made, seconds=0.0).images == 8  # one batch is always run


def test_a_float_model_has_float_layers(made):
    layers = layers_of(int8_form(onnx.load(made / "model.onnx")))
    assert {layer.wbits for layer in layers} == {32}
    assert {layer.in_float for layer in layers} == {"its weight is in float"}


def test_validate_shows_layers_on_request(made, tmp_path):
    command = ("validate", made / "model.onnx", made / "quantized.onnx", "--data", made / "images", "--repeats", 0)
    told = works(*command, "--layers", "--json", tmp_path / "found.json").stdout
    rows = [
        line.split()[0] for line in told.split("what it makes")[1].splitlines() if " Conv " in line or " Gemm " in line
    ]
    stored = json.loads((tmp_path / "found.json").read_text())["layers"]
    assert rows == [entry["name"] for entry in stored]
    assert [e["makes_db"] for e in stored] == sorted(e["makes_db"] for e in stored)
    assert "what it makes" not in works(*command).stdout
    assert validate(made / "model.onnx", made / "quantized.onnx", made / "images", repeats=0).layers is None


def clamped(kind: str) -> onnx.ModelProto:
    """Convolutions behind a clamp whose bounds the runtime takes into the codes."""
    g = Graph(3)
    x = g.conv(g.input(3), 3, 8, "stem")
    if kind == "by channel":
        most = g.constant("most", np.linspace(0.5, 4, 8, dtype=np.float32).reshape(1, 8, 1, 1))
        x = g.op("Min", [g.relu(x, "relu"), most], "clamp")
    else:
        low, high = {"Relu6": (0.0, 6.0), "Clip": (-2.0, 3.0), "Clip above 0": (0.5, 3.0)}[kind]
        x = g.clip(x, "clamp", low, high)
    x = g.op("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    g.conv(x, 8, 8, "next", output="output")
    return g.model()


@pytest.mark.parametrize("kind", ["Relu6", "Clip", "Clip above 0", "by channel"])
def test_a_clamp_that_became_bounds_of_codes_takes_nothing_off(kind: str, tmp_path: Path) -> None:
    plain, images = clamped(kind), 8 * np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
    onnx.save(plain, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images)
    works("quantize", tmp_path / "model.onnx", "--calib", tmp_path / "images.npy", "--method", "nearest", "--wbits", 8,
          "--abits", 8, "-o", tmp_path / "file.onnx", *FAST)  # fmt: skip
    data = open_validation(tmp_path / "images.npy", input_specs(open_session(tmp_path / "model.onnx")), None, "none")
    found = {e.layer.name: e for e in measure_layers(tmp_path / "model.onnx", tmp_path / "file.onnx", data).layers}
    codes = found["next"].layer.fed
    assert codes is not None
    assert codes.of == ("relu_out" if kind == "by channel" else "stem_out")  # the clamp is gone
    session = open_session(with_outputs(plain, ["clamp_out"]))
    values = session.run(None, {"input": images})[0].astype(np.float64)
    scale, zero = float(codes.scale), float(codes.zero)
    held = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    expected = 10 * np.log10(values.var() / np.square(values - held).mean())
    assert found["next"].rounds_db == pytest.approx(expected, abs=1)

    drawn = measure(tmp_path / "model.onnx", tmp_path / "file.onnx", data, names=NodeNames({})).histograms
    (picture,) = [h for h in drawn if h.title == "Input of next"]
    assert "nothing cut off" in picture.caption
    assert values.min() - scale <= picture.edges[0] < picture.edges[-1] <= values.max() + scale

    other = onnx.load(tmp_path / "file.onnx")  # as ONNX Runtime's tool leaves a clamp out: the name is what it made
    del other.metadata_props[:]
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = ["clamp_out" if name == codes.of else name for name in names]
    if kind != "by channel":  # what a Relu makes is a clamp's
        onnx.save(other, tmp_path / "other.onnx")
        found = {e.layer.name: e for e in measure_layers(tmp_path / "model.onnx", tmp_path / "other.onnx", data).layers}
        assert found["next"].rounds_db == pytest.approx(expected, abs=1)

    short = onnx.load(tmp_path / "file.onnx")
    for tensor in short.graph.initializer:
        if tensor.name == "clamp_out_scale":  # codes that end at half of what the clamp lets through
            tensor.CopyFrom(numpy_helper.from_array(np.float32(scale / 2), tensor.name))
    onnx.save(short, tmp_path / "short.onnx")
    found = {e.layer.name: e for e in measure_layers(tmp_path / "model.onnx", tmp_path / "short.onnx", data).layers}
    assert found["next"].rounds_db < expected - 20


def test_a_largest_code_for_each_channel_counts() -> None:
    values = np.array([1.0, 3.0, 5.0, 9.0]).reshape(1, 2, 2)
    ceiling = np.array([2, 6]).reshape(1, 2, 1)
    codes = Codes(np.zeros(()), np.float32(1), np.int64(0), None, 0, 7, "before", ceiling)
    assert codes.rounded(values).reshape(-1).tolist() == [1, 2, 5, 6]
    assert [part.reshape(-1).tolist() for part in codes.cut(values)] == [[False] * 4, [False, True, False, True]]
    own = Clamp("unscaled", "clamped", 0.0, np.float64(6))  # channels were rescaled, and so were their bounds
    assert codes.behind(own).given(values).reshape(-1).tolist() == [1, 2, 5, 6]
    assert codes.behind(None).given(values).reshape(-1).tolist() == [1, 3, 5, 9]  # widths of channels cut values off
