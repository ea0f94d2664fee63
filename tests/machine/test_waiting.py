"""Idle threads of torch do not hold cores that other programs want, and runs that others hold up are told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mrecg_onnx.machine.waiting import Pace
from mrecg_onnx.progress import Progress

PROGRAM = """
import os, sys
{first}
import mrecg_onnx
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), mrecg_onnx.WAITS_LONG, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("said", "first", "expected"),
    [
        ({}, "", "3000 None False False"),  # before torch loads: its threads read it once
        ({"GOMP_SPINCOUNT": "7"}, "", "7 None False False"),
        ({"OMP_WAIT_POLICY": "active"}, "", "None active False False"),
        ({}, "import torch", f"None None {sys.platform == 'linux'} True"),
        ({"GOMP_SPINCOUNT": "7"}, "import torch", "7 None False True"),
    ],
    ids=["nothing said", "turns said", "policy said", "after torch", "after torch, said"],
)
def test_idle_threads_sleep_soon(said: dict[str, str], first: str, expected: str) -> None:
    ours = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    program = PROGRAM.format(first=first)
    found = subprocess.run([sys.executable, "-c", program], env=ours | said, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("computed", "busy", "idle", "long", "said"),
    [
        (2.0, 40.0, 0.0, False, "for 10% of the last 20 s"),
        (2.0, 2.0, 38.0, True, "for 10% of the last 20 s"),  # a slow disk
        (20.0, 40.0, 0.0, True, "import mrecg_onnx before torch"),
        (20.0, 40.0, 0.0, False, None),
        (39.0, 40.0, 0.0, True, None),  # alone
        (39.0, 80.0, 240.0, True, None),  # others have cores of their own
    ],
    ids=["hardly computes", "waits for a disk", "waits long", "waits briefly", "alone", "many cores"],
)
def test_a_run_that_others_hold_up_is_told_once(
    computed: float, busy: float, idle: float, long: bool, said: str | None
) -> None:
    now, used, machine = [0.0], [0.0], [(500.0, 700.0)]
    pace = Pace(lambda: now[0], lambda: used[0], lambda: machine[0], lambda: long)
    assert pace.update(Progress("load")) is None
    assert pace.update(Progress("probe")) is None
    now[0], used[0], machine[0] = 20.0, computed, (500.0 + busy, 700.0 + idle)
    assert pace.update(Progress("calibrate")) is None  # one-off work waits for files, too
    found = pace.update(Progress("reconstruct"))
    assert found is None if said is None else said in (found or "")
    assert "--threads 1" in (found or "--threads 1")
    now[0] = 400.0
    assert pace.update(Progress("reconstruct")) is None


def test_this_machine_is_looked_at() -> None:
    pace = Pace(clock=iter([0.0, 30.0, 30.0]).__next__)
    assert pace.update(Progress("reconstruct")) is None
    assert pace.update(Progress("reconstruct")) is not None  # no 30 seconds were computed
