"""What learning holds, by method, before anything runs."""

from __future__ import annotations

import pytest

from mrecg_onnx import Settings
from mrecg_onnx.learning import Fitting
from mrecg_onnx.machine import Run
from mrecg_onnx.planning import Footprint

MB = 10**6
SIZE = Footprint(weights=MB, inputs=MB, tensors=8 * MB, unit=3 * MB, pair=5 * MB)


def most(*, made: bool = False, **settings: object) -> float:
    """Bytes for tensors, in MB."""
    chosen = Settings(device="cpu", batch_size=32, samples=100, **settings)  # type: ignore[arg-type]
    return Fitting(Run(), chosen, made).needs(SIZE).most / MB


CHECKS = 80  # what every run holds where it checks the file


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("nearest", CHECKS),
        ("aciq", CHECKS),
        ("brecq", 3 * 32 * 3),
        ("brecq-paper", 3 * 32 * 3),
        ("mrecg", 3 * 32 * 5),  # neighbours become one unit
        ("bit-split", 3 * 32 * 3 + 100),
    ],
)
def test_methods_hold_what_they_learn(method: str, expected: int) -> None:
    assert most(method=method) == expected


def test_gradients_through_the_whole_network_take_it_whole() -> None:
    assert most(method="brecq", loss="fisher") == 2 * 32 * 8
    assert most(method="nearest", made=True) == 2 * 32 * 8 + 100
    assert most(method="lapq", lapq_images=200) == 200 + 18 * 8
