"""The node tests that the onnx package generates, run through the bridge and sorted into classes.

A test is *native* if all of its nodes run in torch, *fallback* if some run through ONNX Runtime inside the torch module, and
*refused* if it cannot be converted or does not give the expected outputs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.runner import Runner

from mrecg_onnx.converters import to_torch
from mrecg_onnx.converters.arrays import from_array, to_array
from mrecg_onnx.converters.errors import MrecgError

CLASSES = ("native", "fallback", "refused")
LISTS = Path(__file__).parents[1] / "converters" / "conformance"


@dataclass(frozen=True)
class Outcome:
    """What became of one test: its class and, where it is not native, why."""

    kind: str
    reason: str = ""


@cache
def node_tests() -> dict[str, Any]:
    """Return the tests of the installed onnx package by name, in its order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases compute logarithms of negative numbers and the like
        return {case.name: case for case in collect_testcases(None)}


def run_bridge(case: Any) -> Outcome:
    """Convert one test's model to torch, run it and compare the outputs with those expected."""
    try:
        module = to_torch(case.model)
    except MrecgError as error:
        return Outcome("refused", _line(error))
    try:
        for inputs, expected in case.data_sets:
            arrays = [_plain(value, kind) for value, kind in zip(inputs, case.model.graph.input, strict=False)]
            with torch.no_grad():
                found = module(*(from_array(array) for array in arrays))
            found = found if len(expected) > 1 else (found,)
            wanted = [_plain(value, kind) for value, kind in zip(expected, case.model.graph.output, strict=True)]
            Runner.assert_similar_outputs(wanted, [to_array(value) for value in found], case.rtol, case.atol)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the outcome
        return Outcome("refused", f"wrong: {_line(error)}")
    fallen = module.fallback_nodes
    return Outcome("fallback", next(iter(fallen.values()))) if fallen else Outcome("native")


def run_onnxruntime(case: Any) -> bool:
    """Tell whether ONNX Runtime's CPU provider passes one test."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for inputs, expected in case.data_sets:
            feeds = {
                node.name: _plain(value, kind)
                for node, value, kind in zip(session.get_inputs(), inputs, case.model.graph.input, strict=False)
            }
            wanted = [_plain(value, kind) for value, kind in zip(expected, case.model.graph.output, strict=True)]
            Runner.assert_similar_outputs(wanted, session.run(None, feeds), case.rtol, case.atol)
    except Exception:  # noqa: BLE001 - its exceptions share no base
        return False
    return True


def read_list(kind: str) -> dict[str, str]:
    """Return the committed list of one class: test name to reason."""
    lines = (LISTS / f"{kind}.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.partition("\t") for line in lines if line and not line.startswith("#"))
    return {name: reason for name, _, reason in rows}


def _plain(value: Any, kind: onnx.ValueInfoProto) -> Any:
    """Turn the data of a test into arrays, lists of arrays and None."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return onnx.numpy_helper.to_optional(value)
    if isinstance(value, list | tuple):
        return [_plain(item, kind) for item in value]
    return value if value is None else np.asarray(value)


def _line(error: Exception) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{text or type(error).__name__}"[:200].replace("\t", " ")
