"""Sessions are timed in turn."""

from __future__ import annotations

import pytest

from mrecg_onnx.runtimes import (
    latency,
    medians,
)


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, names, feeds, options=None):
        self.log.append(self.name)
        return []


def test_latency_takes_turns_and_gives_each_session_an_untimed_run_first():
    log = []
    seconds = latency({name: Recorder(name, log) for name in "ab"}, {}, repeats=3, warmup=1)
    assert "".join(log) == "aabb" * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}
    with pytest.raises(ValueError, match="0 timed"):
        latency({}, {}, repeats=0)
