"""Ours against the plain eager loop: time an iteration, loss and accuracy after equal iterations, peak memory.

usage: python benchmarks/speed.py [--data ../shared] [--parts time loss memory accuracy] [--models NAME ...]
           [--device cpu|cuda] [--threads 2] [--units N] [--rounds 3]

The plain loop below is what the published code bases (AdaRound, BRECQ, QDrop, MRECG) do, written simply in eager torch:
whole maps, contiguous NCHW float32 caches, fake quantization by autograd. It has our loss, rates, schedules and batch, and
learns the same variables. Both get their units from the same run of the package, in one process, and take turns.

Parts are merged into benchmarks/results/speed.json (speed-cuda.json on a GPU) as they end; speed.md is written from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _memory import held, peak, reset_peak
from _record import header
from main import SETS, referee
from torch import Tensor
from torch.nn import functional

import mrecg_onnx
from mrecg_onnx.converters import load_model, normalize
from mrecg_onnx.learning import learner
from mrecg_onnx.learning.judging import evaluate_unit
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.rates import LearningRates
from mrecg_onnx.learning.reconstruction import reconstruct_unit
from mrecg_onnx.network.simulation import QuantizedWeight, Simulation
from mrecg_onnx.network.steps import Step
from mrecg_onnx.planning import make_plan
from mrecg_onnx.planning.plan import UnitPlan
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.quantizers.rounding import BetaSchedule

RESULTS = Path(__file__).parent / "results"
SMALL = "resnet20_cifar10"
#: Share of the images on which the learned unit is judged: with the few images of this script more than the default.
HELD_OUT = 0.25
#: Called with (unit, simulation, data, options of reconstruct_unit) for every unit of a run.
Visit = Callable[..., UnitResult]


# ---- the plain loop -------------------------------------------------------------------------------------------------

ZETA, GAMMA = 1.1, -0.1


def round_ste(x: Tensor) -> Tensor:
    """Round with the straight-through gradient."""
    return (x.round() - x).detach() + x


def fake_quantize_lsq(x: Tensor, scale: Tensor, zero_point: float, qmax: int) -> Tensor:
    """LSQ (Esser et al. 2020, eq. 1 and 2) on an asymmetric grid."""
    return round_ste(torch.clamp(x / scale, -zero_point, qmax - zero_point)) * scale


class PlainLayer:
    """AdaRound's variables of one weight, the gains of its channels, and the shift of its bias."""

    def __init__(
        self, weight: Tensor, grid: Grid, bias: Tensor | None, *, learn_bias: bool, learn_weight_scales: bool
    ) -> None:
        self.grid, self.bias = grid, bias
        self.log_gain = torch.zeros_like(grid.scale, requires_grad=learn_weight_scales)
        self.scale, self.zero = grid.along(weight.dim())
        self.floor = torch.floor(weight / self.scale)
        rest = (weight / self.scale - self.floor).clamp(1e-4, 1 - 1e-4)
        self.V = (-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)).requires_grad_()
        if bias is not None:
            self.spread = bias.abs().mean().clamp(min=1e-6)
            self.shift = torch.zeros_like(bias, requires_grad=learn_bias)

    def h(self) -> Tensor:
        """Rectified sigmoid (Nagel et al. 2020, eq. 23)."""
        return torch.clamp(torch.sigmoid(self.V) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def weight(self) -> Tensor:
        """Soft-rounded weight (eq. 22)."""
        codes = torch.clamp(self.floor + self.h() + self.zero, self.grid.qmin, self.grid.qmax)
        return (codes - self.zero) * self.scale * self.grid.shaped(torch.exp(self.log_gain), self.V.dim())

    def learned_grid(self) -> Grid:
        """The weight's grid with the gains in its scale."""
        return dataclasses.replace(self.grid, scale=self.grid.scale * torch.exp(self.log_gain.detach()))

    def current_bias(self, input_scale: Tensor | None) -> Tensor | None:
        """The bias, on the int32 grid of the file if the layer's input is quantized."""
        if self.bias is None:
            return None
        bias = self.bias + self.shift * self.spread
        if input_scale is None:
            return bias
        step = (input_scale * self.learned_grid().scale).detach()
        return round_ste(bias / step) * step

    def hard_codes(self) -> Tensor:
        """Codes after the decision."""
        return torch.clamp(self.floor + (self.V.detach() >= 0).float() + self.zero, self.grid.qmin, self.grid.qmax)


@dataclasses.dataclass
class PlainCache:
    """All samples as contiguous float32 tensors [N, C, H, W]."""

    quantized: dict[str, Tensor]
    floating: dict[str, Tensor]
    targets: dict[str, Tensor]
    knees: dict[str, float | None]
    training: Tensor

    @classmethod
    def of(cls, data: UnitData, knee: float | None) -> PlainCache:
        """The same values that our loop reads, unpacked once."""

        def whole(stores: dict[str, Any]) -> dict[str, Tensor]:
            return {n: s.read(0, s.count).contiguous() for n, s in stores.items()}

        quantized = whole(data.quantized)
        same = {n for n in quantized if data.floating[n] is data.quantized[n]}
        floating = {n: quantized[n] if n in same else s.read(0, s.count).contiguous() for n, s in data.floating.items()}
        targets = whole(data.targets)
        return cls(quantized, floating, targets, knees_of(data, knee), data.training)

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        unique = {id(t): t for part in (self.quantized, self.floating, self.targets) for t in part.values()}
        return sum(t.numel() * t.element_size() for t in unique.values())


def knees_of(data: UnitData, knee: float | None) -> dict[str, float | None]:
    """Knee of the Huber loss at each output, ``knee`` of its standard deviations."""
    if knee is None:
        return dict.fromkeys(data.targets)
    found: dict[str, float | None] = {}
    for name, store in data.targets.items():
        count, total, squares = store.moments
        found[name] = knee * max(math.sqrt(max(0.0, squares / count - (total / count) ** 2)), 1e-6)
    return found


class PlainLoop:
    """The unit in training; ``options`` are those of reconstruct_unit."""

    def __init__(self, unit: UnitPlan, simulation: Simulation, cache: PlainCache, options: dict[str, Any]) -> None:
        self.unit, self.simulation, self.cache = unit, simulation, cache
        self.network = simulation.network
        self.steps = self.network.helpers(self.network.part(unit.nodes), list(cache.quantized))
        self.quantize = options["keep_quantized"] is not None
        self.probability = options["keep_quantized"] if self.quantize else 1.0
        self.layers = {}
        for name in unit.layers:
            if name in simulation.weights:
                step = self.network.step(name)
                weight, bias = step.module.weight.detach(), simulation.bias(step)  # type: ignore[operator]
                bias = None if bias is None else bias.detach()
                grid = simulation.weights[name].grid
                learned = {key: options[key] for key in ("learn_bias", "learn_weight_scales")}
                self.layers[name] = PlainLayer(weight, grid, bias, **learned)
        made = [name for step in self.steps for name in step.outputs]
        self.start = {n: simulation.activations[n] for n in made if n in simulation.activations and self.quantize}
        self.zero = {n: float(g.zero_point) for n, g in self.start.items()}
        learn = options["learn_scales"] and self.quantize
        self.log_ratio = {n: torch.zeros((), device=self.network.device, requires_grad=learn) for n in self.start}

    def scale(self, name: str) -> Tensor:
        """Current scale of a quantizer."""
        return self.start[name].scale * torch.exp(self.log_ratio[name])

    def drop(self, quantized: Tensor, floating: Tensor) -> Tensor:
        """QDrop: every element keeps its quantized value with the given probability."""
        if self.probability >= 1 or not quantized.is_floating_point():
            return quantized
        return torch.where(torch.rand_like(quantized) < self.probability, quantized, floating)

    def activation(self, name: str, x: Tensor) -> Tensor:
        """Hook: what the readers of ``x`` see."""
        if name not in self.start:
            return x
        return self.drop(fake_quantize_lsq(x, self.scale(name), self.zero[name], self.start[name].qmax), x)

    def weight(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Hook: weight and bias that a layer computes with."""
        if step.node not in self.layers:
            return step.module.weight, step.module.bias  # type: ignore[return-value]
        name = self.simulation.quantizer_of(self.simulation.layer(step.node).input) if self.quantize else None
        scale = None
        if name is not None:
            scale = self.scale(name) if name in self.start else self.simulation.activations[name].scale
        layer = self.layers[step.node]
        return layer.weight(), layer.current_bias(scale)

    def loss(self, index: Tensor) -> Tensor:
        """Reconstruction loss on a batch."""
        cache, total = self.cache, torch.zeros((), device=self.network.device)
        index = index.to(self.network.device)
        values = {n: self.drop(x[index], cache.floating[n][index]) for n, x in cache.quantized.items()}
        outputs = self.network.run(
            values, self.steps, keep=self.unit.outputs, activation=self.activation, weight=self.weight
        )
        for name, targets in cache.targets.items():
            output, target, knee = outputs[name], targets[index], cache.knees[name]
            if knee is None:
                error = (output - target).abs().pow(2)
            else:
                error = 2 * functional.huber_loss(output, target, reduction="none", delta=knee)
            total = total + error.sum(1).mean()
        return total

    def train(
        self,
        *,
        iters: int,
        batch_size: int,
        rates: LearningRates,
        rounding_weight: float,
        seed: int,
        report: Callable[[int, Tensor], None] | None = None,
        **_: Any,
    ) -> None:
        """Adam on everything at once; arguments as those of reconstruct_unit."""
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        groups = [{"params": [layer.V for layer in self.layers.values()], "lr": rates.rounding}]
        smooth = [t for t in self.log_ratio.values() if t.requires_grad]
        smooth += [la.shift for la in self.layers.values() if la.bias is not None and la.shift.requires_grad]
        smooth += [layer.log_gain for layer in self.layers.values() if layer.log_gain.requires_grad]
        if smooth:
            groups.append({"params": smooth, "lr": rates.scale})
        optimizer, beta_at = torch.optim.Adam(groups), BetaSchedule(iters)
        for step in range(iters):
            index = self.cache.training[torch.randint(0, len(self.cache.training), (batch_size,), generator=generator)]
            if smooth:
                optimizer.param_groups[1]["lr"] = rates.scale * 0.5 * (1 + math.cos(math.pi * step / iters))
            total = loss = self.loss(index)
            beta = beta_at(step)
            if beta is not None:
                for layer in self.layers.values():
                    total = total + rounding_weight * (1 - (2 * layer.h() - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if report is not None:
                report(step + 1, loss.detach())

    def write(self) -> None:
        """Put what was learned into the simulation."""
        for name, layer in self.layers.items():
            self.simulation.weights[name] = QuantizedWeight(layer.hard_codes(), layer.learned_grid())
            if layer.bias is not None and layer.shift.requires_grad:
                self.simulation.biases[name] = (layer.bias + layer.shift * layer.spread).detach()
        for name, grid in self.start.items():
            self.simulation.activations[name] = dataclasses.replace(grid, scale=self.scale(name).detach())

    def unsettled(self) -> float:
        """Share of rounding variables that are not decided."""
        h = torch.cat([layer.h().detach().flatten() for layer in self.layers.values()])
        return float(((h > 0.05) & (h < 0.95)).float().mean())


def plain_unit(unit: UnitPlan, simulation: Simulation, data: UnitData, **options: Any) -> UnitResult:
    """What :func:`mrecg_onnx.learning.reconstruction.reconstruct_unit` does, by the plain loop."""
    begin = time.perf_counter()
    cache = PlainCache.of(data, options["knee"])
    loop = PlainLoop(unit, simulation, cache, options)
    judge = data.held_out if len(data.held_out) else data.training

    def evaluate() -> float:
        return evaluate_unit(
            unit, loop.steps, simulation, data, judge, quantize_activations=loop.quantize,
            batch_size=options["batch_size"], knees=cache.knees,
            weights=dict.fromkeys(cache.knees, 1.0),
        )  # fmt: skip

    nearest = evaluate()
    if not loop.layers:
        return UnitResult(unit.name, unit.layers, 0, nearest, nearest, "nearest", 0.0, time.perf_counter() - begin)
    before = dict(simulation.weights), dict(simulation.activations), dict(simulation.biases)
    loop.train(**options | {"report": None})
    loop.write()
    learned = evaluate()
    kept = "learned" if learned < nearest else "nearest"
    if kept == "nearest":
        simulation.weights, simulation.activations, simulation.biases = before
    seconds = time.perf_counter() - begin
    return UnitResult(unit.name, unit.layers, options["iters"], nearest, learned, kept, loop.unsettled(), seconds)


# ---- the walk through a network -------------------------------------------------------------------------------------


class _EnoughError(Exception):
    """Ends a run early."""


def base_settings(args: argparse.Namespace, **changes: Any) -> mrecg_onnx.Settings:
    """W4A4 by QDrop on few images."""
    options = {"samples": args.images, "batch_size": args.batch, "threads": args.threads, "device": args.device}
    return mrecg_onnx.Settings(**{"method": "qdrop", "stop": "off", "held_out": HELD_OUT, **options, **changes})


def model_path(args: argparse.Namespace, model: str) -> Path:
    path: Path = args.data / "models" / f"{model}.onnx"
    return path


def units_of(args: argparse.Namespace, model: str) -> list[UnitPlan]:
    """Base units of a model, at most ``--units`` of them."""
    plan = make_plan(normalize(load_model(model_path(args, model))), base_settings(args))
    return list(plan.units)[: args.units]


def largest_unit(args: argparse.Namespace, model: str) -> int:
    """Index of the unit whose layers write the most values; pixels of a layer's output = MACs / weights."""
    plan = make_plan(normalize(load_model(model_path(args, model))), base_settings(args))
    made = {la.name: la.shape[la.axis] * (la.macs or 0) / la.params for la in plan.layers}
    sizes = [sum(made[name] for name in unit.layers) for unit in plan.units]
    return sizes.index(max(sizes))


@contextmanager
def in_place_of_ours(loop: Visit) -> Iterator[None]:
    """Runs of the package use ``loop`` where they use :func:`reconstruct_unit`.

    Raises:
        RuntimeError: no run called it, so nothing was compared.
    """
    calls = 0

    def counted(*arguments: Any, **options: Any) -> UnitResult:
        nonlocal calls
        calls += 1
        return loop(*arguments, **options)

    with patch.object(learner, "reconstruct_unit", counted):
        yield
    if not calls:
        raise RuntimeError(
            "mrecg_onnx.learning.learner no longer calls reconstruct_unit: this script has to be adapted"
        )


def walk(args: argparse.Namespace, model: str, settings: mrecg_onnx.Settings, visit: Visit) -> None:
    """Quantize ``model`` with ``visit`` in the place of our loop; it may raise to end the run."""
    calib = args.data / "data" / SETS[model] / "calib"
    try:
        with in_place_of_ours(visit):
            mrecg_onnx.quantize(model_path(args, model), calib, settings)
    except _EnoughError:
        return


def untouched(unit: UnitPlan) -> UnitResult:
    """Leaves a unit rounded to nearest."""
    return UnitResult(unit.name, unit.layers, 0, 0.0, 0.0, "nearest", 0.0, 0.0)


def copy_of(simulation: Simulation) -> Simulation:
    """A simulation that may be changed."""
    return dataclasses.replace(
        simulation,
        activations=dict(simulation.activations),
        weights=dict(simulation.weights),
        biases=dict(simulation.biases),
    )


# ---- time an iteration ----------------------------------------------------------------------------------------------


#: Share of the iterations before the regularizer sets in; what is timed lies behind it, as most of a run does.
WARMUP = 0.2


class Stopwatch:
    """Mean seconds an iteration between the first and the last report that count."""

    def __init__(self, device: torch.device, counts: Callable[[int], bool]) -> None:
        self.cuda, self.counts = device.type == "cuda", counts
        self.marks: list[tuple[int, float]] = []

    def report(self, iteration: int, _: Any) -> None:
        """Called after an iteration; waits for the GPU only where it counts."""
        if self.counts(iteration):
            if self.cuda:
                torch.cuda.synchronize()
            self.marks.append((iteration, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """Of one iteration."""
        (first, begin), (last, end) = self.marks[0], self.marks[-1]
        return (end - begin) / (last - first)


def time_ours(unit: UnitPlan, simulation: Simulation, data: UnitData, options: dict[str, Any]) -> float:
    """It reports every few iterations; the evaluations before and after them are not among what is timed."""
    watch = Stopwatch(simulation.network.device, lambda i: i >= WARMUP * options["iters"])
    reconstruct_unit(unit, copy_of(simulation), data, **options | {"report": watch.report})
    return watch.seconds


def time_plain(unit: UnitPlan, simulation: Simulation, cache: PlainCache, options: dict[str, Any]) -> float:
    """Two marks only, after warm-up and at the end: on a GPU every other one would make it wait."""
    ends = {max(1, math.ceil(WARMUP * options["iters"])), options["iters"]}
    watch = Stopwatch(simulation.network.device, ends.__contains__)
    PlainLoop(unit, copy_of(simulation), cache, options).train(**options | {"report": watch.report})
    return watch.seconds


def measure_time(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Seconds an iteration of both, unit by unit, in turns."""
    rows: list[dict[str, Any]] = []
    wanted = len(units_of(args, model))

    def visit(unit: UnitPlan, simulation: Simulation, data: UnitData, **options: Any) -> UnitResult:
        if len(rows) == wanted:
            raise _EnoughError
        if not set(unit.layers) & set(simulation.weights):
            return untouched(unit)
        cache = PlainCache.of(data, options["knee"])
        trial = time_plain(unit, simulation, cache, options | {"iters": 3})
        iters = min(args.iters, max(3, round(args.seconds / trial)))
        plain, ours = [], []
        for _ in range(args.rounds):
            plain.append(time_plain(unit, simulation, cache, options | {"iters": iters}))
            ours.append(time_ours(unit, simulation, data, options | {"iters": args.iters}))
        shapes = {n: list(x.shape[1:]) for n, x in (cache.quantized | cache.targets).items()}
        row = {
            "unit": unit.name, "layers": len(unit.layers), "input": shapes[unit.inputs[0]],
            "output": shapes[unit.outputs[0]], "plain": plain, "ours": ours,
            "plain_ms": round(statistics.median(plain) * 1e3, 3), "ours_ms": round(statistics.median(ours) * 1e3, 3),
            "ratio": round(statistics.median(plain) / statistics.median(ours), 2),
        }  # fmt: skip
        rows.append(row)
        print(f"  {unit.name}: plain {row['plain_ms']} ms, ours {row['ours_ms']} ms, {row['ratio']}x", flush=True)
        return untouched(unit)

    walk(args, model, base_settings(args), visit)
    plain, ours = (sum(row[k] for row in rows) for k in ("plain_ms", "ours_ms"))
    how = {"images": args.images, "batch": args.batch, "rounds": args.rounds, "whole": args.units is None}
    return {
        **how,
        "units": rows,
        "plain_ms": round(plain, 1),
        "ours_ms": round(ours, 1),
        "ratio": round(plain / ours, 2),
    }


# ---- loss after equal iterations ------------------------------------------------------------------------------------


def spread(count: int, chosen: int) -> set[int]:
    """``chosen`` of ``count`` indices from the first to the last, evenly; all of them for 0."""
    if chosen == 0 or chosen >= count:
        return set(range(count))
    return {round(i * (count - 1) / max(1, chosen - 1)) for i in range(chosen)}


def measure_loss(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Held-out loss, hard-rounded, of both after equal iterations; every unit reads what our loop made of those before."""
    rows: list[dict[str, Any]] = []
    indices = spread(len(units_of(args, model)), args.loss_units)
    visited = [0]

    def visit(unit: UnitPlan, simulation: Simulation, data: UnitData, **options: Any) -> UnitResult:
        index = visited[0]
        visited[0] += 1
        if index > max(indices):
            raise _EnoughError
        if index in indices:
            row: dict[str, Any] = {"unit": unit.name, "plain": [], "ours": []}
            for seed in args.seeds:
                for name, loop in (("plain", plain_unit), ("ours", reconstruct_unit)):
                    choice = options | {"seed": options["seed"] + 1000 * seed, "report": None}
                    result = loop(unit, copy_of(simulation), data, **choice)
                    row[name].append(result.loss)
                    row["nearest"] = result.loss_nearest
            row["ratio"] = round(statistics.mean(row["ours"]) / statistics.mean(row["plain"]), 4)
            rows.append(row)
            print(f"  {unit.name}: nearest {row['nearest']:.5g}, ours / plain {row['ratio']}", flush=True)
        return reconstruct_unit(unit, simulation, data, **options)

    walk(args, model, base_settings(args, iters=args.loss_iters), visit)
    ratio = math.exp(statistics.mean(math.log(max(row["ratio"], 1e-9)) for row in rows))
    return {"iters": args.loss_iters, "seeds": args.seeds, "units": rows, "ratio": round(ratio, 4)}


# ---- peak memory ----------------------------------------------------------------------------------------------------


def child(args: argparse.Namespace) -> dict[str, Any]:
    """In a fresh process: prepare one unit, forget everything else, then run a few iterations and note the peak."""
    found: list[Any] = []

    def visit(unit: UnitPlan, simulation: Simulation, data: UnitData, **options: Any) -> UnitResult:
        if unit.name != args.unit:
            return untouched(unit)
        cache = PlainCache.of(data, options["knee"]) if args.child == "plain" else data
        found.extend((unit, simulation, cache, options | {"report": None}))
        raise _EnoughError

    model = args.models[0]
    walk(args, model, base_settings(args, equalize="off", range="mse"), visit)
    unit, simulation, cache, options = found
    cuda = simulation.network.device.type == "cuda"
    reset_peak()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else held()
    if args.child == "plain":
        size = cache.bytes
        PlainLoop(unit, simulation, cache, options).train(**options | {"iters": 5})
    else:
        stores = {id(s): s for part in (cache.quantized, cache.floating, cache.targets) for s in part.values()}
        size = sum(_stored(s) for s in stores.values())
        reconstruct_unit(unit, simulation, cache, **options | {"iters": 20})
    most = torch.cuda.max_memory_allocated() if cuda else peak()
    return {"peak": most, "before": before, "cache": size}


def _stored(store: Any) -> int:
    """Bytes of a store by its documented layout: one a code, two a half-precision float."""
    return int(store.count * math.prod(store.shape) * (1 if store.grid is not None else 2))


def measure_memory(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Peak memory of both on the largest unit, each in a process of its own."""
    unit = units_of(args, model)[min(largest_unit(args, model), (args.units or 10**6) - 1)].name
    row: dict[str, Any] = {"unit": unit, "images": args.images, "batch": args.batch}
    for name in ("plain", "ours"):
        command = [
            sys.executable, __file__, "--child", name, "--unit", unit, "--models", model, "--data", str(args.data),
            "--images", str(args.images), "--batch", str(args.batch), "--threads", str(args.threads), "--device", args.device,
        ]  # fmt: skip
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        row[name] = json.loads(said)
    row["ratio"] = round(row["plain"]["peak"] / row["ours"]["peak"], 2)
    print(f"  {unit}: plain {row['plain']['peak'] / 1e6:.0f} MB, ours {row['ours']['peak'] / 1e6:.0f} MB", flush=True)
    return row


# ---- accuracy after equal iterations --------------------------------------------------------------------------------


def measure_accuracy(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Top-1 by the referee of whole networks learned by either loop."""
    dataset, fp32 = SETS[model], model_path(args, model)
    found: dict[str, Any] = {"iters": args.accuracy_iters, "seeds": args.seeds, "images": args.accuracy_images}
    loops = {"plain": plain_unit, "ours": reconstruct_unit}
    for name in loops:
        found[name] = {"top1": [], "seconds": []}
    for seed in args.seeds:
        for name, loop in loops.items():
            settings = mrecg_onnx.Settings(
                method="qdrop", stop="off", iters=args.accuracy_iters, samples=args.accuracy_images, seed=seed,
                batch_size=args.batch, threads=args.threads, device=args.device,
            )  # fmt: skip
            out = Path("build") / "benchmarks" / f"speed-{model}-{name}-{seed}.onnx"
            out.parent.mkdir(parents=True, exist_ok=True)
            with in_place_of_ours(loop):
                result = mrecg_onnx.quantize(fp32, args.data / "data" / dataset / "calib", settings, output=out)
            found[name]["top1"].append(referee(args.data, out, dataset, None)["top1"])
            found[name]["seconds"].append(round(result.seconds["reconstruct"], 1))
            print(f"  seed {seed}, {name}: {found[name]['top1'][-1]} in {found[name]['seconds'][-1]} s", flush=True)
    return found


# ---- results --------------------------------------------------------------------------------------------------------


def _size(shape: list[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _time_lines(model: str, r: dict[str, Any]) -> list[str]:
    lines = [f"## Time an iteration: {model}", "",
             f"{'All units' if r['whole'] else 'First units only'}, batch {r['batch']}, {r['rounds']} rounds.", "",
             "| unit | input | output | plain | ours | ratio |", "|---|---|---|---|---|---|"]  # fmt: skip
    for row in r["units"]:
        lines.append(
            f"| {row['unit']} | {_size(row['input'])} | {_size(row['output'])} | {row['plain_ms']:.1f} ms | "
            f"{row['ours_ms']:.1f} ms | {row['ratio']}x |"
        )
    return [*lines, f"| **sum over units** | | | {r['plain_ms']:.0f} ms | {r['ours_ms']:.0f} ms | **{r['ratio']}x** |"]


def _loss_lines(model: str, r: dict[str, Any]) -> list[str]:
    lines = [f"## Loss after {r['iters']} iterations: {model}", "",
             f"Held-out loss with rounding decided, as a share of the loss of rounding to nearest; seeds {r['seeds']}.", "",
             "| unit | plain | ours | mean ours / mean plain |", "|---|---|---|---|"]  # fmt: skip
    for row in r["units"]:
        cells = [", ".join(f"{loss / row['nearest']:.4f}" for loss in row[name]) for name in ("plain", "ours")]
        lines.append(f"| {row['unit']} | {cells[0]} | {cells[1]} | {row['ratio']} |")
    return [*lines, f"| **geometric mean** | | | **{r['ratio']}** |"]


def _memory_lines(model: str, r: dict[str, Any]) -> list[str]:
    lines = [f"## Peak memory: {model}", "",
             f"Largest unit ({r['unit']}), {r['images']} images, batch {r['batch']}, each in a fresh process.",
             "Loop: peak above what the process held when the loop began.", "",
             "| | peak of the process | cached activations | loop |", "|---|---|---|---|"]  # fmt: skip
    for name in ("plain", "ours"):
        row = r[name]
        parts = [row["peak"], row["cache"], row["peak"] - row["before"]]
        lines.append(f"| {name} | " + " | ".join(f"{part / 1e6:.0f} MB" for part in parts) + " |")
    return lines


def _accuracy_lines(model: str, r: dict[str, Any]) -> list[str]:
    lines = [f"## Accuracy after {r['iters']} iterations: {model}, W4A4", "",
             f"QDrop on up to {r['images']} images; top-1 by the referee, seeds {r['seeds']}; time of reconstruction.", "",
             "| | top-1 | mean | seconds |", "|---|---|---|---|"]  # fmt: skip
    for name in ("plain", "ours"):
        tops, seconds = r[name]["top1"], r[name]["seconds"]
        cells = ", ".join(f"{t:.4f}" for t in tops)
        lines.append(f"| {name} | {cells} | {statistics.mean(tops):.4f} | {', '.join(str(s) for s in seconds)} |")
    return lines


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., list[str]]]] = {
    "time": (measure_time, _time_lines),
    "loss": (measure_loss, _loss_lines),
    "memory": (measure_memory, _memory_lines),
    "accuracy": (measure_accuracy, _accuracy_lines),
}


def write_markdown(results: dict[str, Any]) -> str:
    """The tables for people."""
    lines = ["# Ours against the plain loop", "",
             "Written by `python benchmarks/speed.py`; every part's command, date, versions and machine are in the JSON file",
             "beside this one. The plain loop is in the script. W4A4 by QDrop; both loops in one process, in turns; times are",
             "medians over rounds.", ""]  # fmt: skip
    machines = {}
    for part, (_, render) in PARTS.items():
        for model, result in results.get(part, {}).items():
            lines += [*render(model, result), ""]
            head = result["header"]
            threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
            machines[f"{head['machine']}, {threads}"] = True
    return "\n".join([*lines, f"Machine: {'; or '.join(machines)}."]) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--parts", nargs="*", default=["time", "loss", "memory"], choices=list(PARTS))
    parser.add_argument("--models", nargs="*", default=["mobilenetv2_imagenet", "resnet56_cifar10"], choices=list(SETS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--units", type=int, help="only the first so many units of each model")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--iters", type=int, default=30, help="iterations of ours in a round, at most of the plain loop"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="time of the plain loop in a round, at least 3 iterations"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--loss-iters", type=int, default=100)
    parser.add_argument("--loss-units", type=int, default=5, help="units spread over the network, 0 for all")
    parser.add_argument("--accuracy-iters", type=int, default=300)
    parser.add_argument("--accuracy-images", type=int, default=1024)
    parser.add_argument("--accuracy-models", nargs="*", default=[SMALL], choices=list(SETS))
    parser.add_argument("--child", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(child(args)))
        return
    name = "speed" if args.device == "cpu" else f"speed-{args.device}"
    path = RESULTS / f"{name}.json"
    for part in args.parts:
        for model in args.accuracy_models if part == "accuracy" else args.models:
            print(f"{part}: {model}", flush=True)
            result = {**PARTS[part][0](args, model), "threads": args.threads, "header": header()}
            results = json.loads(path.read_text()) if path.exists() else {}
            results.setdefault(part, {})[model] = result
            path.write_text(json.dumps(results, indent=1) + "\n")
            path.with_suffix(".md").write_text(write_markdown(results))


if __name__ == "__main__":
    main()
