"""End to end on the sample: learned rounding reaches what rounding to nearest cannot.

Plain pytest takes four bits; two bits are asked of smaller networks, by the tests of learning, and of the sample by ``-m slow``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import mrecg_onnx

SAMPLES = Path(__file__).parents[2] / "samples"


def accuracy(tmp_path: Path, **settings: object) -> mrecg_onnx.ValidationResult:
    output = tmp_path / "quantized.onnx"
    mrecg_onnx.quantize(
        SAMPLES / "digits.onnx",
        SAMPLES / "calib",
        mrecg_onnx.Settings(threads=1, **settings),  # type: ignore[arg-type]
        output=output,
    )
    return mrecg_onnx.validate(SAMPLES / "digits.onnx", output, SAMPLES / "val", repeats=0)


# The margins are half of what benchmarks/results/sample.md measured.
@pytest.mark.parametrize(
    ("wbits", "iters", "gain"), [(4, 100, 0.03), pytest.param(2, 300, 0.35, marks=pytest.mark.slow)]
)
def test_learned_rounding_beats_nearest(tmp_path: Path, wbits: int, iters: int, gain: float) -> None:
    nearest = accuracy(tmp_path, wbits=wbits, method="nearest")
    learned = accuracy(tmp_path, wbits=wbits, iters=iters)
    assert nearest.fp32.top1.value > 0.98
    assert learned.quantized.top1.value >= nearest.quantized.top1.value + gain
    assert learned.op_counts["QLinearConv"] == nearest.op_counts["QLinearConv"] == 22
    assert "Conv" not in learned.op_counts
