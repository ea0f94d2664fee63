"""Which operators and kernels ONNX Runtime really runs of a model, how many, on which provider, and for how long."""

from __future__ import annotations

import bisect
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.files import temporary_folder
from mrecg_onnx.running.batches import run
from mrecg_onnx.running.openers import profile_events
from mrecg_onnx.running.sessions import PROVIDERS, open_on_device, open_on_providers, session_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from mrecg_onnx.running.models import Model

__all__ = ["Kernel", "check_provider", "elsewhere", "fused_op_counts", "kernels", "kernels_of"]

# Keeps the weights out of the optimized copy that is only counted, and that copy below protobuf's 2 GB.
_INLINE_BYTES = 1024
#: Seconds after which no more runs are profiled, and how many there are at least where so many were asked for.
PROFILED_S, LEAST_RUNS = 1.0, 3


def fused_op_counts(model: Model) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs at its default level, after fusion.

    The optimized graph is written to a temporary folder and read back; bodies of If, Loop and Scan are counted too.

    Args:
        model: As in :func:`~mrecg_onnx.running.open_session`.

    Returns:
        Operator types, of all domains together (``QLinearConv`` is standard, ``QLinearAdd`` is com.microsoft).

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = session_options("all", None)
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BYTES)
        )
        open_on_providers(model, options, PROVIDERS["cpu"])
        return Counter(_op_types(onnx.load(optimized, load_external_data=False).graph))


@dataclass(frozen=True)
class Kernel:
    """Nodes of one operator on one provider, as ONNX Runtime's profile has them.

    Attributes:
        op: operator after fusion.
        provider: who ran it.
        count: nodes.
        seconds: time of all of them in one run, by each node's median over the runs.
    """

    op: str
    provider: str
    count: int
    seconds: float


def kernels(
    model: Model, feeds: Mapping[str, npt.NDArray[Any]], threads: int | None = None, device: str = "cpu", runs: int = 25
) -> list[Kernel]:
    """Run a model under ONNX Runtime's profiler and say which kernels ran, the costliest first.

    Args:
        model: As in :func:`~mrecg_onnx.running.open_session`.
        feeds: Inputs by name.
        threads: As in :func:`~mrecg_onnx.running.open_session`.
        device: As in :func:`~mrecg_onnx.running.open_session`.
        runs: Profiled runs, >= 1, after one that is not counted; fewer of a model that is slow (:data:`PROFILED_S`).

    Raises:
        ModelError: ONNX Runtime refuses the model, or fails on the inputs.
        SettingsError: As in :func:`~mrecg_onnx.running.open_session`.
    """
    options = session_options("all", threads)
    with temporary_folder() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = open_on_device(model, options, device)
        run(session, feeds)  # watched: what fails or hangs does so here
        fed, begin = dict(feeds), time.perf_counter()
        for done in range(1, runs + 1):
            session.run(None, fed)
            if done >= LEAST_RUNS and time.perf_counter() - begin > PROFILED_S:
                break
        return kernels_of(profile_events(session.end_profiling()))


def kernels_of(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """The kernels in a profile, the costliest first, by each node's median over the runs behind the first.

    A node that waits for a worker thread, mostly the first one, takes a slice of the scheduler now and then: a Transpose of 14
    microseconds took 3300 in a third of the runs, and a mean of three said that it is 86 % of the network.
    """
    begun = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    times: dict[tuple[str, str], dict[str, Counter[int]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["args"]["provider"])
            node = f"{event['name']} {event['args'].get('node_index', '')}"
            # In a body of Loop or Scan a node runs more than once in a run of the model.
            times.setdefault(key, {}).setdefault(node, Counter())[bisect.bisect(begun, event["ts"])] += event["dur"]

    def taken(by_run: Counter[int]) -> float:
        counted = [duration for number, duration in by_run.items() if number > 1]
        return statistics.median(counted or by_run.values()) / 1e6

    found = [
        Kernel(op, provider, len(nodes), sum(map(taken, nodes.values()))) for (op, provider), nodes in times.items()
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


def _op_types(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _op_types(body)
