"""What a run will take, before it: the same run on a few images and iterations, counted up to all of them.

What comes before learning is done as the run does it. Units are learned for :data:`ITERS` iterations on every so many-th
image; the pace of each, and the time that an image takes through the network, say what all of them will take. Nothing is
written.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import torch
from numpy.typing import NDArray

from mrecg_onnx.calibrating import IMAGES as MADE
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import counted
from mrecg_onnx.data import ZEROQ, Data, Dataset, Preprocess
from mrecg_onnx.finishing import finish_steps
from mrecg_onnx.learning import COPIES, Learner, probe_iters
from mrecg_onnx.machine import Run, byte_size, duration, full_precision, open_run
from mrecg_onnx.methods import METHODS, method_of
from mrecg_onnx.network import Simulation, forward_batches, images_at_once, made_shapes
from mrecg_onnx.planning import Plan
from mrecg_onnx.preparation import Prepared, calibrated, prepare
from mrecg_onnx.progress import Progress, Report
from mrecg_onnx.provenance import metadata
from mrecg_onnx.quantization import written
from mrecg_onnx.settings import Settings
from mrecg_onnx.widths import Allocation, choose_widths

__all__ = ["Estimate", "estimate"]

#: Iterations of a unit, and images, on which the pace is taken; learning says how far it is after 10 and in the end.
ITERS, IMAGES = 14, 16
#: Evaluations of the joint search for steps, and iterations for made images, that are timed.
EVALUATIONS, MADE_ITERS = 8, 10
#: Units that a probing run joins are not known before it: joined ones have the iterations of all members, each for all members.
#: Between a quarter and two thirds of the units were (docs/method.md 4).
JOINED = 0.5
#: Files that the search for a drop makes at most.
TRIALS = 4
#: A training step in passes through the quantized network, beside one through the float one.
BACKWARD = 2.0
#: Times that the finishing stage asks its judges.
ASKED = 7
#: Bytes of a number between units: as half precision and as a code.
KEPT = 3
#: Images that are held before learning, and looked at in the finished file at most, and numbers that these may hold.
HELD, CHECKED, NUMBERS = 64, 256, 1 << 20
#: A stage of the estimate alone.
LOOKING = "looking"

#: Seconds on the clock, and of processor time.
_Seconds = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Estimate(Result):
    """What a run would do and take.

    Attributes:
        settings: of the run.
        plan: who is quantized, at which widths, in which units.
        images: calibration images it would use.
        iters: iterations of all units together, a probing run among them.
        steps: of the finishing stage.
        seconds: on the clock, by stage.
        cpu_seconds: of the processor, all threads together, by stage.
        memory: bytes that the process holds at most.
        took: seconds that the estimate itself took.
    """

    settings: Settings
    plan: Plan
    images: int
    iters: int
    steps: int
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    memory: int
    took: float

    def __str__(self) -> str:
        """What a user decides by: widths, units and iterations, time and memory."""
        settings, plan = self.settings, self.plan
        counts = f"{counted(len(plan.quantized_layers), 'layer')} and {counted(len(plan.activations), 'activation')} quantized"
        learned = f"{self.iters:,} iterations together" if self.iters else "nothing is learned"
        steps = f", then {self.steps:,} steps of the whole network" if self.steps else ""
        whole, used = sum(self.seconds.values()), sum(self.cpu_seconds.values())
        return "\n".join(
            [
                f"{settings.widths} by {settings.method}, {counts} on {counted(self.images, 'image')}: {learned}{steps}",
                f"time: about {duration(whole)} while the machine is as busy as now ({duration(used)} of processor time)",
                f"memory: about {byte_size(self.memory)}",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {"settings": self.settings.to_json(), "plan": self.plan.to_json()}


class _Meter:
    """What a run tells of its way.

    Attributes:
        stages: seconds by stage.
        units: by stage, seconds of an iteration of each unit, and its iterations.
        memory: the most bytes that the process held.
    """

    def __init__(self, report: Report | None) -> None:
        self.report = report
        self.stages: dict[str, _Seconds] = {}
        self.units: dict[str, list[tuple[_Seconds, int]]] = {}
        self.memory = 0
        self._last: tuple[_Seconds, Progress] | None = None
        self._process = psutil.Process()

    def __call__(self, now: Progress) -> None:
        """Hear where the run is."""
        moment, before = _now(), self._last
        self.pass_to(moment)
        if before is not None and now.stage == before[1].stage and now.result is None and now.iteration:
            same = before[1].result is None and before[1].unit == now.unit and before[1].iteration > 0
            done = now.iteration - (before[1].iteration if same else 0)
            pace = (moment - before[0]) / max(1, done), now.iters
            known = self.units.setdefault(now.stage, [])
            if same and known:
                known[-1] = pace  # without what the first iterations have to set up
            else:
                known.append(pace)
        self._last = moment, now
        if self.report is not None and now.result is None:
            self.report(now)

    def pass_to(self, moment: _Seconds) -> None:
        """Count the time up to ``moment`` for the stage at work."""
        self.memory = max(self.memory, self._process.memory_info().rss)
        if self._last is not None:
            stage = self._last[1].stage
            self.stages[stage] = self.stages.get(stage, np.zeros(2)) + moment - self._last[0]
            self._last = moment, self._last[1]


def _now() -> _Seconds:
    return np.array([time.perf_counter(), time.process_time()])


@dataclass(frozen=True)
class _Looked:
    """What the short run found.

    Attributes:
        model: its file.
        ready: the prepared model, with the widths that were chosen.
        floating: seconds of an image through the float network.
        quantized: likewise through the quantized one.
        kept: bytes of an image between two units.
        steps: of the finishing stage, as the run's own settings say.
    """

    model: onnx.ModelProto
    ready: Prepared
    floating: _Seconds
    quantized: _Seconds
    kept: int
    steps: int


@takes(settings=Settings, preprocess=Preprocess)
@full_precision()
def estimate(
    model: onnx.ModelProto | str | Path,
    calib: Data,
    settings: Settings | None = None,
    *,
    progress: Report | None = None,
) -> Estimate:
    """Say what :func:`mrecg_onnx.quantize` would do with the same arguments, and about what it would take.

    Time and memory are meant to be right within a factor of two (benchmarks/results/dry_run.md) while the machine is as busy as
    now. Where iterations end by themselves (``stop="auto"``) or files are tried (``max_drop``), they are the most.

    Args:
        model: the float model; not changed.
        calib: as for :func:`mrecg_onnx.quantize`.
        settings: likewise.
        progress: called as the work proceeds.

    Returns:
        The plan, and time and memory.

    Raises:
        MrecgError: as :func:`mrecg_onnx.quantize`, as far as it shows before anything is learned.
    """
    settings = settings or Settings()
    begin, meter = time.perf_counter(), _Meter(progress)
    made = isinstance(calib, str) and calib == ZEROQ
    short = _short(settings, made=made)
    with open_run(settings.device, settings.memory, None, meter) as run:
        ready = prepare(model, calib, short, run)
        found = choose_widths(run, ready, None, partial(_look, settings)).made
        meter.pass_to(_now())
        budget = run.memory
    images = (settings.samples or MADE) if made else len(found.ready.dataset)
    few = len(_share(found.ready.dataset))
    stages, iters = _counted(settings, short, found, meter, images, few)
    if settings.max_drop is not None:
        once = {"load", "equalize", "absorb", "allocate", ZEROQ}
        stages = {name: spent if name in once else TRIALS * spent for name, spent in stages.items()}
    more = (COPIES[settings.augment] * images - few) * found.kept
    memory = meter.memory + more
    return Estimate(
        settings=dataclasses.replace(settings, preprocess=found.ready.settings.preprocess),
        plan=found.ready.plan,
        images=images,
        iters=iters,
        steps=found.steps,
        seconds={name: float(spent[0]) for name, spent in stages.items()},
        cpu_seconds={name: float(spent[1]) for name, spent in stages.items()},
        memory=max(meter.memory, min(memory, budget)),
        took=time.perf_counter() - begin,
    )


def _short(settings: Settings, *, made: bool) -> Settings:
    """The settings of the short run."""
    less: dict[str, Any] = {"iters": min(ITERS, settings.iters), "stop": "off", "finish": 0, "augment": "none"}
    if METHODS[settings.method].merge and settings.scheme == "loss":
        less["scheme"] = "none"
    if METHODS[settings.method].joint_steps:
        less |= {"lapq_evaluations": EVALUATIONS}
    if settings.max_drop is not None:
        less |= {"max_drop": None, "avg_wbits": float(settings.wbits)}
    if made:
        less |= {
            "zeroq_iters": min(MADE_ITERS, settings.zeroq_iters),
            "samples": min(settings.batch_size, settings.samples or MADE),
        }
    return dataclasses.replace(settings, **less)


def _share(dataset: Dataset) -> Dataset:
    """About :data:`IMAGES` of the images, spread over all."""
    return dataset.shard(0, max(1, len(dataset) // IMAGES))


def _look(settings: Settings, run: Run, ready: Prepared, allocation: Allocation | None) -> _Looked:  # noqa: ARG001
    """The run of the short settings that ``ready`` has; of ``settings`` only the finishing steps are read."""
    start = calibrated(run, ready)
    with run.stage(LOOKING):
        floating, quantized = _passes(ready, start.simulation)
        kept = _kept(ready)
    share = _share(ready.dataset)
    few = dataclasses.replace(ready, dataset=share, data={name: x[:IMAGES] for name, x in ready.data.items()})
    learner = Learner(run, start.simulation, share, ready.settings, dict)
    learner.learn()
    learner.correct_biases()
    held, _ = written(run, few, learner, metadata(few, learner.plan, start.protected))
    return _Looked(held.model, ready, floating, quantized, kept, finish_steps(settings, learner.simulation))


def _passes(ready: Prepared, simulation: Simulation) -> tuple[_Seconds, _Seconds]:
    """Seconds of an image through the float network and through the quantized one."""
    network, least = ready.network, ready.network.batch or 2
    size = images_at_once(network, ready.data, IMAGES)
    found = []
    for run in (network.run, simulation.run):
        with torch.no_grad():
            run(next(forward_batches(ready.data, least, network.device, least)))
            begin, count = _now(), 0
            for batch in forward_batches(ready.data, size, network.device, IMAGES):
                run(batch)
                count += len(next(iter(batch.values())))
        found.append((_now() - begin) / count)
    return found[0], found[1]


def _kept(ready: Prepared) -> int:
    """Bytes of an image where the most of it is kept: what a unit reads and what it is to make."""
    network = ready.network
    few = {name: x[: network.batch or 2].to(network.device) for name, x in ready.data.items()}
    rows = len(next(iter(few.values())))
    shapes = {name: tuple(x.shape) for name, x in few.items()} | made_shapes(network, network.steps, few)
    if METHODS[ready.settings.method].granularity == "none" and not ready.settings.bias_correction:
        return 0
    units = [{*unit.inputs, *unit.outputs} for unit in ready.plan.units]
    return max((sum(KEPT * math.prod(shapes.get(name, (0,))) // rows for name in unit) for unit in units), default=0)


def _counted(
    settings: Settings, short: Settings, found: _Looked, meter: _Meter, images: int, few: int
) -> tuple[dict[str, _Seconds], int]:
    """Seconds by stage of the run of ``settings``, and its iterations."""
    stages = {name: spent for name, spent in meter.stages.items() if name != LOOKING}
    through, samples = found.floating + found.quantized, COPIES[settings.augment] * images
    judged, iters = round(images * settings.held_out), 0
    more = max(0, samples - few) * through + 2 * judged * found.quantized
    if settings.loss == "fisher":  # from each unit to the end and back
        more = more + samples * through * len(found.ready.plan.units) / 2
    joins = METHODS[settings.method].merge and settings.scheme == "loss"
    for phase in method_of(settings).passes:
        if phase.stage not in stages:
            continue
        if method_of(settings).solver != "gradient":  # in closed form: it has no iterations
            stages[phase.stage] = stages[phase.stage] + more
            continue
        units, timed = meter.units.get(phase.stage, []), max(1, round(short.iters * phase.share))
        own = sum((pace * count for pace, count in units), np.zeros(2))
        rest = np.maximum(stages[phase.stage] - own, 0.0) + more
        longer = max(1, round(settings.iters * phase.share)) / timed
        iters += round(sum(count for _, count in units) * longer)
        if joins:
            first = probe_iters(settings)
            stages["probe"] = rest + own * first / timed
            iters += first * len(units)
            longer *= 1 + JOINED if settings.joint_iters == "sum" else 1
        stages[phase.stage] = rest + own * longer
    if found.steps:
        step = settings.batch_size * (through + BACKWARD * found.quantized)
        stages["finish"] = found.steps * step + ASKED * judged * through
    made = meter.units.get(ZEROQ, [])
    if made:  # one batch was
        pace, timed = made[0]
        batches = math.ceil(images / settings.batch_size)
        stages[ZEROQ] = stages[ZEROQ] + pace * (settings.zeroq_iters * batches - timed)
    evaluations = settings.lapq_evaluations or 8 * (
        len(found.ready.plan.activations) + len(found.ready.plan.quantized_layers)
    )
    for name, factor in {"read": samples / few, "lapq": evaluations / EVALUATIONS}.items():
        if name in stages:
            stages[name] = stages[name] * factor
    if "correct" in stages:
        stages["correct"] = stages["correct"] + samples * through
    numbers = sum(x[0].numel() for x in found.ready.data.values())
    checked = min(images, max(HELD, min(CHECKED, NUMBERS // max(1, numbers))))
    stages["verify"] = stages["verify"] + 2 * max(0, checked - few) * through
    return stages, iters
