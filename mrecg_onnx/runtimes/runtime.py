"""ONNX Runtime: the one place that opens sessions, runs them over a data set, counts what they run and times them."""

from __future__ import annotations

import json
import logging
import re
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError, first_line
from mrecg_onnx.converters.files import irregular
from mrecg_onnx.converters.names import unique_nodes
from mrecg_onnx.converters.versions import restamped
from mrecg_onnx.data import InputSpec
from mrecg_onnx.machine import local_rank

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "PROVIDERS",
    "BatchSource",
    "Kernel",
    "Level",
    "Model",
    "check_provider",
    "describe",
    "elsewhere",
    "fixed_batch",
    "fused_op_counts",
    "input_specs",
    "kernels",
    "latency",
    "medians",
    "open_session",
    "pad_batch",
    "run_batches",
    "run_padded",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Level = Literal["all", "basic", "off"]
Model: TypeAlias = "bytes | str | Path | onnx.ModelProto"

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# What fails is raised, and its own lines on stderr would show a model's names as they are.
_NOTHING = 4
# Its own exceptions have no common base, their number grows with the releases, and the wrapper in Python adds others.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)
#: Where in ONNX Runtime's sources an error comes from: its file, line and function.
_IN_SOURCES = re.compile(r"^/\S+\.cc:\d+ .*?\(.*?\) ")
#: Devices by ONNX Runtime's names; what the first one does not take goes to the next.
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    **{
        name.lower(): [f"{name}ExecutionProvider", "CPUExecutionProvider"]
        for name in ("OpenVINO", "QNN", "DML", "CoreML", "XNNPACK", "ROCM")
    },
}
# What images and arrays can feed, by ONNX Runtime's names.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
# Keeps the weights out of the optimized copy that is only counted, and that copy below protobuf's 2 GB.
_INLINE_BYTES = 1024


class BatchSource(Protocol):
    """What :func:`run_batches` needs of a data set."""

    def batches(self, size: int) -> Iterator[tuple[Mapping[str, Array], npt.NDArray[np.int64]]]:
        """Model inputs by name, each ``[n, ...]`` with ``n <= size``, and the indices of the ``n`` items."""
        ...


def describe(model: Model, otherwise: str = "the model") -> str:
    """How messages call a model: its path, or ``otherwise`` where it has none."""
    return str(model) if isinstance(model, (str, Path)) else otherwise


def open_session(
    model: Model, level: Level = "all", threads: int | None = None, device: str = "cpu"
) -> ort.InferenceSession:
    """Open a model on ONNX Runtime.

    Args:
        model: A file (needed where weights lie beside it as external data), its bytes, or a model in memory.
        level: Graph optimizations: ``all`` is ONNX Runtime's default and what a deployed file meets, ``basic`` keeps
            Q/DQ nodes apart, ``off`` runs the graph as written.
        threads: Threads inside an operator; ONNX Runtime's own choice (the physical cores) by default.
        device: ``cpu``, or another row of :data:`PROVIDERS` with the CPU provider behind it.

    Returns:
        The open session. It logs nothing (what fails is raised), and stops its worker threads from spinning when a run
        ends: a session
        that waits would otherwise take processor time from another one that is being timed.

    Raises:
        ModelError: The file does not exist or ONNX Runtime refuses the model; its reason is in the message.
        SettingsError: Unknown ``level`` or ``device``, ``threads`` below 1, or one that is not there.
    """
    options = _options(level, threads)
    return _open_on(model, options, device)


