"""Iterations that are recorded and replayed: which calls run, which are recorded, and what happens where that fails."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from helpers.learned import small
from helpers.stages import feeds

from mrecg_onnx.learning import descent
from mrecg_onnx.machine import recording
from mrecg_onnx.machine.recording import MOST, Iterations
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

X = ("quantized", "x")


class Taken:
    """Stands for a recording: computes again what was recorded."""

    def __init__(self, function, batch):
        self.function, self.batch, self.replays = function, batch, 0

    def replay(self, batch):
        self.replays += 1
        for name, value in batch.items():
            self.batch[name].copy_(value)
        return self.function(self.batch)


@pytest.fixture
def recorded(monkeypatch) -> list[Taken]:
    """Recordings in the order in which they were made."""
    made: list[Taken] = []

    def record(iterations, batch):
        made.append(Taken(iterations.function, batch))
        return made[-1]

    monkeypatch.setattr(recording.Iterations, "_recorded", record)
    return made


def double(batch):
    return 2 * batch[X]


def values(number: float) -> dict[tuple[str, str], torch.Tensor]:
    return {X: torch.full((3,), number)}


def test_the_first_call_runs_the_second_is_recorded_and_then_it_is_replayed(recorded):
    iterations = Iterations(double, torch.device("cpu"), record=True)
    for number in (1.0, 2.0, 3.0, 4.0):
        assert torch.equal(iterations("key", values(number)), torch.full((3,), 2 * number))
    assert [r.replays for r in recorded] == [3]


def test_every_key_has_a_recording_of_its_own(recorded):
    iterations = Iterations(double, torch.device("cpu"), record=True)
    for number in (1.0, 2.0, 3.0):
        for key in ("a", "b"):
            assert torch.equal(iterations(key, values(number)), torch.full((3,), 2 * number))
    assert [r.replays for r in recorded] == [2, 2]


def test_every_shape_has_a_recording_of_its_own(recorded):
    iterations = Iterations(double, torch.device("cpu"), record=True)
    for size in (2, 3, 2, 3, 3, 2):
        assert iterations("key", {X: torch.ones(size)}).shape == (size,)
    assert [len(r.batch[X]) for r in recorded] == [2, 3]


def test_rare_keys_run_as_they_are_once_there_are_many(recorded):
    iterations = Iterations(double, torch.device("cpu"), record=True)
    for key in range(2 * MOST):
        for number in (1.0, 2.0, 3.0):
            assert torch.equal(iterations(key, values(number)), torch.full((3,), 2 * number))
    assert len(recorded) == MOST


def test_nothing_is_recorded_where_it_is_not_wanted(recorded):
    iterations = Iterations(double, torch.device("cpu"), record=False)
    with iterations.stream():
        for number in (1.0, 2.0, 3.0):
            assert torch.equal(iterations("key", values(number)), torch.full((3,), 2 * number))
    assert not recorded


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch):
    def refuse(iterations, batch):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(recording.Iterations, "_recorded", refuse)
    restarts = []
    iterations = Iterations(double, torch.device("cpu"), record=True, restart=lambda: restarts.append(1))
    for number in (1.0, 2.0, 3.0, 4.0):
        assert torch.equal(iterations("key", values(number)), torch.full((3,), 2 * number))
    assert not iterations.record
    assert len(restarts) == 1


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("more", [{"method": "brecq"}, {"method": "qdrop", "drop": 1.0, "loss": "fisher"}], ids=str)
def test_what_is_recorded_reads_nothing_but_its_batch(recorded, monkeypatch, tmp_path, window, more):
    np.savez(tmp_path / "calib.npz", **feeds(small(), 32))
    chosen = {"iters": 40, "batch_size": 8, "equalize": "off", "range": "mse", "window": window, "device": "cpu"}

    def losses():
        return [u.final_loss for u in quantize(small(), tmp_path / "calib.npz", Settings(**chosen | more)).units]

    plain = losses()
    assert not recorded
    monkeypatch.setattr(descent, "_records", lambda device, workers: True)
    monkeypatch.setattr(recording.Iterations, "stream", lambda iterations: contextlib.nullcontext())
    # Numbers stay Python's: rounded to float32 they are others by 1e-7, which forty steps of rounding make one of ten percent.
    monkeypatch.setattr(descent.Number, "set", lambda number, value: value)
    assert losses() == pytest.approx(plain, rel=1e-6)
    # One recording before the regularizer sets in, one behind, a unit.
    assert len(recorded) == 2 * len(plain)
    assert sum(r.replays for r in recorded) == len(plain) * (40 - 2)
