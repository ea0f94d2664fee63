"""Checks on the exported model before anybody calls it done: valid, opens, computes what was learned, runs in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor

from mrecg_onnx.containers import Contained
from mrecg_onnx.converters.errors import ExportError, ModelError, first_line
from mrecg_onnx.converters.save import openable
from mrecg_onnx.export import FLOAT_MATMUL, Exported
from mrecg_onnx.metrics import agreement, sqnr_db
from mrecg_onnx.runtime import Level, fused_op_counts, open_session, run_padded
from mrecg_onnx.simulation import Simulation, forward_batches

__all__ = ["Verification", "verify", "verify_container"]

#: The simulation and the unoptimized graph compute the same in another order: a few codes on the border between two
#: steps fall the other way. Fewer agreeing predictions, or more noise, means that something else is wrong.
MIN_AGREEMENT, MIN_SQNR_DB = 0.995, 40.0
#: Relative difference up to which an image counts as equal, and the share of such images that proves the export right where
#: the SQNR falls short: one code that lies between two steps and falls the other way in an early layer costs that image.
EXACT, MIN_EXACT = 1e-4, 0.25
#: At the default level integer kernels requantize once instead of twice; single steps differ.
MIN_AGREEMENT_FUSED = 0.95

#: Integer kernels ONNX Runtime's CPU provider has for the ops that the exporter leaves between quantizers.
_KERNELS = {
    "Add": "QLinearAdd",
    "AveragePool": "QLinearAveragePool",
    "Concat": "QLinearConcat",
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "LeakyRelu": "QLinearLeakyRelu",
    "MatMul": "QLinearMatMul",
    FLOAT_MATMUL: "MatMulIntegerToFloat",
    "Mul": "QLinearMul",
    "Sigmoid": "QLinearSigmoid",
    "Softmax": "QLinearSoftmax",
}


@dataclass(frozen=True)
class Verification:
    """What the checks measured.

    Attributes:
        images: calibration images compared.
        agreement: share of equal predictions, simulation against the unoptimized graph; None without class scores.
        sqnr_db: output SQNR of the same pair.
        agreement_fused: share of equal predictions, simulation against the default level.
        sqnr_fused_db: output SQNR of that pair.
        expected: integer kernels that the plan asks for.
        fused: ops that the runtime really runs, by type.
        warnings: what did not hold, one line each.
        exact: share of images on which simulation and unoptimized graph agree to the last digits.
        notes: what did not hold for a known and harmless reason.
    """

    images: int
    agreement: float | None
    sqnr_db: float
    agreement_fused: float | None
    sqnr_fused_db: float
    expected: dict[str, int]
    fused: dict[str, int]
    warnings: tuple[str, ...]
    exact: float = 1.0
    notes: tuple[str, ...] = ()


def _simulate(
    simulation: Simulation, data: Mapping[str, Tensor], batch_size: int
) -> dict[str, npt.NDArray[np.float32]]:
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for batch in forward_batches(data, batch_size, simulation.network.device):
        for name, value in simulation.run(batch).items():
            parts.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _run(
    source: bytes | str, level: Level, data: Mapping[str, Tensor], batch_size: int
) -> dict[str, npt.NDArray[np.float32]]:
    session = open_session(source, level=level)
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    count = len(next(iter(data.values())))
    for start in range(0, count, batch_size):
        feeds = {name: x[start : start + batch_size].numpy() for name, x in data.items()}
        for name, value in run_padded(session, feeds).items():
            parts.setdefault(name, []).append(value.astype(np.float32) if value.dtype == np.float16 else value)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _rounded(
    outputs: Mapping[str, npt.NDArray[np.float32]], model: onnx.ModelProto
) -> dict[str, npt.NDArray[np.float32]]:
    """What is simulated in float32, rounded as outputs are that ``model`` gives in half precision."""
    half = {v.name for v in model.graph.output if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    return {n: x.astype(np.float16).astype(np.float32) if n in half else x for n, x in outputs.items()}


def _compare(
    reference: Mapping[str, npt.NDArray[np.float32]], other: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[float | None, float]:
    """(agreement of the predictions of the first output or None, SQNR over all outputs)."""
    first = next(iter(reference))
    scores = [x[first].reshape(len(x[first]), -1) for x in (reference, other)]
    classes = reference[first].ndim >= 2 and scores[0].shape[1] == reference[first].shape[1] and scores[0].shape[1] > 1
    flat = [np.concatenate([x[name].reshape(-1) for name in reference]) for x in (reference, other)]
    return agreement(scores[0], scores[1]) if classes else None, sqnr_db(flat[0], flat[1])


def verify(
    exported: Exported, simulation: Simulation, data: Mapping[str, Tensor], *, batch_size: int = 8
) -> Verification:
    """Check ``exported`` against ``simulation`` on ``data`` (tensors [N, ...] by input name, on the CPU).

    Raises:
        ExportError: the model is not valid ONNX or the runtime refuses it.
    """
    with openable(exported.model) as source:
        try:
            onnx.checker.check_model(source, full_check=True)
        except Exception as error:
            raise ExportError(f"the exported model is not valid ONNX: {first_line(error)}") from error
        try:
            fused_outputs = _run(source, "all", data, batch_size)
            plain_outputs = _run(source, "off", data, batch_size)
            fused = fused_op_counts(source)
        except ModelError as error:
            raise ExportError(f"ONNX Runtime refuses the exported model: {error}") from error
    simulated = _rounded(_simulate(simulation, data, batch_size), exported.model)
    same, noise = _compare(simulated, plain_outputs)
    same_fused, noise_fused = _compare(simulated, fused_outputs)
    expected = _expected_kernels(exported, fused)
    warnings = [
        f"layer '{name}': the bias does not fit int32 and stays in float, so the layer runs in float"
        for name in exported.float_biases
    ]
    missed = []
    if same is not None and same < MIN_AGREEMENT:
        missed.append(f"{same:.2%} of the predictions agree, expected {MIN_AGREEMENT:.1%}")
    if not noise >= MIN_SQNR_DB:  # NaN, too
        missed.append(f"output SQNR is {noise:.1f} dB, expected {MIN_SQNR_DB:.0f}")
    exact = _exact_images(simulated, plain_outputs)
    notes = []
    if missed:
        text = f"simulation against unoptimized graph: {', '.join(missed)}; {exact:.0%} of the images equal to the last digits"
        if exact >= MIN_EXACT:
            notes.append(f"{text}, in the others sums in another order moved a code that lay between two steps")
        else:
            warnings.append(text)
    if same_fused is not None and same_fused < MIN_AGREEMENT_FUSED:
        warnings.append(
            f"at the default level {same_fused:.2%} of the predictions agree, expected {MIN_AGREEMENT_FUSED:.0%}"
        )
    for kernel, count in expected.items():
        if fused.get(kernel, 0) < count:
            warnings.append(
                f"{count} {kernel} expected, ONNX Runtime runs {fused.get(kernel, 0)}: the rest stays in float"
            )
    images = len(next(iter(data.values())))
    return Verification(
        images, same, noise, same_fused, noise_fused, expected, dict(fused), tuple(warnings), exact, tuple(notes)
    )


def verify_container(
    before: onnx.ModelProto, held: Contained, data: Mapping[str, npt.NDArray[np.generic]] | None
) -> dict[str, int]:
    """Check that another container computes what ``before`` does on ``data`` (arrays [N, ...] by input name), and opens.

    Without data it is only opened.

    Returns:
        The ops that ONNX Runtime runs at its default level, by type.

    Raises:
        ExportError: the model is not valid ONNX, the runtime refuses it, or an output differs.
    """
    try:
        onnx.checker.check_model(held.model.SerializeToString(), full_check=True)
    except Exception as error:
        raise ExportError(f"the converted model is not valid ONNX: {first_line(error)}") from error
    try:
        fused = fused_op_counts(held.model)
        if data is None:
            return dict(fused)
        expected, found = (run_padded(open_session(model, level="off"), data) for model in (before, held.model))
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the converted model, --container int8 runs: {error}") from error
    for name, value in expected.items():
        if not np.array_equal(value, found[name], equal_nan=True):
            raise ExportError(
                f"output '{name}' of the converted model differs from the int8 container's; --container int8 does"
            )
    return dict(fused)


def _exact_images(
    reference: Mapping[str, npt.NDArray[np.float32]], other: Mapping[str, npt.NDArray[np.float32]]
) -> float:
    """Share of images whose outputs all agree to :data:`EXACT`, relative."""
    equal = True
    for name, value in reference.items():
        flat, difference = value.reshape(len(value), -1), (other[name] - value).reshape(len(value), -1)
        equal = equal & (np.linalg.norm(difference, axis=1) <= EXACT * np.linalg.norm(flat, axis=1))
    return float(np.mean(equal))


def _expected_kernels(exported: Exported, fused: Mapping[str, int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in (exported.integer_layers, exported.integer_ops):
        for op, names in table.items():
            if op in _KERNELS:
                counts[_KERNELS[op]] += len(names)
    # Where all sizes are known the runtime makes a Gemm of MatMul and bias, with a Reshape on either side.
    floats = _KERNELS[FLOAT_MATMUL]
    instead = min(max(0, fused.get("QGemm", 0) - counts["QGemm"]), max(0, counts[floats] - fused.get(floats, 0)))
    counts["QGemm"] += instead
    counts[floats] -= instead
    return {kernel: count for kernel, count in counts.items() if count}
