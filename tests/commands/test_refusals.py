"""What cannot be used gets one line that says what to do, an exit code, and no file: models, images, options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph, two_inputs
from helpers.command_line import FAST, classifier, fails, quantize_fails, run, works
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable


# --- models that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(100)])
def test_not_an_onnx_file(here: Path, content: bytes) -> None:
    (here / "bad.onnx").write_bytes(content)
    quantize_fails("bad.onnx", says=("bad.onnx", "not an ONNX file"))
    fails("inspect", "bad.onnx", says=("bad.onnx",))
    fails("validate", "bad.onnx", "model.onnx", "--data", "images", says=("bad.onnx",))


def test_no_such_file_or_a_folder(here: Path) -> None:
    quantize_fails("missing.onnx", code=2, says=("missing.onnx", "no such file"))
    quantize_fails("images", code=2, says=("images", "folder"))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file(here: Path, share: float) -> None:
    content = (here / "model.onnx").read_bytes()
    (here / "cut.onnx").write_bytes(content[: int(share * len(content))])
    quantize_fails("cut.onnx", says=("cut.onnx", "truncated"))


def test_damaged_bytes_never_surprise(here: Path) -> None:
    content = (here / "model.onnx").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for position in random.integers(len(content) - 3000, len(content), 3):
            damaged[position] = random.integers(256)
        (here / "damaged.onnx").write_bytes(bytes(damaged))
        result = run("inspect", "damaged.onnx")
        assert result.exit_code in {0, 1}
        assert "unexpected" not in result.stderr


def test_external_data_missing_or_short(here: Path) -> None:
    onnx.save(
        classifier(),
        "big.onnx",
        save_as_external_data=True,
        location="big.data",
        size_threshold=0,
        convert_attribute=False,
    )
    data = here / "big.data"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    quantize_fails("big.onnx", says=("big.onnx", "big.data", "truncated"))
    data.unlink()
    quantize_fails("big.onnx", says=("big.onnx", "big.data", "missing"))


def test_nothing_to_quantize(here: Path) -> None:
    g = Graph()
    g.relu(g.input(3), output="output")
    onnx.save(g.model(), "empty.onnx")
    quantize_fails("empty.onnx", says=("nothing to quantize",))
    fails("inspect", "empty.onnx", says=("nothing to quantize",))


def test_a_model_that_is_quantized_already(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "quant.onnx")
    quantize_fails("quant.onnx", says=("quantized already",))


def test_an_op_that_cannot_be_converted_is_named_with_its_node(here: Path) -> None:
    g = Graph()
    x = g.conv(g.input(3), 3, 8, "conv", output="conv_out")
    training = [x, g.constant("ratio", np.float32(0.5)), g.constant("training", np.bool_(True))]
    g.op("Dropout", training, "odd_one", output="output")
    onnx.save(g.model(), "odd.onnx")
    quantize_fails("odd.onnx", says=("Dropout is in training mode", "odd_one", "eval mode"))

    model = classifier()
    relu = next(node for node in model.graph.node if node.name == "relu1")
    relu.op_type, relu.domain = "Wobble", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, "custom.onnx")
    quantize_fails("custom.onnx", says=("Wobble", "relu1"))


def eight_channels() -> onnx.ModelProto:
    g = Graph()
    g.classifier(g.conv(g.input(8), 8, 8), 8)
    return g.model()


def flat() -> onnx.ModelProto:
    g = Graph()
    g.inputs.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8]))
    g.gemm("input", 8, 4, output="output")
    return g.model()


@pytest.mark.parametrize("build", [eight_channels, flat, two_inputs])
def test_an_input_that_images_cannot_feed(here: Path, build: Callable[[], onnx.ModelProto]) -> None:
    onnx.save(build(), "other.onnx")
    quantize_fails("other.onnx", says=("input", ".npy"))


def change(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The classifier with one of its initializers changed."""
    model = classifier()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))
    return model


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_weights_that_are_not_finite(here: Path, value: float, said: str) -> None:
    def spoil(weight: np.ndarray) -> np.ndarray:
        weight.reshape(-1)[3] = value
        return weight

    onnx.save(change("conv2.weight", spoil), "broken.onnx")
    quantize_fails("broken.onnx", says=("conv2.weight", said))


def test_arrays_that_are_not_finite_are_told_before_any_work(here: Path) -> None:
    """Also those of a row that no stage before learning uses, and those that are measured on last."""
    good = np.random.default_rng(0).normal(size=(300, 3, 16, 16)).astype(np.float32)
    bad = good.copy()
    bad[298, 0, 0, 0] = np.nan
    np.save("good.npy", good[:8])
    np.save("bad.npy", bad)
    whole = ("--calib", "bad.npy")
    drop = ("--calib", "good.npy", "--method", "nearest", "--max-drop", "5", "--data", "bad.npy")
    for options in (whole, drop):
        found = run("quantize", "model.onnx", *options, "-o", "q.onnx")
        assert found.exit_code == 1
        assert found.stderr.splitlines()[-1].endswith(" in row 298 for input 'input' in bad.npy")
        assert "equalize" not in found.stderr
        assert not Path("q.onnx").exists()


def test_activations_that_are_not_finite(here: Path) -> None:
    onnx.save(change("conv2.weight", lambda weight: weight * np.float32(1e38)), "loud.onnx")
    quantize_fails("loud.onnx", says=("conv2_out", "Inf"))
    fails("inspect", "loud.onnx", "--calib", "images", says=("conv2_out",))


