"""Opening models on ONNX Runtime: its optimization levels, threads and providers, and what an open model wants to be fed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from mrecg_onnx.converters.errors import ModelError, SettingsError, first_line
from mrecg_onnx.converters.external import load_external
from mrecg_onnx.converters.files import require_model
from mrecg_onnx.converters.load import model_path
from mrecg_onnx.converters.names import unique_nodes
from mrecg_onnx.converters.text import bounded
from mrecg_onnx.converters.versions import restamped
from mrecg_onnx.data import InputSpec
from mrecg_onnx.machine import MOST_THREADS, local_rank
from mrecg_onnx.running.models import Model, describe, read_graph
from mrecg_onnx.running.versions import needed, refuse_wrong, wrong_here

__all__ = [
    "ORT_ERRORS",
    "PROVIDERS",
    "Level",
    "fixed_batch",
    "input_specs",
    "open_on_device",
    "open_on_providers",
    "open_session",
    "session_options",
]

Level = Literal["all", "basic", "off"]
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# What fails is raised, and its own lines on stderr would show a model's names as they are.
_NOTHING = 4
# Its own exceptions have no common base, their number grows with the releases, and the wrapper in Python adds others.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)
#: What to do with a file that has operators of these domains.
_ADVICE = {
    "qonnx.custom_op.general": "it has Quant nodes for qonnx: `mrecg-onnx convert FILE --container int8` writes what they say as "
    "QuantizeLinear and DequantizeLinear"
}
#: Characters of a reason in front of advice.
_SHORT = 80
#: Where in ONNX Runtime's sources an error comes from: its file, line and function.
_IN_SOURCES = re.compile(r"^/\S+\.cc:\d+ .*?\(.*?\) ")
#: Files in ONNX Runtime's own format, which is no ONNX.
_OWN_FORMAT = ".ort"
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
    options = session_options(level, threads)
    return open_on_device(model, options, device)


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


def session_options(level: str, threads: int | None) -> ort.SessionOptions:
    """ONNX Runtime's settings for a row of optimizations and a number of threads, as :func:`open_session` takes them."""
    if level not in _LEVELS:
        raise SettingsError(f"optimization level {level!r} is unknown: use {', '.join(_LEVELS)}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise SettingsError(f"threads is {threads}: it must lie between 1 and {MOST_THREADS}")
    options = ort.SessionOptions()
    options.log_severity_level = _NOTHING
    options.graph_optimization_level = _LEVELS[level]
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_on_device(model: Model, options: ort.SessionOptions, device: str) -> ort.InferenceSession:
    """Open ``model`` on ``device`` and nowhere else; raises as :func:`open_session`."""
    if device not in PROVIDERS:
        raise SettingsError.among(f"device {device!r} is unknown", PROVIDERS, device)
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
        session = open_on_providers(model, options, PROVIDERS[device])
    except ModelError as error:
        if device == "cpu":
            raise
        open_on_providers(model, options, PROVIDERS["cpu"])  # raises where the model is to blame
        reason = _IN_SOURCES.sub("", first_line(error.__cause__ or error)).rstrip(".")
        raise SettingsError(
            f"device '{device}': ONNX Runtime could not load its {wanted}: {reason}; install what it needs, or use cpu"
        ) from error
    if wanted not in session.get_providers():  # ONNX Runtime goes on without a provider it cannot load
        raise SettingsError(
            f"device '{device}': ONNX Runtime could not load its {wanted}; check its version, or use cpu"
        )
    return session


def open_on_providers(model: Model, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    """Open ``model`` on the first of ``providers``; what that does not take goes to the next ones.

    Raises:
        ModelError: the file is damaged, ONNX Runtime refuses the model, or the provider fails, or this version would compute
            something else of it.
    """
    try:
        # enable_fallback=0: on a provider's failure the wrapper would print and go on with another one.
        choices = [{"device_id": str(local_rank())} if "CUDA" in name else {} for name in providers]
        session = ort.InferenceSession(_source(model), options, providers, choices, enable_fallback=0)
    except ORT_ERRORS as error:
        too_old = needed(model)
        if too_old is not None:
            raise ModelError(too_old) from error
        older = _restamped(model)
        if older is not None:
            return open_on_providers(older, options, providers)
        reason = first_line(error)
        advice = next((f"; {what}" for domain, what in _ADVICE.items() if domain in reason), "")
        if advice:  # which is not cut for what ONNX Runtime says
            reason = bounded(reason, _SHORT)
        raise ModelError(f"{describe(model)}: ONNX Runtime cannot open it: {reason}{advice}") from error
    if options.graph_optimization_level != _LEVELS["off"]:
        refuse_wrong(model, session)
    elif options.enable_mem_reuse and wrong_here(model, session):
        # Before 1.31 a tensor of 8 bits may take the buffer of one of 4 bits and as many elements, which is half as long.
        options.enable_mem_reuse = False
        return open_on_providers(model, options, providers)
    return session


def _restamped(model: Model) -> onnx.ModelProto | None:
    """``model`` with versions and node names that ONNX Runtime opens, None where it has such or needs others."""
    if isinstance(model, onnx.ModelProto):
        older, _ = unique_nodes(restamped(model))
        return None if older is model else older
    if isinstance(model, bytes):
        return None
    try:
        found = read_graph(model)
        load_external(found, Path(model).parent, str(model))
    except ModelError:
        return None
    return _restamped(found)


def _source(model: Model) -> str | bytes:
    """What InferenceSession takes; files come from anywhere, and the damaged ones of them do not reach it."""
    if isinstance(model, bytes):
        read_graph(model)
        return model
    if isinstance(model, (str, Path)):
        require_model(model)
        if Path(model).suffix != _OWN_FORMAT:
            read_graph(model)
        return str(model)
    if not isinstance(model, onnx.ModelProto):
        return _source(model_path(model))
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
