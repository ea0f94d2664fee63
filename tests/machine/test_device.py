"""How many threads torch works with."""

from __future__ import annotations

import logging

import pytest
import torch

from mrecg_onnx.machine import cores, use_threads


@pytest.fixture
def threads_stay():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_more_threads_than_cores_are_taken_and_said(threads_stay: int, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        use_threads(cores() + 1)
    assert torch.get_num_threads() == cores() + 1
    assert f"--threads {cores() + 1} is more than the {cores()} core" in caplog.text


def test_as_many_threads_as_cores_are_nothing_to_say(threads_stay: int, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        use_threads(cores())
        use_threads(None)
    assert torch.get_num_threads() == cores()
    assert not caplog.text
