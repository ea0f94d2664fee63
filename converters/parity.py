"""Compare a torch module with ONNX Runtime on the model it was made from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import fx

from mrecg_onnx.converters.deadline import TimeLimitError, run_limited
from mrecg_onnx.converters.errors import ConversionError, DataError, ModelError
from mrecg_onnx.converters.protos import graphs
from mrecg_onnx.converters.save import openable
from mrecg_onnx.converters.text import first_of, quoted
from mrecg_onnx.converters.versions import restamped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["all_finite", "check_parity", "relative_error", "run_onnx"]

logger = logging.getLogger(__name__)

#: Inputs moved by this share, eight units of float32's last place, move outputs by what sums in another order may, or more.
_NUDGE = 2.0**-21
#: The largest difference that is ever taken for rounding: 40 dB.
_MOST_ROUNDING = 1e-2


def check_parity(
    model: ir.Model | onnx.ModelProto,
    module: torch.nn.Module,
    inputs: Arrays,
    tolerance: float = 1e-4,
    *,
    batch: int | None = None,
) -> float:
    """Compare ``module`` with ONNX Runtime on the same inputs.

    Args:
        model: The ONNX model.
        module: What :func:`mrecg_onnx.converters.to_torch` made of it. Any other module with the same inputs and
            outputs can be compared too, but then no node can be named.
        inputs: One array per graph input, by name. Where the model fixes its batch, ONNX Runtime runs pieces of that
            size, and torch the whole.
        tolerance: The largest relative error accepted, |torch - onnx| / |onnx| with L2 norms, per output. Of a
            network that amplifies rounding, what its outputs move in ONNX Runtime where the inputs move in their last places.
        batch: Run both in pieces of that size.

    Returns:
        The largest relative error of the outputs.

    Raises:
        ConversionError: An output differs; the message names the first node in topological order whose output does.
        ModelError: An activation is NaN or infinite; the message names the first such tensor.
        DataError: An input is missing, or is NaN or infinite.
    """
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    feeds = _feeds(proto, inputs)
    names = [output.name for output in proto.graph.output]
    pieces = _fixed_batches(proto, feeds) if batch is None else _pieces(feeds, batch)
    parts = [run_onnx(proto, piece) for piece in pieces]
    rows = len(next(iter(feeds.values())))
    expected = parts[0] if pieces[0] is feeds else _joined(parts, rows)
    runs = [_run_torch(module, proto, piece) for piece in ([feeds] if batch is None else pieces)]
    recorded = next((run for run in runs if run.first_broken is not None), runs[0])
    actual = dict(zip(names, recorded.outputs, strict=True))
    if batch is not None:
        actual = _joined([dict(zip(names, run.outputs, strict=True)) for run in runs], rows)
    broken = [name for name in names if not _is_finite(expected[name])]
    if broken or recorded.first_broken is not None:
        finite = [all(_is_finite(part[name]) for name in names) for part in parts]
        _raise_not_finite(proto, pieces[finite.index(False) if False in finite else 0], recorded, broken)
    errors = {name: relative_error(actual[name], expected[name]) for name in names}
    worst = max(errors, key=lambda name: errors[name], default=None)
    if worst is None:
        return 0.0
    if not errors[worst] <= tolerance:
        moved = _moved(proto, pieces, parts)
        if any(not error <= max(tolerance, moved[name]) for name, error in errors.items()):
            _raise_first_difference(proto, module, pieces[0], tolerance, errors)
        logger.warning(
            "output %s differs between torch and ONNX Runtime by %.1e relative, which is rounding that the network amplifies: "
            "inputs changed in their last places change it by %.1e",
            quoted(worst), errors[worst], moved[worst],
        )  # fmt: skip
    return errors[worst]


def run_onnx(model: onnx.ModelProto, inputs: Arrays, *, all_tensors: bool = False) -> dict[str, NDArray[np.generic]]:
    """Run ``model`` on ONNX Runtime's CPU provider, node by node as it stands.

    Graph optimizations are off, as some change results: fusing a zero Pad into the MaxPool behind it, for one, which
    ONNX Runtime 1.31 does, is right for inputs that are not negative only.

    Args:
        model: The model.
        inputs: One array per graph input, by name.
        all_tensors: Return every tensor that a node makes, not only the outputs.

    Raises:
        ModelError: ONNX Runtime cannot open or run it.
        TimeLimitError: It takes too long.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # nothing on stderr: what fails is raised
    options.intra_op_num_threads = torch.get_num_threads()
    names = [output.name for output in model.graph.output]
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if all_tensors:
        model, names = _with_all_outputs(model)
    try:
        session = _session(model, options)
        return dict(zip(names, run_limited(session, names, inputs, f"the model{_loops(model)}"), strict=True))
    except TimeLimitError:
        raise
    # Its exceptions share no base below Exception.
    except Exception as error:
        lines = str(error).splitlines()
        raise ModelError(f"ONNX Runtime cannot run the model: {lines[0] if lines else error}") from error


