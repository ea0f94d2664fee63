"""Checks on the file before anybody calls it done: valid, opens, computes what was learned, runs in integers.

What is measured is what is written, after target and container, at the default level of its runtime; docs/method.md 21.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from mrecg_onnx.checking.tracing import Run, Trace, bisect, follow
from mrecg_onnx.converters.errors import ExportError, ModelError, first_line
from mrecg_onnx.converters.save import openable
from mrecg_onnx.measures import Heads, OutputSums, agreement, prediction_output
from mrecg_onnx.network import Network, Simulation, forward_batches
from mrecg_onnx.runtimes import Level, fused_op_counts, open_session, open_with, run_padded
from mrecg_onnx.targets import Target
from mrecg_onnx.writing import FLOAT_MATMUL, Contained, Exported

__all__ = ["OutputCheck", "Verification", "verify", "verify_container"]

#: Below this SQNR of an output, or where it lies so much further from the float model, every node has to answer for itself.
MIN_SQNR_DB, MOST_LOST_DB = 40.0, 3.0
#: Images for that, and for another runtime and another container.
TRACED_IMAGES, RUNTIME_IMAGES, CONTAINER_IMAGES = 8, 64, 8
#: Energy of a node's own differences over that of rounding up to which they are no fault: 0.4 dB more noise.
TOLERATED = 0.1
#: Relative difference up to which an image counts as equal.
EXACT = 1e-4
#: Nodes at fault that are named.
NAMED = 3

Arrays = Mapping[str, npt.NDArray[np.generic]]

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


#: Those of them that run layers.
_LAYERS = frozenset({"MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul"})


@dataclass(frozen=True)
class OutputCheck:
    """One output, in dB (SQNR, docs/method.md 19); those without floats have a share instead.

    Attributes:
        name: the output.
        simulation_db: simulation against the graph as written.
        sqnr_db: the written file at its runtime's default level against the graph as written.
        written_db: graph as written against the float network.
        default_db: default level against the float network.
        equal: share of equal values, default level against the graph as written; None where values are floats.
    """

    name: str
    simulation_db: float
    sqnr_db: float
    written_db: float
    default_db: float
    equal: float | None = None

    @property
    def falls(self) -> bool:
        """At the default level it is not what is written."""
        if self.equal is not None:
            return False
        return not self.sqnr_db >= MIN_SQNR_DB or not self.written_db - self.default_db <= MOST_LOST_DB


@dataclass(frozen=True)
class Traced:
    """Every quantizer of two executions that differ, fed the same codes (:mod:`mrecg_onnx.checking.tracing`).

    Attributes:
        where: which two.
        codes: how many were compared.
        moved: how many differ.
        on_edge: those of them that lie on the edge between two steps and differ by one.
        most: largest difference, in steps.
        sqnr_db: the worst output's SQNR, fed the same codes.
    """

    where: str
    codes: int
    moved: int
    on_edge: int
    most: float
    sqnr_db: float

    @classmethod
    def of(cls, where: str, trace: Trace) -> Traced:
        """The sums of a trace."""
        found = trace.departures.values()
        moved = sum(d.moved for d in found)
        worst = min((x.sqnr_db for x in trace.outputs.values() if x.floating), default=np.inf)
        most = max((d.most for d in found), default=0.0)
        return cls(where, sum(d.values for d in found), moved, moved - sum(d.far for d in found), most, worst)


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


def _simulate(simulation: Simulation, data: Mapping[str, Tensor], batch_size: int) -> tuple[Arrays, Arrays]:
    """Outputs of the float network and of the simulation."""
    parts: tuple[dict[str, list[npt.NDArray[np.generic]]], ...] = ({}, {})
    for batch in forward_batches(data, batch_size, simulation.network.device):
        with torch.no_grad():
            made = simulation.network.run(batch), simulation.run(batch)
        for part, outputs in zip(parts, made, strict=True):
            for name, value in outputs.items():
                part.setdefault(name, []).append(value.cpu().numpy())
    floating, simulated = ({name: np.concatenate(rows) for name, rows in part.items()} for part in parts)
    return floating, simulated


def _run(model: onnx.ModelProto, level: Level, data: Mapping[str, Tensor], batch_size: int) -> Arrays:
    with openable(model) as source:
        session = open_session(source, level=level)
    parts: dict[str, list[npt.NDArray[np.generic]]] = {}
    count = len(next(iter(data.values())))
    for start in range(0, count, batch_size):
        feeds = {name: x[start : start + batch_size].numpy() for name, x in data.items()}
        for name, value in run_padded(session, feeds).items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


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
        batch_size: samples at a time.

    Raises:
        ExportError: the model is not valid ONNX, the runtime refuses it, or target and container change what it computes.
    """
    written = held.model if held is not None else exported.model
    try:
        with openable(exported.model) as source:
            onnx.checker.check_model(source, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported model is not valid ONNX: {first_line(error)}") from error
    try:
        plain = _run(exported.model, "off", data, batch_size)
        with openable(exported.model) as source:
            own = fused_op_counts(source)
        fused = dict(own)
        if held is not None and held.model is not exported.model:
            few = {n: x[:CONTAINER_IMAGES].numpy() for n, x in data.items()}
            fused = verify_container(exported.model, held, few)
        default, runtime, opened = _at_default(written, target, data, batch_size)
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the exported model: {error}") from error
    floating, simulated = _simulate(simulation, data, batch_size)
    # Inside all is float32; what the file gives in half precision is rounded once more at its border.
    simulated = {name: value.astype(plain[name].dtype) for name, value in simulated.items()}
    rows = len(next(iter(default.values())))
    heads = Heads.of_network(simulation.network, data)
    same, same_fused = _agreement(floating, simulated, plain, heads), _agreement(floating, plain, default, heads)
    checks = _checks(floating, simulated, plain, default)
    expected = _expected_kernels(exported, own)
    warnings = [
        f"layer '{name}': the bias does not fit int32 and stays in float, so the layer runs in float, right but slower; "
        "its weights are next to 0 under that bias, look at where they come from"
        for name in exported.float_biases
    ]
    notes = [*(held.notes if held is not None else ()), *opened]
    few_images = {name: x[:TRACED_IMAGES] for name, x in data.items()}
    exact, traced = _exact_images(simulated, plain), list[Traced]()
    if any(not check.simulation_db >= MIN_SQNR_DB for check in checks if check.equal is None):
        judged = _Judged("the file run as written, against the simulation", simulation, _worst(checks, "simulation_db"))
        trace = follow(exported.model, exported.codes, simulation, few_images, _runner("off"), batch_size)
        traced.append(judged.judge(trace, notes, warnings))
    if any(check.falls for check in checks):
        where = f"{runtime} at its default level, against the file as written"
        judged = _Judged(
            where, simulation, _worst(checks, "sqnr_db"), max(c.written_db - c.default_db for c in checks if c.falls)
        )
        run = _runner("all") if target is None or not _elsewhere(target) else _other_runner(target)
        trace = follow(written, exported.codes, simulation, few_images, run, batch_size)
        if _same(trace.run, default):
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
        _integer_layers(exported, expected, fused if target is None or target.runtime == "onnxruntime" else own),
        dict(exported.float_layers),
    )