def test_another_models_quantized_file(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "quant.onnx")
    onnx.save(classifier(seed=1), "other.onnx")
    onnx.save(eight_channels(), "different.onnx")
    fails("validate", "other.onnx", "quant.onnx", "--data", "images", says=("quant.onnx", "other.onnx"))
    fails("validate", "different.onnx", "quant.onnx", "--data", "images", says=("quant.onnx", "different.onnx"))
    fails("validate", "quant.onnx", "model.onnx", "--data", "images", says=("quant.onnx",))


# --- images that cannot be used --------------------------------------------------------------------------------------


def test_a_calibration_folder_without_images(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("a")
    for folder, code in (("empty", 1), ("texts", 1), ("nowhere", 2)):
        fails("quantize", "model.onnx", "--calib", folder, *FAST, code=code, says=(folder,))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_calibration_folder_that_may_not_be_read(here: Path) -> None:
    (here / "images").chmod(0)
    try:
        quantize_fails("model.onnx", says=("images", "ermission"))
    finally:
        (here / "images").chmod(0o755)


def test_a_calibration_folder_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    result = run("quantize", "model.onnx", "--calib", "images", *FAST)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: cannot read images: Permission denied"


def test_one_corrupt_image_is_skipped_and_counted_but_not_two(here: Path) -> None:
    arguments = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "out.onnx")
    image = here / "images" / "3" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    result = works(*arguments)
    assert "23 calibration images, 1 skipped" in result.stdout
    assert "images/3/3.png" in result.stdout
    (here / "out.onnx").unlink()
    (here / "out.toml").unlink()
    (here / "images" / "4" / "4.png").write_bytes(b"nothing")
    fails(*arguments, says=("5%", "images/3/3.png", "images/4/4.png"))


# --- options that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--wbits", "1"), ("wbits", "1", "2 and 8")),
        (("--wbits", "9"), ("wbits", "9")),
        (("--abits", "1"), ("abits", "32")),
        (("--abits", "16"), ("abits", "16")),
        (("--first-last-bits", "9"), ("--first-last-bits", "9")),
        (("--bits", "conv1=W9"), ("conv1=W9", "2 to 8")),
        (("--bits", "conv1"), ("conv1", "REGEX=")),
        (("--bits", "nowhere=W8"), ("nowhere", "matches no node")),
        (("--exclude", "nowhere"), ("nowhere", "matches no node")),
        (("--exclude", "("), ("(", "regular expression")),
        (("--exclude", "."), ("--exclude", "no layer")),
        (("--method", "magic"), ("--method", "magic", "mrecg")),
        (("--scheme", "missing.json"), ("missing.json",)),
        (("--iters", "0"), ("iters", "0")),
        (("--method", "breqc"), ("'breqc' is not one of 'nearest'", "did you mean 'brecq'?")),
        (("--preset", "slow"), ("'slow' is not one of 'fast'",)),
        (("--target", "opnvino"), ("did you mean 'openvino'?",)),
        (("--iters", "many"), ("--iters", "many")),
        (("--threads", "0"), ("threads", "0")),
        (("--merges", "-1"), ("merges", "-1")),
        (("--drop", "1.5"), ("drop", "1.5")),
        (("--mean", "a,b,c"), ("--mean", "a")),
        (("--mean", "1,2"), ("mean", "1, 3 or 4")),
        (("--std", "0"), ("std",)),
        (("--scale", "1/0"), ("--scale", "1/0")),
        (("--crop", "big"), ("--crop", "big")),
        (("--crop", "20"), ("20x20", "input")),
        (("--color", "gray", "--layout", "up"), ("--layout", "up")),
        (("--nonsense", "1"), ("--nonsense",)),
        (("--memory", "much"), ("--memory", "much", "2GB")),
        (("-o", "model.onnx"), ("model.onnx", "model itself")),
        (("-o", "images/../model.onnx"), ("model.onnx", "model itself")),
        (("--wbits", "9"), ("--wbits is 9: it must lie between 2 and 8",)),
        (("--batch-size", "0"), ("--batch-size is 0: it must be 1 or more",)),
        (("-o", "nowhere/"), ("no folder 'nowhere/'",)),
        (("--report", "nowhere/"), ("no folder 'nowhere/'",)),
        (("--target", "tflite"), ("'tflite'", "convert FILE --to tflite")),
        (("--json", "model.onnx"), ("model.onnx", "model itself")),
        (("-o", "x.onnx", "--json", "x.onnx"), ("x.onnx", "output")),
    ],
)
def test_options_out_of_range(here: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    quantize_fails("model.onnx", *options, code=2, says=says)


def test_usage_errors_take_one_line_too(here: Path) -> None:
    fails("quantise", code=2, says=("quantise", "'quantize'"))
    fails("quantize", code=2, says=("MODEL", "mrecg-onnx quantize --help"))
    fails("quantize", "model.onnx", code=2, says=("--calib",))
    fails("validate", "model.onnx", code=2, says=("QUANT",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--avg-wbits", "3", "--size-budget", "1MB"), ("--size-budget and --avg-wbits", "give one")),
        (("--max-drop", "1"), ("--max-drop needs --data",)),
        (("--size-budget", "much"), ("--size-budget 'much'", "1.8MB")),
        (("--size-budget", "1KB"), ("--size-budget 1.00 kB", "smallest possible is")),
        (("--avg-wbits", "9"), ("between 2 and 8",)),
    ],
)
def test_wrong_budgets_are_usage_errors(here: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    quantize_fails("model.onnx", *options, code=2, says=says)
