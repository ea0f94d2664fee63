"""Opening a file with the runtime that its target is meant for, where that is installed."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from mrecg_onnx.converters.errors import ExportError, ModelError
from mrecg_onnx.measures import Heads, agreement, prediction_output, sqnr_db
from mrecg_onnx.runtimes.kernel_counts import fused_op_counts
from mrecg_onnx.runtimes.running import run_padded
from mrecg_onnx.runtimes.sessions import fixed_batch, open_session
from mrecg_onnx.targets import Target

__all__ = ["MIN_AGREEMENT", "Opened", "open_with", "openvino_kernels"]

#: Share of equal predictions, target's runtime against the graph run as written, below which a warning is due: integer kernels
#: requantize once, single steps differ.
MIN_AGREEMENT = 0.95

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Opened:
    """What the target's runtime made of a file.

    Attributes:
        runtime: its name and version, or why it did not open the file.
        kernels: layers by type and precision, as the runtime says; empty where it was not opened.
        agreement: share of equal predictions with the graph run as written on ONNX Runtime; None without data or class scores
            (:mod:`mrecg_onnx.measures.predictions`).
        sqnr_by_output: SQNR in dB of every float output against that graph, the worst first; empty without data.
        outputs: what the runtime gave, by name; empty without data.
    """

    runtime: str
    kernels: dict[str, int]
    agreement: float | None = None
    sqnr_by_output: dict[str, float] = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict, repr=False, compare=False)

    def line(self) -> str:
        """One line for people."""
        same = f", {self.agreement:.2%} of the predictions agree" if self.agreement is not None else ""
        same += "".join(f", {name} {value:.1f} dB" for name, value in list(self.sqnr_by_output.items())[:1])
        ran = ", ".join(f"{name} {count}" for name, count in self.kernels.items())
        return f"{self.runtime}{same}" + (f": {ran}" if ran else "")


def open_with(target: Target, model: onnx.ModelProto, data: Arrays | None) -> Opened:
    """Open ``model`` with the runtime of ``target`` at its default level and run it on ``data`` (arrays [N, ...] by name).

    Raises:
        ExportError: the runtime refuses the file.
    """
    return _RUNTIMES[target.runtime](model, data)


def _onnxruntime(model: onnx.ModelProto, data: Arrays | None) -> Opened:
    import onnxruntime  # noqa: PLC0415 - for its version only

    try:
        counts = fused_op_counts(model)
        found = run_padded(open_session(model), data) if data is not None else None
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the file: {error}") from error
    return Opened(f"ONNX Runtime {onnxruntime.__version__}", dict(counts), *_compared(model, data, found))


def _openvino(model: onnx.ModelProto, data: Arrays | None) -> Opened:
    if importlib.util.find_spec("openvino") is None:
        return Opened("not opened: OpenVINO is not installed (pip install openvino)", {})
    import openvino  # noqa: PLC0415 - an extra

    try:
        core = openvino.Core()
        # Floats stay floats: on some processors the default is bfloat16 for what is not in integers.
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = None
        if data is not None:
            size = fixed_batch(open_session(model, level="off")) or len(next(iter(data.values())))
            rows = len(next(iter(data.values()))) // size * size
            parts = [compiled({n: x[i : i + size] for n, x in data.items()}) for i in range(0, rows, size)]
            names = [output.name for output in model.graph.output]
            found = (
                {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)} if parts else None
            )
    except RuntimeError as error:
        raise ExportError(f"OpenVINO refuses the file: {_reason(error)}") from error
    return Opened(
        f"OpenVINO {openvino.__version__.split('-')[0]}", openvino_kernels(compiled), *_compared(model, data, found)
    )


def _reason(error: RuntimeError) -> str:
    """The line of an OpenVINO error that says what is wrong, below those that say where in its sources."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0] if lines else str(error).strip()


def openvino_kernels(compiled: object) -> dict[str, int]:
    """Layers of a compiled model by type and the precision of the kernel that its execution graph names (I8, FP32, ...)."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():  # type: ignore[attr-defined]
        info = node.get_rt_info()
        kind, kernel = str(info["layerType"].value), str(info["primitiveType"].value)
        if kind not in {"Const", "Input", "Output"}:
            counts[f"{kind} {kernel.rsplit('_', 1)[-1].upper()}"] += 1
    return dict(counts)


def _none(_model: onnx.ModelProto, _data: Arrays | None) -> Opened:
    return Opened("not opened: nothing here runs this target; its rules were checked", {})


def _compared(
    model: onnx.ModelProto, data: Arrays | None, found: Arrays | None
) -> tuple[float | None, dict[str, float], Arrays]:
    """Agreement and SQNR with the graph run as written on ONNX Runtime, and the outputs."""
    if data is None or found is None:
        return None, {}, {}
    rows = len(next(iter(found.values())))
    written = {n: x[:rows] for n, x in run_padded(open_session(model, level="off"), data).items()}
    figures = {n: sqnr_db(x, found[n]) for n, x in written.items() if x.dtype.kind == "f"}
    scores = prediction_output(written, Heads.of_model(model))
    same = agreement(*(x[scores].reshape(rows, -1) for x in (written, found))) if scores is not None else None
    return same, dict(sorted(figures.items(), key=lambda entry: entry[1])), found


_RUNTIMES: dict[str, Callable[[onnx.ModelProto, Arrays | None], Opened]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "none": _none,
}