def _same(few: Arrays, all_rows: Arrays) -> bool:
    """The first rows are those of ``few``, but for the last digits."""
    floats = {n: x for n, x in few.items() if x.dtype.kind == "f"}
    return all(OutputSums.of(all_rows[n][: len(x)], x).sqnr_db >= MIN_SQNR_DB for n, x in floats.items())


def _elsewhere(target: Target) -> bool:
    """``target`` has a runtime of its own that is installed."""
    return target.runtime == "openvino" and importlib.util.find_spec("openvino") is not None


def _at_default(
    written: onnx.ModelProto, target: Target | None, data: Mapping[str, Tensor], batch_size: int
) -> tuple[Arrays, str, list[str]]:
    """Outputs of the file at the default level of its runtime, of ONNX Runtime where that is not installed; its name; a note."""
    notes = []
    if target is not None and target.runtime != "onnxruntime":
        opened = open_with(target, written, {n: x[:RUNTIME_IMAGES].numpy() for n, x in data.items()})
        notes.append(f"target {target.name}: {opened.line()}")
        if opened.outputs:
            return opened.outputs, opened.runtime, notes
    return _run(written, "all", data, batch_size), "ONNX Runtime", notes


def _runner(level: Level) -> Run:
    """ONNX Runtime, for one model after the other."""

    def run(model: onnx.ModelProto, data: Arrays) -> Arrays:
        with openable(model) as source:
            return run_padded(open_session(source, level=level), data)

    return run