def run_padded(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run ``n`` items, also through a model whose batch is fixed at another size.

    A short batch is filled up with copies of its last item, as any other filling could raise NaN where the items do
    not, and what the copies gave is cut off; a long one is run piece by piece.

    Args:
        session: An open session whose inputs and outputs all have the batch as their first axis.
        feeds: Inputs by name, each ``[n, ...]`` with the same ``n >= 1``.

    Returns:
        Outputs by name, each ``[n, ...]``, in the order of the graph's outputs.

    Raises:
        ModelError: ONNX Runtime fails on the inputs, or an output does not have one row per item.
    """
    n = len(next(iter(feeds.values())))
    size = fixed_batch(session) or n
    pieces = [
        _run_rows(session, {name: pad_batch(x[start : start + size], size) for name, x in feeds.items()}, size)
        for start in range(0, n, size)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces])[:n] for name in pieces[0]}


def pad_batch(array: Array, size: int) -> Array:
    """``array`` with its last row repeated until it has ``size`` rows, for models with a fixed batch.

    Raises:
        ValueError: it is empty or longer than ``size`` already.
    """
    if not 1 <= len(array) <= size:
        raise ValueError(f"cannot pad {len(array)} rows to {size}")
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def run_batches(session: ort.InferenceSession, dataset: BatchSource, batch_size: int) -> dict[str, Array]:
    """Run a whole data set and keep every output.

    Args:
        session: An open session, of dynamic or fixed batch (see :func:`run_padded`).
        dataset: Where the inputs come from.
        batch_size: Items at a time, >= 1.

    Returns:
        Outputs by name, each ``[N, ...]`` in the order of the data set.

    Raises:
        ModelError: As :func:`run_padded`.
        DataError: The data set is empty.
    """
    parts = [run_padded(session, feeds) for feeds, _ in dataset.batches(batch_size)]
    if not parts:
        raise DataError("the data set holds nothing to run")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def input_specs(session: ort.InferenceSession) -> list[InputSpec]:
    """The model's inputs, as data sets want them described; symbolic sizes become None.

    Raises:
        ModelError: An input is no tensor of numbers.
    """
    specs = []
    for node in session.get_inputs():
        if node.type not in _DTYPES:
            raise ModelError(f"input {node.name!r} is a {node.type}: only tensors of numbers can be fed")
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        specs.append(InputSpec(node.name, shape, np.dtype(_DTYPES[node.type])))
    return specs


def fixed_batch(session: ort.InferenceSession) -> int | None:
    """The batch size that one of the model's inputs demands; None where all take any."""
    first_axes = (node.shape[0] for node in session.get_inputs() if node.shape)
    return next((size for size in first_axes if isinstance(size, int)), None)


def fused_op_counts(model: Model) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs at its default level, after fusion.

    The optimized graph is written to a temporary folder and read back; bodies of If, Loop and Scan are counted too.

    Args:
        model: As in :func:`open_session`.

    Returns:
        Operator types, of all domains together (``QLinearConv`` is standard, ``QLinearAdd`` is com.microsoft).

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = _options("all", None)
    with tempfile.TemporaryDirectory(prefix="mrecg_onnx_") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BYTES)
        )
        _open(model, options, PROVIDERS["cpu"])
        return Counter(_op_types(onnx.load(optimized, load_external_data=False).graph))


@dataclass(frozen=True)
class Kernel:
    """Nodes of one operator on one provider, as ONNX Runtime's profile has them.

    Attributes:
        op: operator after fusion.
        provider: who ran it.
        count: nodes.
        seconds: time of all of them in one run.
    """

    op: str
    provider: str
    count: int
    seconds: float


def kernels(
    model: Model, feeds: Mapping[str, Array], threads: int | None = None, device: str = "cpu", runs: int = 3
) -> list[Kernel]:
    """Run a model under ONNX Runtime's profiler and say which kernels ran, the costliest first.

    Args:
        model: As in :func:`open_session`.
        feeds: Inputs by name.
        threads: As in :func:`open_session`.
        device: As in :func:`open_session`.
        runs: Profiled runs, >= 1, after one that is not counted.

    Raises:
        ModelError: ONNX Runtime refuses the model, or fails on the inputs.
        SettingsError: As in :func:`open_session`.
    """
    options = _options("all", threads)
    with tempfile.TemporaryDirectory(prefix="mrecg_onnx_") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _open_on(model, options, device)
        for _ in range(runs + 1):
            _run(session, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["args"]["provider"])
            node = f"{event['name']} {event['args'].get('node_index', '')}"
            times.setdefault(key, {}).setdefault(node, []).append(event["dur"] / 1e6)
    found = [
        Kernel(op, provider, len(nodes), sum(statistics.mean(taken[1:] or taken) for taken in nodes.values()))
        for (op, provider), nodes in times.items()
    ]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def check_provider(found: Sequence[Kernel], device: str, where: str) -> None:
    """Refuse figures of a provider that was loaded and left all the work to another one; ``found`` is from :func:`kernels`.

    Raises:
        SettingsError: no kernel ran on it.
    """
    wanted = PROVIDERS[device][0]
    if not any(kernel.provider == wanted for kernel in found):
        others = ", ".join(sorted({kernel.provider for kernel in found})) or "nothing"
        raise SettingsError(f"{where}: '{device}' ran none of its nodes, {others} ran all: use cpu")


def elsewhere(found: Sequence[Kernel], device: str) -> str:
    """What ran on another provider than that of ``device``, for people; empty where nothing did."""
    counts: Counter[str] = Counter()
    for kernel in found:
        counts[kernel.provider] += kernel.count
    total = counts.total()
    return ", ".join(f"{n} of {total} nodes on {name}" for name, n in counts.items() if name != PROVIDERS[device][0])


