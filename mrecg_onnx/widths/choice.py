"""The widths of a run: as they were given, chosen once within a budget, or tried until the accuracy is kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

import onnx

from mrecg_onnx.converters import load_model
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.data import Data, Given, Labels, Source, given, holds_images, open_validation, require_values
from mrecg_onnx.machine import Run
from mrecg_onnx.measures import AnyMetric, Metric, metric_of
from mrecg_onnx.methods import METHODS
from mrecg_onnx.planning import BitRule, Plan, make_plan
from mrecg_onnx.preparation import Prepared
from mrecg_onnx.provenance import metadata
from mrecg_onnx.running import describe, read_graph, specs_of
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.validating import require_metric, validate
from mrecg_onnx.widths.allocation import (
    Allocation,
    Budget,
    allocate,
    average_budget,
    budgets_of,
    counting_layers,
    with_rules,
)
from mrecg_onnx.widths.costs import Costs, cost_images, measure_costs
from mrecg_onnx.widths.drop_search import AVERAGES, Trial, measured_drop, most_trials, note_judged, search, tell_doubts
from mrecg_onnx.widths.packed_size import PackedSize

__all__ = ["Chosen", "Judge", "JudgedBy", "choose_widths"]

#: What a drop may be measured by.
JudgedBy: TypeAlias = "AnyMetric"


class _Made(Protocol):
    @property
    def model(self) -> onnx.ModelProto: ...


M = TypeVar("M", bound=_Made)
#: Makes a file of a prepared model whose widths are chosen.
Make = Callable[[Run, Prepared, Allocation | None], M]


@dataclass(frozen=True)
class Chosen(Generic[M]):
    """The file with the widths that were chosen.

    Attributes:
        made: what was made of them.
        trials: files made on the search for ``max_drop``, in order; empty without one.
    """

    made: M
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Judge:
    """What ``max_drop`` is measured on.

    Attributes:
        data: images or arrays, as :func:`mrecg_onnx.validate` takes them.
        labels: labels for them, likewise.
        metric: what is measured, top-1 without one.
    """

    data: Source
    labels: Labels | None
    metric: Metric | None = None

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto | str | Path,
        settings: Settings,
        data: Data | None,
        labels: Labels | None,
        metric: JudgedBy = None,
    ) -> Judge | None:
        """The judge of what is made of ``model`` that the settings ask for, None where they ask for none.

        Raises:
            SettingsError: there are no data to judge by.
            ModelError: the model cannot be read, or fed.
            DataError: arrays do not fit it, or hold NaN, an infinity, or a value that an input's type does not hold.
        """
        if settings.max_drop is None:
            return None
        if data is None:
            raise SettingsError(
                "--max-drop needs --data: images on which the drop is measured, labelled ones for top-1"
            )
        judge = cls(given(data), labels, metric_of(metric))
        name = describe(model)
        specs = specs_of(read_graph(model), name)
        require_values(judge.data, specs, run=lambda row: run_onnx(load_model(model), row), model=name)
        return judge


def choose_widths(run: Run, ready: Prepared, judge: Judge | None, make: Make[M]) -> Chosen[M]:
    """Make the file with a width for every layer where the settings ask for that, and with those given where they do not.

    Args:
        run: the job.
        ready: the prepared model.
        judge: what ``max_drop`` is measured on; with it ``make`` is called several times, each for a whole file.
        make: makes the file; it is handed the model with its widths.

    Raises:
        SettingsError: no widths keep the budget.
        DataError: the drop cannot be measured on the judge's data.
    """
    if judge is not None:
        require_metric(ready.source, judge.metric, describe(ready.source))
        return _within_drop(run, ready, judge, make)
    if not ready.settings.mixed:
        return Chosen(make(run, ready, None))

    def sizes() -> PackedSize:
        # The file's metadata will hold a rule for every layer.
        rules = tuple(BitRule(f"^{re.escape(x.name)}$", x.wbits, None) for x in ready.plan.quantized_layers)
        written = dataclasses.replace(ready.settings, bits=(*ready.settings.bits, *rules))
        entries = metadata(ready, ready.plan, settings=written)
        behind = ready.tail.model.ByteSize() if ready.tail is not None else 0
        return PackedSize.planned(ready.graph, ready.network, ready.plan, entries, behind)

    with run.stage("allocate"):
        budgets = budgets_of(ready.plan, ready.settings, sizes)
        allocation = allocate(budgets, _measured(run, ready, budgets))
    return Chosen(make(run, _widened(ready, allocation), allocation))


def _measured(run: Run, ready: Prepared, budgets: Sequence[Budget]) -> Costs:
    """Costs of every width that ``budgets`` offer."""
    offers: dict[str, dict[str, Collection[int]]] = {"weights": {}, "tensors": {}}
    for budget in budgets:
        budget.check()
        offers[budget.kind] |= {name: tuple(row) for name, row in budget.spent.items()}
    images = cost_images(ready.dataset)
    return run.once(
        lambda: measure_costs(
            ready.network,
            ready.plan,
            images,
            ready.settings,
            layers=offers["weights"],
            tensors=offers["tensors"],
            dataset=ready.ranging,
        )
    )


def _widened(ready: Prepared, allocation: Allocation) -> Prepared:
    """``ready`` with the widths that were allocated."""
    settings = with_rules(ready.settings, allocation)
    return dataclasses.replace(ready, settings=settings, plan=make_plan(ready.graph, settings))


def _advice(settings: Settings) -> str:
    """What can help where no widths keep the largest drop: nothing that has no effect, or is at its end already."""
    method, widest = METHODS[settings.method], load_target(settings.target).abits[1]
    remedies = ["allow more", "leave layers in float that `mrecg-onnx sensitivity` names (--exclude)"]
    if settings.abits < widest:
        remedies.append("raise --abits")
    if method.granularity == "none":
        remedies.append("take a method that learns (--method brecq)")
    elif method.solver == "gradient":
        remedies.append("raise --iters")
    return f"{', '.join(remedies[:-1])}, or {remedies[-1]}"


def _mean_bits(plan: Plan) -> float:
    """Bits a weight: of the layers that count for an average, of all where none does."""
    layers = counting_layers(plan) or plan.quantized_layers
    return sum(x.wbits * x.params for x in layers) / sum(x.params for x in layers)


def _within_drop(run: Run, ready: Prepared, judge: Judge, make: Make[M]) -> Chosen[M]:
    """The file of least average width that keeps ``max_drop``; every trial is a whole run but for what comes before it."""
    settings = ready.settings
    assert settings.max_drop is not None
    made: dict[float, M] = {}
    tensors = budgets_of(ready.plan, settings, lambda: PackedSize(0, {}))
    # A file calibrated on arrays does not say how images become inputs; prepare() has seen to it that the settings do.
    preprocess = settings.preprocess if ready.dataset.preprocess is None and holds_images(judge.data) else None
    data, labels = judge.data, judge.labels
    if isinstance(data, Given) and not data.again:  # every trial is measured on it
        data = open_validation(
            data,
            specs_of(read_graph(ready.source)),
            settings.preprocess,
            labels,
            keep=True,
            classes=judge.metric is None,
        )
        preprocess = labels = None

    def budgets(average: float) -> tuple[Budget, ...]:
        return average_budget(ready.plan, settings, average, f"--max-drop {settings.max_drop:g}"), *tensors

    with run.stage("allocate"):
        costs = _measured(run, ready, budgets(AVERAGES[-1]))
    possible = [a for a in AVERAGES if budgets(a)[0].smallest <= budgets(a)[0].limit]
    if not budgets(AVERAGES[-1])[0].spent:  # nothing to choose: the file of the widths that there are is measured
        possible = [_mean_bits(ready.plan)]

    def trial(average: float) -> Trial:
        allocation = allocate(budgets(average), costs)
        made[average] = make(run.part(f"average_{average:g}"), _widened(ready, allocation), allocation)
        assert settings.max_drop is not None
        with run.stage("validate"):
            found = validate(
                ready.source,
                made[average].model,
                data,
                labels=labels,
                preprocess=preprocess,
                repeats=0,
                metric=judge.metric,
            )
            drop, labelled = measured_drop(found, settings.max_drop)
            unit = judge.metric.unit if judge.metric is not None else None
            made_of = Trial(average, drop, labelled, found.images, unit)
            run.clock.say(
                f"trial {len(made)}/{most_trials(len(possible))}: weights of {average:g} bits on average, "
                f"drop {made_of.lost(settings.max_drop)} of at most {settings.max_drop:g}"
            )
        note_judged(made[average].model, found)
        if len(made) == 1:
            tell_doubts(found)
        return made_of

    trials = search(settings.max_drop, trial, possible, _advice(settings))
    best = min(t.average for t in trials if t.drop <= settings.max_drop)
    return Chosen(made[best], tuple(trials))