def _other_runner(target: Target) -> Run:
    return lambda model, data: open_with(target, model, data).outputs


def _agreement(floating: Arrays, one: Arrays, other: Arrays, heads: Heads) -> float | None:
    """Share of equal predictions, None where no output holds class scores."""
    rows = min(len(x[next(iter(floating))]) for x in (one, other))
    name = prediction_output(floating, heads)
    return agreement(*(x[name][:rows].reshape(rows, -1) for x in (one, other))) if name is not None else None


def _checks(floating: Arrays, simulated: Arrays, plain: Arrays, default: Arrays) -> list[OutputCheck]:
    """Every output, the worst first."""
    found = []
    for name, wanted in floating.items():
        rows = len(default[name])
        made = OutputSums.of(plain[name][:rows], default[name])
        pairs = ((simulated[name], plain[name]), (wanted, plain[name]), (wanted[:rows], default[name]))
        simulation, written, there = (OutputSums.of(r, o).sqnr_db for r, o in pairs)
        equal = None if made.floating else made.equal
        found.append(OutputCheck(name, simulation, made.sqnr_db, written, there, equal))
    return sorted(found, key=lambda c: (c.equal is not None, min(c.sqnr_db, c.simulation_db)))


def _worst(checks: Sequence[OutputCheck], figure: str) -> tuple[str, float]:
    """Name and dB of the output that is least."""
    worst = min((c for c in checks if c.equal is None), key=lambda c: float(getattr(c, figure)))
    return worst.name, float(getattr(worst, figure))


