"""Arguments of another kind than a call takes are refused in a line that names them, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import mrecg_onnx
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import SettingsError

CALLS = {name: call for name in dir(mrecg_onnx) if hasattr(call := getattr(mrecg_onnx, name), "__wrapped__")}
#: Annotations with more to know than a kind: models, data, labels, metrics, results; their own tests have them.
OTHERS = ("Model", "Data", "Labels", "Metric", "JudgedBy", "Made", "Settings")


class Odd:
    """What no parameter takes."""


def parameters() -> list[tuple[str, str]]:
    return [
        (name, parameter.name)
        for name, call in CALLS.items()
        for parameter in inspect.signature(call).parameters.values()
        if not any(word in parameter.annotation for word in OTHERS) or parameter.annotation.startswith("Callable")
    ]


def call_with(name: str, parameter: str, value: Any) -> Any:
    """The call with ``value``, and None for what else it needs: kinds are looked at first, in any order."""
    call = CALLS[name]
    needed = {p.name: None for p in inspect.signature(call).parameters.values() if p.default is inspect.Parameter.empty}
    needed |= {"output": "out.onnx", "methods": "nearest", "bits": "W4A4"} if name == "compare" else {}
    needed |= {"output": "out.html"} if name == "report" else {}
    return call(**{**needed, parameter: value})


def test_all_calls_are_here() -> None:
    assert {
        "quantize",
        "validate",
        "compare",
        "sensitivity",
        "benchmark",
        "runtimes",
        "convert",
        "report",
    } <= CALLS.keys()
    assert len(parameters()) > 40


@pytest.mark.parametrize(("name", "parameter"), parameters())
def test_odd_kinds(name: str, parameter: str) -> None:
    for value in (Odd(), [Odd()], b"x"):
        with pytest.raises(SettingsError, match=rf"^{parameter}(\[0\])? of {name} (is|must)") as error:
            call_with(name, parameter, value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("validate", {"limit": 3.5}, "limit of validate is 3.5: it must be a whole number"),
        ("validate", {"limit": True}, "limit of validate is True: it must be a number"),
        ("validate", {"outputs": "logits"}, "outputs of validate is 'logits': it must be a list: ['logits']"),
        ("validate", {"layers": 1}, "layers of validate is 1: it must be True or False"),
        (
            "quantize",
            {"output": b"q.onnx"},
            "output of quantize is b'q.onnx': it must be a path, as text or pathlib.Path",
        ),
        ("quantize", {"progress": 3}, "progress of quantize is 3: it must be a function, such as print"),
        ("benchmark", {"batch": []}, "batch of benchmark is empty: give at least one"),
        ("benchmark", {"threads": [1, "2"]}, "threads[1] of benchmark is '2': it must be a number"),
    ],
)
def test_what_is_said(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        call_with(name, *next(iter(given.items())))
    assert str(error.value) == says


def test_numbers_of_numpy_and_generators_are_taken() -> None:
    @takes()
    def call(
        count: int, sizes: int | Sequence[int] | None = None, *, share: float = 0.5, names: Sequence[str] = ()
    ) -> Any:
        return count, sizes, share, names

    assert call(np.int64(3), (n for n in (1, 2)), share=np.float32(0.5), names={"a": 1}) == (3, (1, 2), 0.5, ("a",))
    assert [type(one) for one in call(4.0, share=1)[:3:2]] == [int, float]
    assert call(1, np.array([2, 3]))[1] == (2, 3)
    assert call(1, 2)[1] == 2
    assert call(1, None)[1] is None


def test_names_that_there_are_not_are_answered_with_one_that_there_is() -> None:
    with pytest.raises(AttributeError, match=r"mrecg_onnx has no 'quantise'; did you mean 'quantize'?"):
        _ = mrecg_onnx.quantise
    assert not hasattr(mrecg_onnx, "__wrapped__")


@pytest.mark.parametrize("path", [3, None, b"x", [], Odd()])
def test_results_are_saved_by_path(path: Any) -> None:
    found = mrecg_onnx.doctor()
    with pytest.raises(SettingsError, match="it must be a path"):
        found.save(path)
