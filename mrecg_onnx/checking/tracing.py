"""Where a file departs from what was learned: every step of the network is fed the codes that the runtime itself has there.

From end to end two executions of a deep quantized network differ far more than any of their nodes: sums in another order move the
few codes that lie on the edge between two steps, the next layers round differently from there on, and what arrives at the
outputs is as large as the rounding noise itself. Fed the same codes, each node has to answer for itself alone
(docs/method.md 21).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from mrecg_onnx.checking.outputs import Arrays
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.measures import OutputSums, output_sums, sqnr_db, with_float_outputs
from mrecg_onnx.network import Simulation, forward_batches
from mrecg_onnx.progress import tell, told
from mrecg_onnx.quantizers import Grid, fake_quantize

__all__ = ["Departure", "Trace", "bisect", "follow", "kept_float", "probed"]

#: Runs a model on inputs, by name.
Run = Callable[[onnx.ModelProto, Arrays], Arrays]
#: Distance from the edge between two steps, in steps, within which either code is right: float32 sums of codes up to 255.
EDGE = 1e-3


@dataclass
class Departure:
    """How the codes of one quantizer differ from those that its own inputs ask for.

    Attributes:
        tensor: the quantizer.
        values: how many.
        moved: codes that differ.
        far: those of them that do not lie on an edge.
        most: largest difference, in steps.
        noise: sum of squared differences, in steps.
    """

    tensor: str
    values: int = 0
    moved: int = 0
    far: int = 0
    most: float = 0.0
    noise: float = 0.0

    @property
    def share(self) -> float:
        """Of codes that differ."""
        return self.moved / max(1, self.values)

    @property
    def rounding(self) -> float:
        """Energy of the differences over that of rounding itself, 1/12 of a squared step."""
        return 12 * self.noise / max(1, self.values)


@dataclass
class Trace:
    """What :func:`follow` found.

    Attributes:
        departures: by quantizer, in the order of the network.
        outputs: each output against what the codes in front of it ask for.
        run: outputs of the run that was traced.
    """

    departures: dict[str, Departure] = field(default_factory=dict)
    outputs: dict[str, OutputSums] = field(default_factory=dict)
    run: Arrays = field(default_factory=dict)


def probed(model: onnx.ModelProto, codes: Mapping[str, tuple[str, ...]]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """``model`` with the dequantized values of its quantizers as further outputs, and their names by quantizer.

    A DequantizeLinear of its own makes each of them, so that what reads the codes is fused as without. Quantizers whose codes
    nothing dequantizes are left out.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    readers = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for quantizer, names in codes.items():
        reader = next((readers[name] for name in reversed(names) if name in readers), None)
        if reader is None:
            continue
        node = result.graph.node.add()
        node.CopyFrom(reader)
        found[quantizer] = claim(f"{quantizer}_probe", taken)
        node.name, node.output[0] = found[quantizer], found[quantizer]
        result.graph.output.add().CopyFrom(
            onnx.helper.make_tensor_value_info(found[quantizer], onnx.TensorProto.FLOAT, None)
        )
    return result, found


