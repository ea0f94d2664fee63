"""Idle threads of torch do not hold cores that other programs want."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from mrecg_onnx.commands import main
try:
    main(["--version"], **eval(sys.argv[1]))
except SystemExit:
    pass
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("said", "host", "expected"),
    [
        ({}, {}, "3000 None False"),  # before torch loads: its threads read it once
        ({"GOMP_SPINCOUNT": "7"}, {}, "7 None False"),
        ({"OMP_WAIT_POLICY": "active"}, {}, "None active False"),
        ({}, {"standalone_mode": False}, "None None False"),  # a host's environment is its own
    ],
    ids=["nothing said", "turns said", "policy said", "called by a host"],
)
def test_commands_let_idle_threads_sleep_soon(said: dict[str, str], host: dict[str, bool], expected: str) -> None:
    ours = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(host)], env=ours | said, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == expected
