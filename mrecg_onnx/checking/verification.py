"""Checks on the file before anybody calls it done: valid, opens, computes what was learned, runs in integers.

What is measured is what is written, after target and container, at the default level of its runtime; docs/method.md 21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from mrecg_onnx.checking.executions import (
    default_runtime,
    onnx_runtime,
    run_at_default,
    run_file,
    run_simulation,
)
from mrecg_onnx.checking.kernels import expected_kernels, integer_layers
from mrecg_onnx.checking.outputs import (
    MIN_SQNR_DB,
    OutputCheck,
    check_outputs,
    equal_predictions,
    exact_images,
    same_rows,
    worst_output,
)
from mrecg_onnx.checking.tracing import follow
from mrecg_onnx.checking.verdicts import Shortfall, Traced
from mrecg_onnx.converters.errors import ExportError, ModelError, first_line
from mrecg_onnx.converters.save import openable
from mrecg_onnx.data import Dataset
from mrecg_onnx.measures import Heads
from mrecg_onnx.network import Simulation, images_at_once
from mrecg_onnx.planning import cut_off
from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.targets import Target
from mrecg_onnx.writing import Contained, Exported, contained, container_of, runnable

__all__ = ["Verification", "checked_images", "verify", "verify_container"]

#: Images on which a file is compared with the simulation: the most, of small ones, and how many numbers they may hold together;
#: fewer than the images that are held anyway they never are. With 64 an SQNR below 40 dB has a standard error of .2 to .7 dB
#: (docs/method.md 21), and what shows on one image in twenty is missed once in thirty times.
MOST_IMAGES, NUMBERS = 256, 1 << 20
#: Images on which every node answers for itself, and on which two containers are compared.
TRACED_IMAGES, CONTAINER_IMAGES = 8, 8


@dataclass(frozen=True)
class Verification:
    """What the checks measured.

    Attributes:
        images: calibration images compared.
        agreement: share of equal predictions, simulation against the graph as written; None without class scores
            (:mod:`mrecg_onnx.measures.predictions`).
        sqnr_db: SQNR of the worst output of the same pair.
        agreement_fused: share of equal predictions, graph as written against the written file at the default level.
        sqnr_fused_db: SQNR of the worst output of that pair.
        expected: integer kernels that the plan asks for.
        fused: ops that ONNX Runtime really runs, by type.
        warnings: what did not hold and what to do, one line each.
        exact: share of images on which simulation and graph as written agree to the last digits.
        notes: what did not hold for a known and harmless reason.
        outputs: every output, the worst first.
        runtime: what ran the file at its default level.
        traced: where a figure fell short, every node fed the same codes.
        layers: all layers of the model with weights.
        integer_layers: those of them that the runtime runs on integer kernels.
        float_layers: those that are in float by the plan, by name, with the reason.
        agreement_float: share of images whose prediction is that of the float network, at the default level of the runtime; None
            where no output holds class scores.
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
    outputs: tuple[OutputCheck, ...] = ()
    runtime: str = "ONNX Runtime"
    traced: tuple[Traced, ...] = ()
    layers: int = 0
    integer_layers: int = 0
    float_layers: dict[str, str] = field(default_factory=dict)
    agreement_float: float | None = None

    @property
    def furthest(self) -> tuple[str, float] | None:
        """The float output furthest from the float network at the default level, and its dB; None where no output is float."""
        floats = [check for check in self.outputs if check.equal is None]
        return worst_output(floats, "default_db") if floats else None

    @property
    def float_outputs(self) -> int:
        """How many outputs are floats."""
        return sum(check.equal is None for check in self.outputs)


