"""End to end on the sample: learned rounding reaches what rounding to nearest cannot.

Plain pytest takes four bits; two bits are asked of smaller networks, by the tests of learning, and of the sample by ``-m slow``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import mrecg_onnx

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.mark.parametrize(("wbits", "abits", "least"), [(4, 8, 0.98), (4, 4, 0.98), (8, 8, 0.99)])
def test_the_file_of_the_first_command_is_smaller_and_runs_on_integers(
    tmp_path: Path, wbits: int, abits: int, least: float
) -> None:
    model, output = SAMPLES / "digits_resnet8.onnx", tmp_path / "quantized.onnx"
    assert 200_000 < model.stat().st_size < 400_000
    settings = mrecg_onnx.Settings(wbits=wbits, abits=abits, method="nearest", threads=1)
    mrecg_onnx.quantize(model, SAMPLES / "calib", settings, output=output)
    found = mrecg_onnx.validate(model, output, SAMPLES / "val", repeats=0)
    assert found.quantized.top1.value >= least
    assert output.stat().st_size < 0.4 * model.stat().st_size
    assert "Conv" not in found.op_counts
    packed = mrecg_onnx.convert(output, container="packed", output=tmp_path / "packed.onnx")
    assert packed.output.stat().st_size < (0.25 if wbits == 4 else 0.35) * model.stat().st_size


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
    ("wbits", "iters", "gain"), [pytest.param(*row, marks=pytest.mark.slow) for row in ((4, 100, 0.03), (2, 300, 0.35))]
)
def test_learned_rounding_beats_nearest(tmp_path: Path, wbits: int, iters: int, gain: float) -> None:
    nearest = accuracy(tmp_path, wbits=wbits, method="nearest")
    learned = accuracy(tmp_path, wbits=wbits, iters=iters)
    assert nearest.fp32.top1.value > 0.98
    assert learned.quantized.top1.value >= nearest.quantized.top1.value + gain
    assert learned.op_counts["QLinearConv"] == nearest.op_counts["QLinearConv"] == 22
    assert "Conv" not in learned.op_counts
