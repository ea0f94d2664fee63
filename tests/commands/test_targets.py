"""Quantizing and converting for every target, by the command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from helpers.command_line import fails, works
from helpers.targets import SAMPLES, on_sample
from helpers.versions import too_old

from mrecg_onnx.targets.target import CONTAINER_NAMES, TARGET_NAMES, load_target
from mrecg_onnx.writing.containers import CONTAINERS, contained, container_of
from mrecg_onnx.writing.retargeting import target_of
from mrecg_onnx.writing.rule_checks import broken_rules


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


def test_quantize_and_convert_for_a_target(here: Path) -> None:
    nearest = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--samples", "8", "--threads", "1")
    result = works(*nearest, "--target", "tensorrt", "-o", "trt.onnx")
    assert "nothing here runs this target; its rules were checked" in result.stdout
    assert not broken_rules(onnx.load("trt.onnx"), load_target("tensorrt"))
    works("validate", "model.onnx", "trt.onnx", "--data", "images", "--repeats", "0")
    works(*nearest, "-o", "plain.onnx")
    said = " ".join(works(*nearest, "--target", "qonnx", "-o", "q.onnx").stdout.split())
    assert "layers in integers in the form for ONNX Runtime; of this file it runs QLinearConv" in said
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
    fails("convert", "plain.onnx", "--target", "qnn", "--container", "packed", code=2, says=("no container 'packed'",))
    fails(
        "convert", "plain_portable.onnx", "--target", "qnn", says=("was written for target portable", "give that one")
    )
    fails("convert", "plain.onnx", "--target", "abacus", code=2, says=("abacus",))


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=() if name in {"ort", "portable"} else pytest.mark.slow) for name in TARGET_NAMES],
)
def test_the_sample_for_every_target_in_every_container(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file keeps the rules, is opened by its runtime where that is installed, and predicts what FP32 does."""
    monkeypatch.chdir(tmp_path)
    rules = load_target(target)
    said = works(*on_sample("--target", target, "-o", "int8.onnx")).stdout
    if rules.runtime == "openvino":
        assert ("OpenVINO 20" if find_spec("openvino") else "pip install 'mrecg-onnx[openvino]'") in said
    runs_here = ["int8"]
    for container in (name for name in CONTAINER_NAMES if name != "int8"):
        convert = ("convert", "int8.onnx", "--container", container, "-o", f"{container}.onnx")
        if container in rules.containers and too_old(contained(onnx.load("int8.onnx"), container).model):
            fails(*convert, says=("need onnxruntime", "computes wrong values"))
        elif container in rules.containers:
            runs_here.append(container)
            assert "the same bit for bit" in works(*convert).stdout
        else:
            fails(*convert, code=2, says=(f"target {target} has no container '{container}': choose among",))
            fails(
                *on_sample("--target", target, "--container", container), code=2, says=(f"no container '{container}'",)
            )
            assert not Path(f"{container}.onnx").exists()
    for container in runs_here:
        model = onnx.load(f"{container}.onnx")
        assert (target_of(model), container_of(model)) == (target, container)
        if container != "typed":  # the rules are about codes of 8 bits
            assert not broken_rules(model, rules)
        data = ("--data", str(SAMPLES / "val"), "--repeats", "0", "--json", "v.json")
        if not CONTAINERS[container].runs:
            says = ("Quant nodes for qonnx", "mrecg-onnx convert FILE --container int8")
            fails("validate", str(SAMPLES / "digits.onnx"), f"{container}.onnx", *data, says=says)
            fails("benchmark", str(SAMPLES / "digits.onnx"), f"{container}.onnx", says=says)
            assert container in works("inspect", f"{container}.onnx").stdout
            works("convert", f"{container}.onnx", "--container", "int8", "-o", "back.onnx")
            assert Path("back.onnx").read_bytes() == Path("int8.onnx").read_bytes()
            continue
        works("validate", str(SAMPLES / "digits.onnx"), f"{container}.onnx", *data)
        assert json.loads(Path("v.json").read_text())["quantized"]["top1"]["value"] > 0.8
