from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph, conv_relu, conv_transpose, two_inputs
from helpers.classifiers import CLASSES, classifier, outputs, qdq_conv
from helpers.learned import small
from helpers.providers import all_on_cpu
from helpers.stages import feeds
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import PREPROCESS_KEY, SOURCE_KEY, VERSION_KEY
from mrecg_onnx.data import InputSpec, Preprocess, open_validation
from mrecg_onnx.data.preprocess import IMAGENET_MEAN
from mrecg_onnx.measures import mcnemar_p, sqnr_db, wilson_interval
from mrecg_onnx.running import (
    Kernel,
    input_specs,
    open_session,
)
from mrecg_onnx.validating import gain_warnings, source_sha256, validate

RAW = Preprocess(mean=(0.0,), std=(1.0,), scale=1 / 128)


def coarse(model, bits=3):
    """The model with its weights rounded: stands in for a quantized file."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for tensor in rounded.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.ndim > 1:
            step = np.abs(w).max() / (2 ** (bits - 1) - 1)
            tensor.CopyFrom(
                numpy_helper.from_array(np.round(w / step).astype(np.float32) * np.float32(step), tensor.name)
            )
    return rounded


def with_metadata(model, **entries):
    for key, value in entries.items():
        helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, key: value})
    return model


@pytest.fixture
def rows(tmp_path):
    """37 ready inputs and their file: not a multiple of any batch used here."""
    x = np.random.default_rng(1).normal(size=(37, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x, tmp_path / "x.npy"


@pytest.fixture
def unlike(tmp_path):
    """37 ready inputs as unlike each other as images are, so that a classifier does not give one class to all."""
    random = np.random.default_rng(1)
    x = (random.normal(size=(37, 3, 8, 8)) + 8 * random.normal(size=(37, 3, 1, 1))).astype(np.float32)
    np.save(tmp_path / "unlike.npy", x)
    return x, tmp_path / "unlike.npy"


@pytest.fixture
def pair(tmp_path):
    """An FP32 file and a coarse version of it that names it as its source and says how images are prepared."""
    fp32, quantized = tmp_path / "fp32.onnx", tmp_path / "quantized.onnx"
    onnx.save(classifier(), fp32)
    metadata = {SOURCE_KEY: source_sha256(fp32), PREPROCESS_KEY: json.dumps(RAW.to_json())}
    onnx.save(with_metadata(coarse(classifier()), **metadata), quantized)
    return fp32, quantized


@pytest.fixture
def pictures(tmp_path):
    """40 pictures in folders named by what the FP32 model says about them; every fourth lies in the next class."""
    pixels = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 128
    said = outputs(classifier(), x).argmax(1)
    labels = np.where(np.arange(40) % 4 == 0, (said + 1) % CLASSES, said)
    for i, label in enumerate(labels):
        folder = tmp_path / "pictures" / f"{label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(folder / f"{i:02d}.png")
    return tmp_path / "pictures", x, labels


def test_validation_does_not_take_the_cpu_for_another_provider(monkeypatch, tmp_path):
    """ONNX Runtime registers the provider and gives it no node, or not all."""
    all_on_cpu(monkeypatch)
    np.save(tmp_path / "x.npy", next(iter(feeds(conv_relu(), 4).values())))
    with pytest.raises(SettingsError, match=r"the FP32 model: 'cuda' ran none of its nodes, CPUExecutionProvider"):
        validate(conv_relu(), conv_relu(), tmp_path / "x.npy", device="cuda", repeats=0)
    some = [Kernel("Conv", f"{name}ExecutionProvider", 1, 0.1) for name in ("CPU", "CUDA")]
    monkeypatch.setattr("mrecg_onnx.validating.validation.kernels", lambda *_args, **_more: some)
    result = validate(conv_relu(), conv_relu(), tmp_path / "x.npy", device="cuda", repeats=0)
    assert "the quantized model is not all on cuda: 1 of 2 nodes on CPUExecutionProvider" in result.warnings


# --- validate: numbers -------------------------------------------------------------------------------------------


def test_all_numbers_are_those_of_the_definitions(pair, pictures):
    folder, x, labels = pictures
    result = validate(*pair, folder, batch_size=7, repeats=3)
    f, q = (outputs(onnx.load(path), x) for path in pair)
    f_right, q_right = f.argmax(1) == labels, q.argmax(1) == labels
    assert result.images == 40
    assert result.skipped == ()
    assert result.fp32.top1.value == f_right.mean() == 0.75
    assert (result.fp32.top1.low, result.fp32.top1.high) == wilson_interval(30, 40)
    assert result.quantized.top1.value == q_right.mean() < 0.75
    assert result.drop == pytest.approx(f_right.mean() - q_right.mean())
    assert result.mcnemar_p == pytest.approx(mcnemar_p(f_right, q_right))
    assert result.agreement == pytest.approx(np.mean(f.argmax(1) == q.argmax(1)))
    assert result.sqnr_db == pytest.approx(sqnr_db(f, q), abs=1e-3)
    top5 = [(np.argsort(-y, axis=1)[:, :5] == labels[:, None]).any(1).mean() for y in (f, q)]
    assert [result.fp32.top5.value, result.quantized.top5.value] == top5
    assert result.fp32.size_bytes == pair[0].stat().st_size
    assert result.speedup == result.fp32.latency_s / result.quantized.latency_s
    assert result.speedup_interval is not None
    low, high = result.speedup_interval
    assert low <= high
    assert result.speedup_is_noise == (low <= 1 <= high)
    assert result.to_json()["speedup_interval"] == [low, high]
    assert result.provider == "CPUExecutionProvider"
    assert result.warnings == (f"{pair[1]} quantizes nothing: what is measured is how two float models differ",)


def test_a_model_against_itself_is_equal_in_every_respect(pair, pictures):
    result = validate(pair[0], pair[0], pictures[0], preprocess=RAW, repeats=0)
    assert (result.drop, result.mcnemar_p, result.agreement, result.sqnr_db) == (0, 1, 1, math.inf)
    assert result.speedup is None
    assert result.speedup_interval is None
    assert not result.speedup_is_noise


def test_the_result_is_json_also_where_the_ratio_is_infinite(pair, pictures):
    result = validate(pair[0], pair[0], pictures[0], preprocess=RAW, repeats=1)
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["sqnr_db"] is None
    assert stored["images"] == 40
    assert stored["fp32"]["top1"]["value"] == 0.75
    assert Preprocess.from_json(stored["preprocess"]) == result.preprocess


def test_without_labels_there_is_agreement_and_noise_but_no_accuracy(pair, unlike):
    rows = unlike
    result = validate(*pair, rows[1], repeats=0)
    assert (result.fp32.top1, result.quantized.top5, result.drop, result.mcnemar_p) == (None,) * 4
    f, q = (outputs(onnx.load(path), rows[0]) for path in pair)
    assert result.agreement == pytest.approx(np.mean(f.argmax(1) == q.argmax(1)))
    assert result.sqnr_db == pytest.approx(sqnr_db(f, q), abs=1e-3)
    assert result.preprocess is None


def test_labels_can_come_from_a_file(pair, pictures, tmp_path):
    folder, _, _ = pictures
    lines = [f"{path.relative_to(folder).as_posix()},0" for path in sorted(folder.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    result = validate(*pair, folder, labels=tmp_path / "labels.csv", repeats=0)
    said = outputs(onnx.load(pair[0]), pictures[1]).argmax(1)
    assert result.fp32.top1.value == pytest.approx(np.mean(said == 0))


@pytest.mark.parametrize("made", [lambda x, y: (x, y), lambda x, y: list(zip(x, y, strict=True))])
def test_labels_that_are_one_hot_are_told(made):
    x, y = feeds(small(), 8)["input"], np.arange(8)
    found = validate(small(), small(), made(x, np.eye(10, dtype=np.float32)[y]), repeats=0)
    assert found.fp32.top1 is None
    assert any("labels are one-hot" in text and "argmax" in text for text in found.warnings)


@pytest.mark.parametrize("target", [(np.zeros((2, 4)), np.zeros(2)), [[1], [0, 1]], {"boxes": 1}])
def test_labels_that_are_of_a_detector_are_no_classes(target):
    """Of several sizes, which NumPy makes no array of."""
    found = validate(small(), small(), feeds(small(), 8)["input"], labels=[target] * 8, repeats=0)
    assert [warning for warning in found.warnings if "are no classes" in warning]


def test_limit_takes_so_many_images(pair, pictures):
    assert validate(*pair, pictures[0], limit=11, repeats=0).images == 11


def test_an_unreadable_picture_is_named_and_left_out_of_every_count(pair, pictures):
    folder, x, labels = pictures
    broken = next(folder.rglob("07.png"))
    broken.write_bytes(b"no picture")
    result = validate(*pair, folder, batch_size=7, repeats=0)
    assert result.images == 39
    assert len(result.skipped) == 1
    assert str(broken) in result.skipped[0]
    right = np.delete(outputs(classifier(), x).argmax(1) == labels, 7)
    assert result.fp32.top1.value == pytest.approx(right.mean())


def test_top_five_of_few_classes_is_left_out(rows, tmp_path):
    model = classifier(classes=4)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,1")
    result = validate(model, coarse(model), tmp_path / "a.png", labels=tmp_path / "labels.csv", repeats=0)
    assert result.fp32.top1 is not None
    assert result.fp32.top5 is None


def test_classes_may_keep_their_size_one_axes(unlike):
    g = Graph()
    g.conv(g.op("GlobalAveragePool", [g.input(3, 8)], "pool"), 3, CLASSES, "head", kernel=1, output="output")
    model = g.model()
    assert validate(model, coarse(model), unlike[1], repeats=0).agreement is not None


def test_an_output_that_is_a_map_is_compared_by_noise_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 8, 16, 16)).astype(np.float32))
    result = validate(conv_transpose(), coarse(conv_transpose()), tmp_path / "x.npy", repeats=0)
    assert result.agreement is None
    assert 0 < result.sqnr_db < 60
    assert "no accuracy" in result.warnings[0]


def test_several_inputs_and_outputs(tmp_path):
    def build():
        g = Graph()
        left, right = g.conv(g.input(3, 8), 3, 8), g.conv(g.input(4, 8, "other"), 4, 8, "conv2")
        x = g.op("Add", [left, right], "add", "features")
        g.classifier(x, 8)
        return g.model("output", "features")

    rng = np.random.default_rng(0)
    x = {"input": (6, 3, 8, 8), "other": (6, 4, 8, 8)}
    x = {name: rng.normal(size=shape).astype(np.float32) for name, shape in x.items()}
    np.savez(tmp_path / "x.npz", **x)
    result = validate(build(), coarse(build()), tmp_path / "x.npz", batch_size=4, repeats=1)
    runs = [open_session(model).run(None, x) for model in (build(), coarse(build()))]
    assert list(result.sqnr_by_output) == ["output", "features"]
    for name, f, q in zip(result.sqnr_by_output, *runs, strict=True):
        assert result.sqnr_by_output[name] == pytest.approx(sqnr_db(f, q), abs=1e-3)
    assert result.sqnr_db == min(result.sqnr_by_output.values())


def test_fixed_batch_models_give_the_same_numbers_and_are_timed_at_their_batch(pair, pictures):
    dynamic = validate(*pair, pictures[0], repeats=1, latency_batch=3)
    fixed = validate(classifier(16), coarse(classifier(16)), pictures[0], preprocess=RAW, repeats=1)
    assert (dynamic.latency_batch, fixed.latency_batch) == (3, 16)
    assert fixed.quantized.top1 == dynamic.quantized.top1
    assert fixed.sqnr_db == pytest.approx(dynamic.sqnr_db, abs=1e-3)


def test_latency_can_use_more_images_than_there_are(pair, rows):
    assert validate(*pair, rows[1], limit=2, repeats=1, latency_batch=5).latency_batch == 5


def test_op_counts_are_the_quantized_models(rows):
    g = Graph()
    g.relu(g.conv(g.input(3, 8), 3, 8), output="output")
    assert validate(g.model(), qdq_conv(), rows[1], repeats=0).op_counts["QLinearConv"] == 1


def test_sizes_include_external_data(tmp_path, rows):
    onnx.save(classifier(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    result = validate(tmp_path / "m.onnx", classifier(), rows[1], repeats=0)
    assert result.fp32.size_bytes == (tmp_path / "m.onnx").stat().st_size + (tmp_path / "m.data").stat().st_size
    assert result.quantized.size_bytes == classifier().ByteSize()


def test_nothing_is_printed(pair, pictures, capfd):
    validate(*pair, pictures[0], repeats=1)
    said = capfd.readouterr()
    assert said.out == said.err == ""


# --- validate: preprocessing -------------------------------------------------------------------------------------


def test_preprocessing_is_the_quantized_files_unless_given(pair, pictures):
    stored, given = validate(*pair, pictures[0], repeats=0), validate(*pair, pictures[0], preprocess=RAW, repeats=0)
    assert stored.preprocess.scale == RAW.scale
    assert (stored.fp32, stored.quantized, stored.sqnr_db) == (given.fp32, given.quantized, given.sqnr_db)
    assert validate(*pair, pictures[0], preprocess=Preprocess(), repeats=0).preprocess.scale == 1 / 255


def test_preprocessing_of_a_file_without_metadata_is_the_default_and_said(pictures, rows):
    result = validate(classifier(), coarse(classifier()), pictures[0], repeats=0)
    assert result.preprocess.mean == IMAGENET_MEAN
    assert "the quantized model does not say how images become its inputs: ImageNet's" in result.warnings[0]
    stated = validate(classifier(), coarse(classifier()), pictures[0], preprocess=RAW, repeats=0)
    for silent in (stated, validate(classifier(), coarse(classifier()), rows[1], repeats=0)):
        assert not any("does not say" in warning for warning in silent.warnings)


def test_a_file_calibrated_on_arrays_asks_how_images_become_inputs(pictures, rows, tmp_path):
    of_arrays = with_metadata(coarse(classifier()), **{VERSION_KEY: "1"})
    with pytest.raises(
        SettingsError, match=r"calibrated on arrays, .* --mean, --std and --scale, or --preprocess"
    ) as error:
        validate(classifier(), of_arrays, pictures[0], repeats=0)
    assert error.value.exit_code == 2
    with pytest.raises(SettingsError, match="calibrated on arrays"):
        validate(classifier(), of_arrays, pictures[0], preprocess=Preprocess(crop=(8, 8), mean=(0.5,)), repeats=0)
    assert validate(classifier(), of_arrays, pictures[0], preprocess=RAW, repeats=0).preprocess.scale == RAW.scale
    assert validate(classifier(), of_arrays, pictures[0], preprocess="unit", repeats=0).preprocess.mean == (0.0,) * 3
    assert validate(classifier(), of_arrays, rows[1], repeats=0).preprocess is None
    onnx.save(classifier(), tmp_path / "beside.onnx")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "do_resize": False}))
    result = validate(tmp_path / "beside.onnx", of_arrays, pictures[0], repeats=0)
    assert (result.preprocess.mean, result.preprocess.scale) == ((0.0,) * 3, 1 / 255)
    assert "from" in result.preprocess.describe()


@pytest.mark.parametrize("stored", ["{", '{"mean": [0.5]}', "[1]"])
def test_preprocessing_that_cannot_be_read_is_an_error(stored, pictures):
    with pytest.raises(ModelError, match=PREPROCESS_KEY):
        validate(classifier(), with_metadata(classifier(), **{PREPROCESS_KEY: stored}), pictures[0], repeats=0)


def test_labels_that_do_not_fit_the_model_show_as_a_warning(pair, pictures):
    folder, _, _ = pictures
    lines = [
        f"{path.relative_to(folder).as_posix()},{i % CLASSES}" for i, path in enumerate(sorted(folder.rglob("*.png")))
    ]
    (folder.parent / "labels.csv").write_text("\n".join(lines))
    result = validate(*pair, folder, labels=folder.parent / "labels.csv", repeats=0)
    assert "chance" in result.warnings[0]


# --- validate: bad input -----------------------------------------------------------------------------------------


def test_a_quantized_file_of_another_model_is_refused(pair, rows, tmp_path):
    onnx.save(coarse(classifier()), tmp_path / "other.onnx")  # same inputs and outputs, other weights
    with pytest.raises(ModelError, match="was made from another model") as caught:
        validate(tmp_path / "other.onnx", pair[1], rows[1])
    assert "other.onnx" in str(caught.value)
    assert "quantized.onnx" in str(caught.value)
    with pytest.raises(ModelError, match="was made from another model"):
        validate((tmp_path / "other.onnx").read_bytes(), pair[1], rows[1])


def test_a_model_in_memory_has_no_fingerprint_to_compare(pair, rows):
    assert source_sha256(classifier()) is None
    assert validate(classifier(), pair[1], rows[1], repeats=0).images == 37


def test_the_fingerprint_is_the_sha256_of_the_file(pair):
    wanted = hashlib.sha256(pair[0].read_bytes()).hexdigest()
    assert source_sha256(pair[0]) == source_sha256(str(pair[0])) == source_sha256(pair[0].read_bytes()) == wanted


def test_files_in_the_wrong_order_are_noticed(pair, rows):
    with pytest.raises(ModelError, match="first"):
        validate(pair[1], pair[0], rows[1])


def other_outputs():
    g = Graph()
    g.classifier(g.relu(g.conv(g.input(3, 8), 3, 8)), 8, 12)
    return g.model()


def other_input_name():
    g = Graph()
    g.classifier(g.relu(g.conv(g.input(3, 8, "image"), 3, 8)), 8)
    return g.model()


def other_output_name():
    g = Graph()
    g.relu(g.conv(g.input(3, 8), 3, 8), output="map")
    return g.model("map")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (conv_relu, r"inputs are 'input' float \(batch, 8, 16, 16\), not 'input' float \(batch, 3, 8, 8\)"),
        (two_inputs, "'other'"),
        (other_input_name, "'image'"),
        (other_outputs, r"outputs are 'output' float \(batch, 12\), not 'output' float \(batch, 10\)"),
        (other_output_name, "'map'"),
    ],
)
def test_a_model_with_other_inputs_or_outputs_is_refused(other, message, pair, rows, tmp_path):
    onnx.save(other(), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        validate(pair[0], tmp_path / "other.onnx", rows[1])
    assert f"{tmp_path / 'other.onnx'} is not a quantized version of {pair[0]}" in str(caught.value)


def test_inputs_of_another_type_are_refused(pair, rows):
    g = Graph()
    g.inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT16, ["batch", 3, 8, 8]))
    x = g.op("Cast", ["input"], "cast", to=TensorProto.FLOAT)
    g.classifier(g.conv(x, 3, 8), 8)
    with pytest.raises(ModelError, match="float16"):
        validate(pair[0], g.model(), rows[1])


def test_fixed_and_dynamic_batch_belong_together(pair, rows):
    result = validate(pair[0], coarse(classifier(8)), rows[1], repeats=1)
    assert (result.images, result.latency_batch) == (37, 8)


def test_nan_in_an_output_names_the_model_the_output_and_the_image(rows):
    bad = classifier()
    bias = next(t for t in bad.graph.initializer if t.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.nan, np.float32), "fc.bias"))
    with pytest.raises(ModelError, match="the quantized model: output 'output' holds NaN or Inf for row 0"):
        validate(classifier(), bad, rows[1])


def test_a_label_beyond_the_classes_names_its_picture_and_the_way_out(pair, tmp_path):
    for label in (0, CLASSES, CLASSES + 5):
        (tmp_path / "p" / str(label)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "p" / str(label) / "a.png")
    with pytest.raises(DataError, match=r"label 10 of .*a\.png is beyond the 10 classes of output 'output'") as error:
        validate(*pair, tmp_path / "p", batch_size=1)
    assert "they are the names of the folders in" in str(error.value)
    assert "(2 of 3 are): give others with --labels FILE, or --labels none" in str(error.value)
    unlabelled = validate(*pair, tmp_path / "p", labels="none", repeats=0)
    assert unlabelled.fp32.top1 is None
    assert unlabelled.agreement is not None


def test_a_float_model_worse_than_its_quantized_version_is_doubted(tmp_path):
    x = np.random.default_rng(3).normal(size=(200, 3, 8, 8)).astype(np.float32)
    rounded = coarse(classifier(), 2)
    np.savez(tmp_path / "xy.npz", x=x, y=outputs(rounded, x).argmax(1))
    result = validate(classifier(), rounded, tmp_path / "xy.npz", repeats=0)
    assert result.drop < -0.05
    assert any("points of top-1 worse than its quantized version" in warning for warning in result.warnings)
    np.savez(tmp_path / "xy.npz", x=x, y=outputs(classifier(), x).argmax(1))
    assert not any("worse" in w for w in validate(classifier(), rounded, tmp_path / "xy.npz", repeats=0).warnings)


def test_labels_of_arrays_give_accuracy(pair, rows, tmp_path):
    x, path = rows
    said = outputs(classifier(), x).argmax(1)
    np.savez(tmp_path / "xy.npz", x=x, y=said)
    np.save(tmp_path / "y.npy", said)
    inside, beside = (
        validate(*pair, tmp_path / "xy.npz", repeats=0),
        validate(*pair, path, labels=tmp_path / "y.npy", repeats=0),
    )
    for result in (inside, beside):
        assert result.fp32.top1.value == 1.0
        assert result.quantized.top1.value == result.agreement
    np.save(tmp_path / "y.npy", said + CLASSES)
    with pytest.raises(DataError, match=r"of row 0 is beyond the 10 classes .*they are in .*y\.npy"):
        validate(*pair, path, labels=tmp_path / "y.npy", repeats=0)


def test_settings_that_contradict_each_other(pair, rows, tmp_path):
    data = open_validation(rows[1], input_specs(open_session(pair[0])), RAW)
    for settings in ({"limit": 3}, {"preprocess": RAW}, {"labels": tmp_path / "labels.csv"}):
        with pytest.raises(SettingsError, match="already open"):
            validate(*pair, data, **settings)
    for settings in ({"repeats": -1}, {"latency_batch": 0}, {"batch_size": 0}):
        with pytest.raises(SettingsError):
            validate(*pair, data, **settings)


def test_an_open_data_set_of_another_model_is_refused(pair, tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((2, 3, 8, 8), np.float32))
    data = open_validation(tmp_path / "y.npy", [InputSpec("image", (None, 3, 8, 8), np.dtype(np.float32))], RAW)
    with pytest.raises(DataError, match=r"'image'.*'input'"):
        validate(*pair, data)


def test_only_a_clear_gain_is_doubted() -> None:
    assert (
        gain_warnings(None, None)
        == gain_warnings(0.3, 1e-9)
        == gain_warnings(-0.002, 1e-9)
        == gain_warnings(-0.05, 0.2)
        == ()
    )
    (said,) = gain_warnings(-0.091, 1e-9)
    assert "9.1 points of top-1 worse than its quantized version (p = 1e-09)" in said
