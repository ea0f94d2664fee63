"""The checker of rules finds what breaks them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.targets import RULES, quantized

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.retargeting import retarget
from mrecg_onnx.writing.rule_checks import broken_rules


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
