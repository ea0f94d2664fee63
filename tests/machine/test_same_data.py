"""Processes that share a job read shares of the same data."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.images import rows, spec

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Dataset, Preprocess, open_calibration
from mrecg_onnx.machine import Run, Workers

X = np.ascontiguousarray(rows(6))


def opened(x: np.ndarray) -> Dataset:
    return open_calibration(iter(x), [spec(None, 3, 4, 4)], Preprocess())


@pytest.mark.parametrize(("other", "same"), [(X, True), (X[::-1], False), (X[:5], False)])
def test_other_samples_in_another_process_are_refused(
    other: np.ndarray, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "gather", lambda _, found: [found, opened(other).fingerprint()])
    if same:
        Run(Workers(1, 2)).require_same(opened(X))
        return
    with pytest.raises(DataError, match="the processes of this job read other samples, or in another order"):
        Run(Workers(1, 2)).require_same(opened(X))


def test_a_process_alone_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "gather", lambda *_: pytest.fail("nobody is there"))
    Run().require_same(opened(X))
