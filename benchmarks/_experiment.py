"""What the paper's experiments share: rows that are kept as they come, one run with its losses, the look of the figures."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _record import header

from mrecg_onnx.converters.files import write_whole

RESULTS = Path(__file__).parent / "results"
BUILD = Path("build") / "benchmarks"
SETS = {"resnet20_cifar10": "cifar10", "resnet56_cifar10": "cifar10", "mobilenetv2_imagenet": "imagenet"}
NAMES = {"resnet20_cifar10": "ResNet-20", "resnet56_cifar10": "ResNet-56", "mobilenetv2_imagenet": "MobileNetV2"}
#: One hue a method, the same in every figure.
COLORS = {
    "nearest": "#9a9a9a", "adaround": "#7b5ea7", "brecq": "#1f6fb4", "qdrop": "#2a9d8f", "mrecg": "#d1495b",
    "mrecg-modcap": "#e08e2b", "mrecg-loss": "#d1495b",
}  # fmt: skip


class Rows:
    """Rows by key in ``results/NAME.json``, each with its own header; ``NAME.csv`` holds the same without headers.

    A row is on disk as soon as it is measured: a script that was stopped goes on with the rows that are missing.
    """

    def __init__(self, name: str) -> None:
        self.name, self.path = name, RESULTS / f"{name}.json"

    def all(self) -> dict[str, dict[str, Any]]:
        """All rows, in the order they were measured."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row; the file is read again, as rows may be measured side by side."""
        rows = self.all() | {key: {**row, "header": header()}}
        self._write(rows)

    def amend(self, key: str, more: Mapping[str, Any]) -> None:
        """Add figures to a row without changing the header that it was measured under."""
        rows = self.all()
        rows[key].update(more)
        self._write(rows)

    def _write(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        write_whole(self.path, json.dumps(rows, indent=1) + "\n")
        plain = [{"key": key} | {k: v for k, v in row.items() if k != "header"} for key, row in rows.items()]
        columns = list(dict.fromkeys(name for row in plain for name in row))
        with (RESULTS / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            for row in plain:
                writer.writerow({k: _cell(v) for k, v in row.items()})

    def missing(self, keys: Sequence[str], *, again: bool = False) -> Iterator[str]:
        """Those of ``keys`` without a row (or all of them, ``again``), telling which is at work."""
        for number, key in enumerate(keys, 1):
            if again or key not in self.all():
                print(f"[{number}/{len(keys)}] {key}", flush=True)
                yield key


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join(str(_cell(v)) for v in value)
    return json.dumps(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Run:
    """One quantization with what the experiments look at.

    Attributes:
        row: plain figures, ready for :class:`Rows`.
        result: what :func:`mrecg_onnx.quantize` returned.
        simulation: the quantized network in torch.
        model: the float model.
        inputs: calibration images by input name.
    """

    row: dict[str, Any]
    result: Any
    simulation: Any
    model: Path
    inputs: dict[str, Any]


@contextmanager
def _captured() -> Iterator[list[Any]]:
    """The simulations of the runs inside: losses inside units are not part of a result."""
    from mrecg_onnx import quantization  # noqa: PLC0415 - torch is heavy and --help does not need it

    export, found = quantization.export, []

    def spy(graph: Any, simulation: Any, metadata: Any) -> Any:
        found.append(simulation)
        return export(graph, simulation, metadata)

    quantization.export = spy
    try:
        yield found
    finally:
        quantization.export = export


def share_starts() -> None:
    """Let all runs of this process share what is the same for methods compared at equal images: equalization and ranges.

    Both depend on the float network, the activation quantizers, the first calibration images and the range search alone; on
    MobileNetV2 they take as long as a hundred iterations of everything. Times of the rows then leave them out.
    """
    from mrecg_onnx import preparation  # noqa: PLC0415

    choose, search = preparation.choose_scales, preparation.search_grids
    scales: dict[Any, Any] = {}
    grids: dict[Any, Any] = {}

    def network_and_data(network: Any, data: Any) -> tuple[Any, ...]:
        # Rounded sums tell networks and images apart; the quantizers' names and widths are in the keys, too.
        tensors = [t for step in network.steps for t in step.module.state_dict().values() if t.is_floating_point()]
        weights = [float(t.double().sum()) for t in tensors]
        return tuple(weights), tuple((n, tuple(x.shape), float(x.double().sum())) for n, x in sorted(data.items()))

    def chosen(network: Any, streams: Any, activations: Any, data: Any, layers: Any = ()) -> Any:
        key = (activations, tuple(s.name for s in streams), layers, *network_and_data(network, data))
        if key not in scales:
            scales[key] = choose(network, streams, activations, data, layers)
        return scales[key]

    def searched(network: Any, plan: Any, data: Any, settings: Any, only: Any = None, dataset: Any = None) -> Any:
        if only is not None:
            return search(network, plan, data, settings, only, dataset)
        ranges = preparation.chosen_ranges(settings)
        read = None if dataset is None else dataset.fingerprint()
        key = (plan.activations, repr(ranges), settings.range_images, read, *network_and_data(network, data))
        if key not in grids:
            grids[key] = search(network, plan, data, settings, dataset=dataset)
        return dict(grids[key])

    preparation.choose_scales, preparation.search_grids = chosen, searched


def quantize(name: str, model: Path, calib: Path, settings: Any, *, images: int = 0) -> Run:
    """Quantize ``model`` to ``build/benchmarks/NAME.onnx``; ``images`` calibration images are kept for losses."""
    import torch  # noqa: PLC0415

    import mrecg_onnx  # noqa: PLC0415
    from mrecg_onnx.data import open_calibration  # noqa: PLC0415
    from mrecg_onnx.running import input_specs, open_session  # noqa: PLC0415

    out = BUILD / f"{name}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with _captured() as simulations:
        result = mrecg_onnx.quantize(model, calib, settings, output=out)
    seconds = time.perf_counter() - start
    inputs: dict[str, Any] = {}
    if images:
        data = open_calibration(calib, input_specs(open_session(model)), settings.preprocess, samples=images, seed=1)
        inputs = {name: torch.from_numpy(array) for name, array in data.load(images).items()}
    row = {
        "file": str(out),
        "seconds": round(seconds, 1),
        "images": result.images,
        "merges": [[*group] for group in result.plan.merges if len(group) > 1],
        "unit_losses": [unit.final_loss for unit in result.units],
        "kept_nearest": sum(unit.kept == "nearest" for unit in result.units),
    }
    return Run(row, result, simulations[-1], model, inputs)


def block_losses(run: Run, batch: int = 32) -> list[float]:
    """Squared error at the output of every base unit of the finished network, summed over channels, mean over the rest.

    The loss of a unit as in the paper (section 1), but measured behind the finished network's quantized prefix for every
    base unit, also inside joint units: so methods with different units, AdaRound's layers among them, can be compared.
    """
    import torch  # noqa: PLC0415

    from mrecg_onnx.learning.losses import reconstruction_loss  # noqa: PLC0415
    from mrecg_onnx.network import forward_batches  # noqa: PLC0415

    simulation, network = run.simulation, run.simulation.network
    ends = [unit.outputs for unit in base_units(run)]
    wanted = [name for outputs in ends for name in outputs]
    totals, count = [0.0] * len(ends), 0
    for values in forward_batches(run.inputs, batch, network.device):
        with torch.no_grad():
            exact = network.run(values, keep=wanted)
        got = simulation.run({n: simulation.activation_hook()(n, v) for n, v in values.items()}, keep=wanted)
        size = len(next(iter(values.values())))
        for i, outputs in enumerate(ends):
            totals[i] += size * sum(float(reconstruction_loss(got[n], exact[n])) for n in outputs)
        count += size
    return [total / count for total in totals]


def base_units(run: Run) -> Sequence[Any]:
    """Base units of the network, blocks also where the method learned layer by layer."""
    from mrecg_onnx.planning.units import plan_units  # noqa: PLC0415

    if run.result.settings.method != "adaround":
        return tuple(run.result.plan.units)
    from mrecg_onnx.converters import load_model  # noqa: PLC0415
    from mrecg_onnx.planning import editable_graph  # noqa: PLC0415

    plan, settings = run.result.plan, run.result.settings
    return plan_units(editable_graph(load_model(run.model), settings), plan.layers, settings.alpha)


def rises(losses: Sequence[float]) -> float:
    """Oscillation: the sum of squared rises from one unit to the next."""
    return sum(max(0.0, b - a) ** 2 for a, b in zip(losses, losses[1:], strict=False))


def falls(losses: Sequence[float]) -> float:
    """The sum of squared falls: without oscillation, errors that accumulate never fall."""
    return sum(max(0.0, a - b) ** 2 for a, b in zip(losses, losses[1:], strict=False))


def referee(
    root: Path, model: str | Path, dataset: str, against: Path | None = None, level: str = "all"
) -> dict[str, Any]:
    """Accuracy by the referee's own process, at an optimization level of ONNX Runtime."""
    command = [sys.executable, str(root / "eval_onnx.py"), str(model), dataset, "--level", level]
    if against is not None:
        command += ["--against", str(against)]
    said: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return said


def timed(command: list[str]) -> dict[str, Any]:
    """CPU seconds, peak megabytes and output of ``command``, run on one thread."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\n{said}")
    return {"cpu": round(used.ru_utime + used.ru_stime, 1), "peak_mb": used.ru_maxrss // 1024, "said": said}


def builds(named: Sequence[str]) -> dict[str, str]:
    """Programs by name: this build's as "now", and those given as NAME=COMMAND."""
    own = Path(sys.executable).with_name("mrecg-onnx")
    return {"now": str(own), **dict(entry.split("=", 1) for entry in named)}


def measure_missing(
    store: Rows,
    points: Mapping[str, dict[str, Any]],
    measure: Callable[[str, dict[str, Any], Any], dict[str, Any]],
    write: Callable[[Rows], None],
    args: argparse.Namespace,
) -> None:
    """Measure the points without a row one by one, each kept and drawn at once; with ``--draw`` only the page is written."""
    for key in () if args.draw else store.missing(list(points), again=args.again):
        row = measure(key, points[key], args)
        store.add(key, row)
        print(json.dumps({k: v for k, v in row.items() if k != "header"}), flush=True)
        write(store)
    write(store)


def measured(key: str, model: str, args: argparse.Namespace, settings: Any) -> tuple[Run, dict[str, Any]]:
    """A model of ``args.data`` quantized by ``settings``, and what the referee says of the file against FP32."""
    dataset, fp32 = SETS[model], args.data / "models" / f"{model}.onnx"
    run = quantize(key, fp32, args.data / "data" / dataset / "calib", settings)
    return run, referee(args.data, run.row["file"], dataset, fp32)


def arguments(description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """Options of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder of models, images and the referee")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument(
        "--draw", action="store_true", help="only write tables and figures from the rows that are there"
    )
    return parser


def plotting() -> Any:
    """Matplotlib's pyplot, writing files, with the look of all figures."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    plt.rcParams.update({
        "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 130,
    })  # fmt: skip
    return plt


def cross_table(
    heading: str, names: Sequence[str], columns: Sequence[str], cell: Callable[[str, str], str]
) -> list[str]:
    """Lines of a section with a table: a line for each of ``names``, ``cell(name, column)`` in its columns."""
    lines = [f"## {heading}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(name, column) for column in columns)} |" for name in names]
    return [*lines, ""]


def machine(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Last line of a table."""
    return f"Machine: {'; or '.join(dict.fromkeys(row['header']['machine'] for row in rows.values()))}."