def follow(
    model: onnx.ModelProto,
    codes: Mapping[str, tuple[str, ...]],
    simulation: Simulation,
    data: Mapping[str, Tensor],
    run: Run,
    batch_size: int,
) -> Trace:
    """Run ``model`` and hold each quantizer and output against what the simulation makes of the codes in front of it.

    Args:
        model: the file.
        codes: names of the codes by quantizer (:attr:`mrecg_onnx.writing.exported.Exported.codes`).
        simulation: what was learned.
        data: inputs, [N, ...] by name, on the CPU.
        run: the runtime.
        batch_size: samples at a time.
    """
    network, trace = simulation.network, Trace()
    if network.batch is not None:  # what belongs to a whole batch is joined in nobody's order
        codes = {name: made for name, made in codes.items() if name in network.rows}
    grown, probes = probed(model, codes)
    parts: dict[str, list[npt.NDArray[np.generic]]] = {}
    weight, done = simulation.weight_hook(), 0
    for batch in forward_batches(data, batch_size, network.device):
        made = run(grown, {name: x.cpu().contiguous().numpy() for name, x in batch.items()})
        rows = len(next(iter(made.values())))
        seen = {quantizer: made[probe] for quantizer, probe in probes.items()}
        for name in network.outputs:
            parts.setdefault(name, []).append(made[name])
        floats: dict[str, Tensor] = {}

        def forced(name: str, value: Tensor, seen: Arrays = seen, floats: dict[str, Tensor] = floats) -> Tensor:
            if name in simulation.float_outputs:
                floats[name] = value
            grid = simulation.activations.get(name)
            if grid is None:
                return value
            if name not in seen:
                return fake_quantize(value, grid)
            there = torch.from_numpy(np.asarray(seen[name], np.float32)).to(value).view_as(value)
            _note(trace.departures.setdefault(name, Departure(name)), value, there, grid)
            return there

        with torch.no_grad():
            inputs = {name: forced(name, x[:rows]) for name, x in batch.items()}
            outputs = network.run(inputs, activation=forced, weight=weight)
        expected = with_float_outputs(outputs, floats)
        actual = {name: torch.from_numpy(np.array(made[name])).to(expected[name].device) for name in expected}
        for name, sums in output_sums(actual, expected).items():
            trace.outputs[name] = trace.outputs[name] + sums if name in trace.outputs else sums
        done += rows
        tell(done, max(done, len(next(iter(data.values())))), "images node by node")
    trace.run = {name: np.concatenate(rows_) for name, rows_ in parts.items()}
    return trace


def _note(found: Departure, value: Tensor, there: Tensor, grid: Grid) -> None:
    """Add what ``there`` differs by from ``value`` on the grid."""
    step = grid.scale.reshape(()) if grid.scale.numel() == 1 else grid.shaped(grid.scale, value.dim())
    difference = ((there - fake_quantize(value, grid)) / step).abs()
    moved = difference > 0.5
    found.values += value.numel()
    count = int(moved.sum())
    if not count:
        return
    position = (value / step)[moved]
    edge = (position - position.floor() - 0.5).abs()
    found.moved += count
    found.far += int(((edge > EDGE) | (difference[moved] > 1.5)).sum())
    found.most = max(found.most, float(difference.max()))
    found.noise += float(difference[moved].square().sum())


def kept_float(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """``model`` with those nodes parted from the quantizers behind them, so that they are in no integer kernel.

    A LeakyRelu with slope 1 stands behind each: it returns its input, and no kernel takes it in.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    kept = [node for node in graph.node if node.name in set(nodes)]
    for node in kept:
        source = node.output[0]
        copy = claim(f"{source}_parted", taken)
        for reader in graph.node:
            reader.input[:] = [copy if name == source else name for name in reader.input]
        graph.node.insert(
            list(graph.node).index(node) + 1, onnx.helper.make_node("LeakyRelu", [source], [copy], copy, alpha=1.0)
        )
    return result


def bisect(
    model: onnx.ModelProto, wanted: Arrays, data: Arrays, run: Run, gain_db: float
) -> tuple[str, list[str]] | None:
    """Which nodes have to stay in float for the outputs to be ``wanted``: one operator type at a time, then its nodes.

    Args:
        model: the file.
        wanted: outputs of the file run as written.
        data: inputs.
        run: the runtime at its default level.
        gain_db: least that the worst output has to win.

    Returns:
        The operator type that brings most and its nodes at fault (all, where none is alone); None where none brings enough.
    """

    def figure(candidate: onnx.ModelProto) -> float:
        made = run(candidate, data)
        return min((sqnr_db(x, made[n]) for n, x in wanted.items() if x.dtype.kind == "f"), default=np.inf)

    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    types: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type not in {"DequantizeLinear", "QuantizeLinear"} and any(
            name in dequantized for name in node.input
        ):
            types.setdefault(node.op_type, []).append(node.name)
    before = figure(model)
    found = [(figure(kept_float(model, names)), op) for op, names in told(list(types.items()), "operator types")]
    if not found or not max(found)[0] >= before + gain_db:
        return None
    op = max(found)[1]
    alone = [name for name in told(types[op], "nodes") if figure(kept_float(model, [name])) >= before + gain_db]
    return op, alone or types[op]