def checked_images(held: dict[str, Tensor], dataset: Dataset) -> dict[str, Tensor]:
    """Images on which to check a file: those that are ``held``, spread over ``dataset``, or more of it where they are small."""
    count = min(MOST_IMAGES, NUMBERS // max(1, sum(x[0].numel() for x in held.values())))
    if count <= len(next(iter(held.values()))):
        return held
    return {name: torch.from_numpy(array) for name, array in dataset.load(count).items()}


def verify(
    exported: Exported,
    simulation: Simulation,
    data: Mapping[str, Tensor],
    *,
    held: Contained | None = None,
    target: Target | None = None,
    batch_size: int = 8,
) -> Verification:
    """Check what is written against ``simulation`` on ``data`` (tensors [N, ...] by input name, on the CPU).

    Args:
        exported: the graph as :func:`mrecg_onnx.writing.qdq.export` made it.
        simulation: what was learned.
        data: inputs.
        held: the file for its target and in its container, where that is another form.
        target: its rules, where it is not meant for ONNX Runtime.
        batch_size: samples at a time, at most.

    Raises:
        ExportError: the model is not valid ONNX, the runtime refuses it, or target and container change what it computes.
    """
    written = runnable(held.model) if held is not None else exported.model
    try:
        with openable(exported.model) as source:
            onnx.checker.check_model(source, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported model is not valid ONNX: {first_line(error)}") from error
    try:
        plain = run_file(exported.model, "off", data, batch_size)
        with openable(exported.model) as source:
            own = fused_op_counts(source)
        fused = dict(own)
        if held is not None and held.model is not exported.model:
            few = {n: x[:CONTAINER_IMAGES].numpy() for n, x in data.items()}
            fused = verify_container(exported.model, held, few)
        file = held.model if held is not None else written
        default, runtime, opened = run_at_default(written, target, data, batch_size, file)
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the exported model: {error}") from error
    few_at_once = images_at_once(simulation.network, data, batch_size)
    floating, simulated = run_simulation(simulation, data, few_at_once)
    # Inside all is float32; what the file gives in half precision is rounded once more at its border.
    simulated = {name: value.astype(plain[name].dtype) for name, value in simulated.items()}
    rows = len(next(iter(default.values())))
    heads = Heads.of_network(simulation.network, data)
    same = equal_predictions(floating, simulated, plain, heads)
    same_fused = equal_predictions(floating, plain, default, heads)
    checks = check_outputs(floating, simulated, plain, default)
    expected = expected_kernels(exported, own)
    warnings = [
        f"layer '{name}': the bias does not fit int32 and stays in float, so the layer runs in float, right but slower; "
        "its weights are next to 0 under that bias, look at where they come from"
        for name in exported.float_biases
    ]
    notes = [*(held.notes if held is not None else ()), *opened]
    few_images = {name: x[:TRACED_IMAGES] for name, x in data.items()}
    exact, traced = exact_images(simulated, plain), list[Traced]()
    if any(not check.simulation_db >= MIN_SQNR_DB for check in checks if check.equal is None):
        judged = Shortfall(
            "the file run as written, against the simulation", simulation, worst_output(checks, "simulation_db")
        )
        trace = follow(exported.model, exported.codes, simulation, few_images, onnx_runtime("off"), few_at_once)
        traced.append(judged.judge(trace, notes, warnings))
    if any(check.falls for check in checks):
        where = f"{runtime} at its default level, against the file as written"
        judged = Shortfall(
            where,
            simulation,
            worst_output(checks, "sqnr_db"),
            max(c.written_db - c.default_db for c in checks if c.falls),
        )
        run = default_runtime(target)
        trace = follow(written, exported.codes, simulation, few_images, run, few_at_once)
        if same_rows(trace.run, default):
            traced.append(judged.judge(trace, notes, warnings))
        else:  # the probes changed what runs
            warnings.append(judged.by_type(written, plain, few_images, run))
    changed = held is not None and held.model is not exported.model
    lost = [
        f"{kernel} {fused.get(kernel, 0)} of {count}"
        for kernel, count in expected.items()
        if fused.get(kernel, 0) < count
    ]
    if lost and changed and (target is None or target.runtime == "onnxruntime"):
        notes.append(f"in this form ONNX Runtime runs fewer integer kernels: {', '.join(lost)}")
    for kernel, count in expected.items() if not changed else ():
        if fused.get(kernel, 0) < count:
            warnings.append(
                f"{count} {kernel} expected, ONNX Runtime runs {fused.get(kernel, 0)}: the rest stays in float, slower but no "
                "less exact; `mrecg-onnx benchmark` shows what it costs"
            )
    return Verification(
        rows,
        same,
        min((c.simulation_db for c in checks if c.equal is None), default=np.inf),
        same_fused,
        min((c.sqnr_db for c in checks if c.equal is None), default=np.inf),
        expected,
        fused,
        tuple(warnings),
        exact,
        tuple(notes),
        tuple(checks),
        runtime,
        tuple(traced),
        sum(map(len, exported.integer_layers.values())) + len(exported.float_layers),
        integer_layers(exported, expected, fused if target is None or target.runtime == "onnxruntime" else own),
        dict(exported.float_layers),
        equal_predictions(floating, floating, default, heads),
    )


def verify_container(
    before: onnx.ModelProto, held: Contained, data: Mapping[str, npt.NDArray[np.generic]] | None
) -> dict[str, int]:
    """Check that another container computes what ``before`` does on ``data`` (arrays [N, ...] by input name), and opens.

    Without data it is only opened. Of a container that ONNX Runtime does not run that is done with what is read back from it, and
    it has to come out again when that is written.

    Returns:
        The ops that ONNX Runtime runs at its default level, by type.

    Raises:
        ExportError: the model is not valid ONNX, the runtime refuses it, or an output differs.
    """
    try:
        onnx.checker.check_model(held.model.SerializeToString(), full_check=True)
    except Exception as error:
        raise ExportError(f"the converted model is not valid ONNX: {first_line(error)}") from error
    plain = runnable(held.model)
    if plain is not held.model:
        again = contained(plain, container_of(held.model)).model
        if again.SerializeToString(deterministic=True) != held.model.SerializeToString(deterministic=True):
            raise ExportError(
                "what is read back from the converted model does not make it again; --container int8 does"
            )
    try:
        fused = fused_op_counts(plain)
        if data is None:
            return dict(fused)
        # Of files whose last outputs have no row an image, what is in front of these.
        fronts = (cut_off(model)[0] for model in (runnable(before), plain))
        expected, found = (
            onnx_runtime("off")(front, {v.name: data[v.name] for v in front.graph.input if v.name in data})
            for front in fronts
        )
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the converted model, --container int8 runs: {error}") from error
    for name, value in expected.items():
        if not np.array_equal(value, found[name], equal_nan=True):
            raise ExportError(
                f"output '{name}' of the converted model differs from the int8 container's; --container int8 does"
            )
    return dict(fused)
