"""On a GPU everything comes out as on the CPU; skipped where torch finds none.

Equalization and ranges that the output chooses are off: on this network their best candidates are equal to the fifth digit, and
sums in another order choose the other one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.learned import distance, small
from helpers.stages import feeds

from mrecg_onnx.machine import recording
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

#: Between seeds of these short runs, in dB.
SPREAD = 4.0


@pytest.fixture
def calib(tmp_path):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 64))
    return tmp_path / "calib.npz"


def run(calib, device, **more):
    return quantize(
        small(), calib, Settings(**{"device": device, "iters": 120, "equalize": "off", "range": "mse"} | more)
    )


def test_nearest_writes_a_file_that_answers_as_that_of_the_cpu(calib):
    here, there = (run(calib, device, method="nearest") for device in ("cpu", "cuda"))
    fed = feeds(small(), 64, seed=99)
    outputs = [run_padded(open_session(r.model, level="off"), fed)["output"] for r in (here, there)]
    assert sqnr_db(*outputs) > 30
    assert there.verification.sqnr_db > 60


@pytest.mark.parametrize("method", ["adaround", "brecq", "qdrop", "adaquant", "brecq-paper", "bit-split", "lapq"])
def test_methods_learn_as_on_the_cpu(calib, method):
    here, there = (run(calib, device, method=method) for device in ("cpu", "cuda"))
    assert there.verification.sqnr_db > 40
    assert distance(there.model) > distance(here.model) - SPREAD


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_recorded_iterations_learn_what_plain_ones_do(calib, method, monkeypatch):
    replays = []
    replay = recording.Recording.replay

    def counted(self, batch):
        replays.append(1)
        return replay(self, batch)

    def refuse(iterations, batch):
        raise RuntimeError("not wanted")

    monkeypatch.setattr(recording.Recording, "replay", counted)
    fast = run(calib, "cuda", method=method)
    assert len(replays) > 100
    monkeypatch.setattr(recording.Iterations, "_recorded", refuse)
    plain = run(calib, "cuda", method=method)
    assert distance(fast.model) > distance(plain.model) - SPREAD


def test_compiled_kernels_learn_the_same(calib):
    plain, compiled = (run(calib, "cuda", method="qdrop", compile=choice) for choice in ("off", "on"))
    assert distance(compiled.model) > distance(plain.model) - SPREAD