def all_finite(x: torch.Tensor) -> bool:
    """True where no number of ``x`` is NaN or infinite; integers never are.

    A finite sum says it in a fifth of the time that a look at every number takes.
    """
    if not x.is_floating_point() or bool(torch.isfinite(x.sum())):
        return True
    return bool(torch.isfinite(x).all())


def relative_error(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return |actual - expected| / |expected| with L2 norms in float64; infinite where the shapes differ.

    Where ``expected`` is all zeros it is the absolute error.
    """
    if actual.shape != expected.shape:
        return float("inf")
    wanted = expected.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    difference = float(np.linalg.norm(actual.astype(np.float64) - wanted))
    return difference / norm if norm else difference


def _session(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    with openable(restamped(model)) as source:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _loops(model: onnx.ModelProto) -> str:
    """The first nodes of ``model`` that may run for ever, as words behind its name; "" where there are none."""
    found = [node for graph in graphs(model) for node in graph.node if node.op_type in {"Loop", "Scan"}]
    names = [quoted(node.name) if node.name else f"that makes {quoted(_made(node))}" for node in found]
    return f" (which has the loop {first_of(names)})" if names else ""


def _made(node: onnx.NodeProto) -> str:
    return next((output for output in node.output if output), "")


def _with_all_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy of ``model`` that gives out every tensor its nodes make, and their names in topological order."""
    names = [output for node in model.graph.node for output in node.output if output]
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    declared = {output.name for output in graph.output}
    # A bare name will do: ONNX Runtime infers the type itself.
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.CopyFrom(graph)
    return copy, names


def _feeds(model: onnx.ModelProto, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
    initializers = {tensor.name for tensor in model.graph.initializer}
    wanted = [value.name for value in model.graph.input if value.name not in initializers]
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise DataError(f"no array was given for the model's input '{missing[0]}'; it has the inputs {wanted}")
    for name in wanted:
        if not _is_finite(np.asarray(inputs[name])):
            raise DataError(f"the array for input '{name}' holds NaN or Inf")
    return {name: np.ascontiguousarray(inputs[name]) for name in wanted}


def _moved(
    model: onnx.ModelProto, pieces: list[Arrays], parts: list[dict[str, NDArray[np.generic]]]
) -> dict[str, float]:
    """The relative change of each output in ONNX Runtime where inputs of floats move by :data:`_NUDGE`, up or down at random."""
    random = np.random.default_rng(0)

    def nudged(array: NDArray[np.generic]) -> NDArray[np.generic]:
        if array.dtype not in (np.float32, np.float64):  # halves have no such places
            return array
        factors = 1 + _NUDGE * random.choice((-1.0, 1.0), array.shape)
        return np.asarray(array.astype(np.float64) * factors).astype(array.dtype)

    found = [run_onnx(model, {name: nudged(array) for name, array in piece.items()}) for piece in pieces]
    return {
        name: min(
            _MOST_ROUNDING, max(relative_error(new[name], old[name]) for new, old in zip(found, parts, strict=True))
        )
        for name in parts[0]
    }


def _fixed_batches(model: onnx.ModelProto, feeds: Arrays) -> list[Arrays]:
    """Cut ``feeds`` into pieces of the batch that all inputs fix, the last one filled up with its last row."""
    dims = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input if v.name in feeds}
    batches = {axes[0].dim_value if len(axes) else 0 for axes in dims.values()}
    rows = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    if len(batches) != 1 or len(rows) != 1 or 0 in batches | rows or batches == rows:
        return [feeds]
    return _pieces(feeds, batches.pop())


def _pieces(feeds: Arrays, size: int) -> list[Arrays]:
    count = len(next(iter(feeds.values())))
    numbers = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
    return [{name: array[chosen] for name, array in feeds.items()} for chosen in numbers]


def _joined(parts: list[dict[str, NDArray[np.generic]]], rows: int) -> dict[str, NDArray[np.generic]]:
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts])[:rows] for name in parts[0]}