@dataclass(frozen=True)
class _Judged:
    """A figure that fell short, between two executions that should be one.

    Attributes:
        where: which two.
        simulation: what was learned.
        worst: the output that is furthest off, and its SQNR.
        lost_db: how much further from the float model it is than the other one.
    """

    where: str
    simulation: Simulation
    worst: tuple[str, float]
    lost_db: float = 0.0

    def judge(self, trace: Trace, notes: list[str], warnings: list[str]) -> Traced:
        """Put into ``notes`` why that is harmless, or into ``warnings`` which node is at fault and what to do."""
        found = Traced.of(self.where, trace)
        name, figure = self.worst
        text = f"{self.where}: output '{name}' has {figure:.1f} dB"
        faults = [d for d in trace.departures.values() if d.rounding > TOLERATED or d.most > 1.5]
        faults.sort(key=lambda d: d.rounding, reverse=True)
        wrong = [n for n, sums in trace.outputs.items() if sums.floating and not sums.sqnr_db >= MIN_SQNR_DB]
        alone = f"{found.moved} of {found.codes} codes differ, {found.on_edge} of them on the edge between two steps"
        if not faults and not wrong and not self.lost_db > MOST_LOST_DB:
            notes.append(
                f"{text}, and every node is right: fed the same codes {alone}, none by more than one step; later layers only "
                "round differently"
            )
        elif faults:
            said = [
                f"{self._node(d.tensor)} differs by up to {d.most:.0f} steps in {d.share:.1%} of its values"
                for d in faults[:NAMED]
            ]
            more = f", and {len(faults) - NAMED} more" if faults[NAMED:] else ""
            first = self._node_name(faults[0].tensor)
            warnings.append(
                f"{text}, expected {MIN_SQNR_DB:.0f}: fed the same codes {'; '.join(said)}{more}; keep that in float with "
                f"--exclude '{first}', or run the file with graph optimizations off"
            )
        elif wrong:
            warnings.append(
                f"{text}, expected {MIN_SQNR_DB:.0f}: {self._node(wrong[0])} in front of output '{wrong[0]}' gives "
                f"{trace.outputs[wrong[0]].sqnr_db:.1f} dB when it is fed the same codes; keep it in float with "
                f"--exclude '{self._node_name(wrong[0])}', or run the file with graph optimizations off"
            )
        else:
            warnings.append(
                f"{text} and lies {self.lost_db:.1f} dB further from the float model, though no node is at fault ({alone}): "
                "the network does not bear these widths; give it more bits with --protect or --bits"
            )
        return found

    def by_type(self, written: onnx.ModelProto, plain: Arrays, data: Mapping[str, Tensor], run: Run) -> str:
        """What is at fault where looking at codes changes what runs: one operator type kept in float at a time."""
        name, figure = self.worst
        rows = len(next(iter(data.values())))
        wanted = {n: x[:rows] for n, x in plain.items()}
        found = bisect(written, wanted, {n: x.numpy() for n, x in data.items()}, run, MOST_LOST_DB)
        text = f"{self.where}: output '{name}' has {figure:.1f} dB, expected {MIN_SQNR_DB:.0f}"
        if found is None:
            return f"{text}, with any operator type kept in float: run the file with graph optimizations off"
        op, nodes = found
        more = f" and {len(nodes) - NAMED} more" if nodes[NAMED:] else ""
        return (
            f"{text}: the integer kernel of {op} is at fault (node {', '.join(nodes[:NAMED])}{more}); keep it in float with "
            f"--exclude '{nodes[0]}', or run the file with graph optimizations off"
        )

    def _step_of(self, tensor: str) -> tuple[str, str] | None:
        """Name and op of the node that makes ``tensor``, in front of the Relu or Clip that became bounds of its codes."""
        network: Network = self.simulation.network
        makers = {made: step for step in network.steps for made in step.outputs}
        step = makers.get(tensor)
        while step is not None and step.op in {"Clip", "Min", "Relu"} and step.arguments[0] in makers:
            step = makers[step.arguments[0] or ""]
        return (step.node, step.op) if step is not None else None

    def _node(self, tensor: str) -> str:
        found = self._step_of(tensor)
        return f"node '{found[0]}' ({found[1]})" if found is not None else f"input '{tensor}'"

    def _node_name(self, tensor: str) -> str:
        found = self._step_of(tensor)
        return found[0] if found is not None else tensor


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


def _exact_images(reference: Arrays, other: Arrays) -> float:
    """Share of images whose outputs all agree to :data:`EXACT`, relative."""
    equal = np.ones(len(next(iter(reference.values()))), bool)
    for name, value in reference.items():
        flat, there = (x[name].reshape(len(value), -1).astype(np.float64) for x in (reference, other))
        difference = there - flat
        equal = equal & (np.linalg.norm(difference, axis=1) <= EXACT * np.linalg.norm(flat, axis=1))
    return float(np.mean(equal))


def _integer_layers(exported: Exported, expected: Mapping[str, int], fused: Mapping[str, int]) -> int:
    """How many layers run in integers where the runtime runs ``fused``: kernels of layers that are missing count against them."""
    missing = sum(max(0, n - fused.get(kernel, 0)) for kernel, n in expected.items() if kernel in _LAYERS)
    return max(0, sum(map(len, exported.integer_layers.values())) - missing)


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