def latency(
    sessions: Mapping[str, ort.InferenceSession], feeds: Mapping[str, Array], repeats: int, warmup: int = 10
) -> dict[str, list[float]]:
    """Time sessions in turn, one timed run each a round, so that a busy or throttled machine slows all of them alike.

    Each timed run follows an untimed one of the same session: the change of session leaves cold caches and sleeping
    worker threads, which a deployed model does not meet. Measured on 2 cores (ms, FP32 MobileNetV2 and ResNet-20,
    medians of 100): each alone 2.5 and 0.47; taking turns 6.5 and 0.65 (the waiting session's threads spin); with
    :func:`open_session`'s stop of the spinning 2.6 and 4.0 (threads are woken late); with the untimed run too 2.5
    and 0.57.

    Args:
        sessions: Sessions by name, all taking the same inputs.
        feeds: Inputs by name; the batch is theirs.
        repeats: Timed rounds, >= 1.
        warmup: Rounds before them that are not timed, >= 0.

    Returns:
        Seconds per timed run, ``repeats`` of them for each name, in the order they were taken.

    Raises:
        ModelError: ONNX Runtime fails on the inputs.
        ValueError: ``repeats`` is below 1 or ``warmup`` below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"{repeats} timed rounds after {warmup} others cannot be run")
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(warmup + repeats):
        for name, session in sessions.items():
            _run(session, feeds)
            start = time.perf_counter()
            _run(session, feeds)
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[warmup:] for name, taken in seconds.items()}


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each list of :func:`latency`, in seconds."""
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _options(level: str, threads: int | None) -> ort.SessionOptions:
    if level not in _LEVELS:
        raise SettingsError(f"optimization level {level!r} is unknown: use {', '.join(_LEVELS)}")
    if threads is not None and threads < 1:
        raise SettingsError(f"threads = {threads}: at least one is needed")
    options = ort.SessionOptions()
    options.log_severity_level = _NOTHING
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _open_on(model: Model, options: ort.SessionOptions, device: str) -> ort.InferenceSession:
    """Open ``model`` on ``device`` and nowhere else."""
    if device not in PROVIDERS:
        raise SettingsError(f"device {device!r} is unknown: choose of {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[device][0]
    if device == "cuda":
        _require_cuda()
    elif wanted not in ort.get_available_providers():
        raise SettingsError(
            f"device '{device}': this ONNX Runtime has no {wanted}; install a build that has, or use cpu"
        )
    if device != "cpu":
        ort.set_default_logger_severity(_NOTHING)  # what keeps a provider from loading is in the error
    try:
        session = _open(model, options, PROVIDERS[device])
    except ModelError as error:
        if device == "cpu":
            raise
        _open(model, options, PROVIDERS["cpu"])  # raises where the model is to blame
        reason = _IN_SOURCES.sub("", first_line(error.__cause__ or error)).rstrip(".")
        raise SettingsError(
            f"device '{device}': ONNX Runtime could not load its {wanted}: {reason}; install what it needs, or use cpu"
        ) from error
    if wanted not in session.get_providers():  # ONNX Runtime goes on without a provider it cannot load
        raise SettingsError(
            f"device '{device}': ONNX Runtime could not load its {wanted}; check its version, or use cpu"
        )
    return session


def _open(model: Model, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    try:
        # enable_fallback=0: on a provider's failure the wrapper would print and go on with another one.
        choices = [{"device_id": str(local_rank())} if "CUDA" in name else {} for name in providers]
        return ort.InferenceSession(_source(model), options, providers, choices, enable_fallback=0)
    except _ORT_ERRORS as error:
        older = _restamped(model)
        if older is not None:
            return _open(older, options, providers)
        raise ModelError(f"{describe(model)}: ONNX Runtime cannot open it: {first_line(error)}") from error


def _restamped(model: Model) -> onnx.ModelProto | None:
    """``model`` with versions and node names that ONNX Runtime opens, None where it has such or needs others."""
    if isinstance(model, onnx.ModelProto):
        older, _ = unique_nodes(restamped(model))
        return None if older is model else older
    if isinstance(model, bytes):
        return None
    try:
        found = onnx.load(model)
    except (DecodeError, onnx.checker.ValidationError, OSError):
        return None
    return _restamped(found)


def _source(model: Model) -> str | bytes:
    """What InferenceSession takes."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, Path)):
        if not Path(model).is_file():
            kind = irregular(model)
            raise ModelError(f"{model}: " + ("there is no such file" if kind is None else f"is {kind}, no file"))
        return str(model)
    try:
        serialized: bytes = model.SerializeToString()
    except ValueError as error:  # protobuf's 2 GB, also raised as a subclass
        raise ModelError(
            f"the model cannot be opened from memory ({first_line(error)}): save it with external data"
        ) from error
    return serialized


def _require_cuda() -> None:
    import torch  # noqa: PLC0415 - takes seconds to load, and sessions on the CPU do not need it

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise SettingsError("device 'cuda': this ONNX Runtime has no CUDA provider; install onnxruntime-gpu or use cpu")
    if not torch.cuda.is_available():
        raise SettingsError("device 'cuda': no CUDA device is visible; use cpu")


def _run(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        results: list[Array] = session.run(None, dict(feeds))
    except _ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {list(x.shape)} {x.dtype}" for name, x in feeds.items())
        raise ModelError(f"ONNX Runtime cannot run the model on {shapes}: {first_line(error)}") from error
    return results


def _run_rows(session: ort.InferenceSession, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    outputs = dict(zip((output.name for output in session.get_outputs()), _run(session, feeds), strict=True))
    for name, y in outputs.items():
        if not isinstance(y, np.ndarray) or y.ndim == 0 or len(y) != rows:
            shape = list(y.shape) if isinstance(y, np.ndarray) else type(y).__name__
            raise ModelError(f"output {name!r} is {shape} for {rows} items: its first axis has to be the batch")
    return outputs


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _op_types(body)