def _is_finite(array: NDArray[np.generic]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


class _Recorder(fx.Interpreter):
    """Runs a module node by node; keeps the first tensor that is not finite and, if asked, every node's output."""

    def __init__(self, module: fx.GraphModule, *, keep: bool = False) -> None:
        super().__init__(module)
        self.keep = keep
        self.tensors: dict[str, NDArray[np.generic]] = {}
        self.first_broken: tuple[str, str] | None = None

    def run_node(self, n: fx.Node) -> Any:  # a node may return anything
        """Run one node and look at what it returns."""
        try:
            value = super().run_node(n)
        except TimeLimitError:
            raise
        # A module raises whatever torch does about its inputs.
        except Exception as error:
            if "onnx_node" not in n.meta:
                raise
            name, kind = n.meta["onnx_node"], n.meta["onnx_op_type"]
            raise ConversionError(
                f"node '{name}' ({kind}) fails in torch: {str(error).partition(chr(10))[0]}"
            ) from error
        if "onnx_outputs" not in n.meta:
            return value
        values = value if isinstance(value, tuple) else (value,)
        names = [name for name in n.meta["onnx_outputs"] if name] if len(values) == 1 else n.meta["onnx_outputs"]
        for name, item in zip(names, values, strict=False):
            if not name or not isinstance(item, torch.Tensor):
                continue
            if self.first_broken is None and not all_finite(item):
                self.first_broken = (name, n.meta["onnx_node"])
            if self.keep:
                self.tensors[name] = item.detach().cpu().numpy()
        return value


class _Recorded:
    """What a run of the torch module gave."""

    def __init__(self, outputs: list[NDArray[np.generic]], recorder: _Recorder | None) -> None:
        self.outputs = outputs
        self.first_broken = None if recorder is None else recorder.first_broken
        self.tensors = {} if recorder is None else recorder.tensors


def _run_torch(module: torch.nn.Module, model: onnx.ModelProto, feeds: Arrays, *, keep: bool = False) -> _Recorded:
    """Run the module on the graph's inputs in order."""
    parameter = next(iter(module.parameters()), next(iter(module.buffers()), None))
    device = torch.device("cpu") if parameter is None else parameter.device
    tensors = [torch.from_numpy(np.array(array)).to(device) for array in feeds.values()]
    recorder = _Recorder(module, keep=keep) if isinstance(module, fx.GraphModule) else None
    # Convolutions on a CPU are faster so; a module of somebody else may look at its inputs in one order only.
    if recorder is not None and device.type == "cpu":
        tensors = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in tensors]
    with torch.no_grad():
        found = module(*tensors) if recorder is None else recorder.run(*tensors)
    outputs = found if isinstance(found, tuple) else (found,)
    if len(outputs) != len(model.graph.output):
        raise ConversionError(f"the module returns {len(outputs)} outputs, the model has {len(model.graph.output)}")
    return _Recorded([output.detach().cpu().numpy() for output in outputs], recorder)


def _raise_not_finite(model: onnx.ModelProto, feeds: Arrays, recorded: _Recorded, broken: list[str]) -> None:
    """Name the first tensor that holds NaN or Inf, in ONNX Runtime's run if there is one, else in torch's."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for name, array in run_onnx(model, feeds, all_tensors=True).items():
        if not _is_finite(array):
            raise ModelError(
                f"activation '{name}' of node '{makers[name].name}' ({makers[name].op_type}) holds NaN or Inf on the "
                "given inputs; check the model and the preprocessing"
            )
    if recorded.first_broken is not None:
        name, node = recorded.first_broken
        raise ConversionError(f"node '{node}': its output '{name}' holds NaN or Inf in torch, not in ONNX Runtime")
    raise ModelError(f"output '{broken[0]}' holds NaN or Inf on the given inputs")


def _raise_first_difference(
    model: onnx.ModelProto, module: torch.nn.Module, feeds: Arrays, tolerance: float, errors: dict[str, float]
) -> None:
    recorded = _run_torch(module, model, feeds, keep=True)
    expected = run_onnx(model, feeds, all_tensors=True)
    for node in model.graph.node:
        for name in node.output:
            if name not in recorded.tensors or name not in expected:
                continue
            error = relative_error(recorded.tensors[name], expected[name])
            if not error <= tolerance:
                raise ConversionError(
                    f"node '{node.name}' ({node.op_type}): its output '{name}' differs between torch and ONNX Runtime "
                    f"by {error:.1e} relative (tolerance {tolerance:.0e})"
                )
    name = max(errors, key=lambda key: errors[key])
    raise ConversionError(
        f"output '{name}' differs between torch and ONNX Runtime by {errors[name]:.1e} relative "
        f"(tolerance {tolerance:.0e}), though no node's output does"
    )
