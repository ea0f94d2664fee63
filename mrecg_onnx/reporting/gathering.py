"""Pages written: what a command found and what is measured for the page, put together and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx.comparing import Comparison
from mrecg_onnx.converters import load_model
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.module_names import NodeNames, module_names
from mrecg_onnx.data import (
    ZEROQ,
    Data,
    Dataset,
    Given,
    Labels,
    Preprocess,
    Source,
    given,
    open_calibration,
    open_validation,
    profile,
)
from mrecg_onnx.inspecting import Ranking, inspect_result
from mrecg_onnx.measures import Metric
from mrecg_onnx.reporting.comparisons import comparison_page, ranking_page
from mrecg_onnx.reporting.measuring import ANSWER_IMAGES, Compared, Measured, measure
from mrecg_onnx.reporting.pages import finished_page, quantization_page, validation_page
from mrecg_onnx.reporting.writing import require_packages, require_page, write_page
from mrecg_onnx.results import QuantizationResult
from mrecg_onnx.running import describe, read_graph, specs_of
from mrecg_onnx.validating import ValidationResult, int8_form, layers_of, validate

if TYPE_CHECKING:
    import onnx

    from mrecg_onnx.measures import AnyMetric
    from mrecg_onnx.running import Model
    from mrecg_onnx.validating import WrittenLayer

__all__ = ["report", "report_comparison", "report_quantization", "report_ranking", "report_validation"]

_MADE = "the calibration images were made and are not kept: layers and answers are measured where --data gives others"
_GONE = "the calibration data went by once and are not kept: layers and answers are measured where data= gives others"


def _names(fp32: Model) -> NodeNames:
    return NodeNames(module_names(read_graph(fp32)))


def _layers(file: Model) -> list[WrittenLayer]:
    return layers_of(int8_form(load_model(file), describe(file)))


def report_quantization(
    result: QuantizationResult,
    page: str | Path,
    *,
    data: Data | None = None,
    labels: Labels | None = None,
    limit: int | None = None,
    metric: AnyMetric = None,
    command: str = "",
) -> None:
    """Write the page of what :func:`mrecg_onnx.quantize` made.

    Args:
        result: what it returned.
        page: the HTML file.
        data: images to measure on in place of the calibration data, as for :func:`mrecg_onnx.validate`; labelled ones give
            accuracies.
        labels: labels for them.
        limit: images used at most.
        metric: what outputs are worth, as for :func:`mrecg_onnx.validate`.
        command: what makes the same again, shown as it is.

    Raises:
        SettingsError: jinja2 or matplotlib is missing, or the result does not know its float model.
        ExportError: the page cannot be written.
        MrecgError: a file or the data cannot be read.
    """
    require_page(page)
    if result.source is None:
        raise SettingsError("this result does not know its float model: quantize makes those that do")
    fp32, settings = result.source, result.settings
    file: Model = result.output if result.output is not None else result.model
    calib = given(result.calib) if result.calib is not None else None
    validation: ValidationResult | None = None
    measured: Measured | None = None
    said: tuple[str, ...] = ()
    if data is not None:
        known = None, settings.preprocess
        validation, measured = _validated(fp32, file, data, labels, known, limit, metric)
    elif metric is not None:
        raise SettingsError("a metric is measured on images: give data, too")
    elif calib == ZEROQ:
        said = (_MADE,)
    elif calib is None or (isinstance(calib, Given) and not calib.again):
        said = (_GONE,)
    else:
        specs = specs_of(load_model(fp32), describe(fp32))
        try:
            dataset = open_calibration(calib, specs, settings.preprocess, samples=settings.samples, seed=settings.seed)
        except DataError as error:
            if not result.cut:
                raise
            # What the part behind the cut alone reads, calibration needs not have had.
            said = (
                f"layers and answers were not measured on the calibration data, they are where --data gives all: {error}",
            )
        else:
            measured = measure(fp32, file, dataset, names=_names(fp32), threads=settings.threads)
    made = quantization_page(
        result,
        fp32,
        measured,
        names=_names(fp32),
        layers=_layers(file),
        validation=validation,
        said=said,
        command=command,
    )
    write_page(made, page)


def _validated(
    fp32: Model,
    file: Model,
    data: Data,
    labels: Labels | None,
    preprocess: tuple[Preprocess | None, Preprocess | None],
    limit: int | None = None,
    metric: AnyMetric = None,
) -> tuple[ValidationResult, Measured]:
    """Both files on all of ``data``, and on some of it what else a page shows.

    ``preprocess`` is what somebody says, and what is known where nobody does.
    """
    source, (said, known) = given(data), preprocess
    if isinstance(source, Given) and not source.again:  # what goes by once is read twice here
        specs = specs_of(load_model(fp32), describe(fp32))
        kept = open_validation(
            source, specs, said or known or Preprocess(), labels, limit, keep=True, classes=metric is None
        )
        found = validate(fp32, file, kept, metric=metric)
        return found, measure(fp32, file, kept, names=_names(fp32), compared=_compared(found, same_data=True))
    found = validate(fp32, file, source, labels=labels, preprocess=said, limit=limit, metric=metric)
    return found, _measured(fp32, file, source, labels, found, limit)


def _compared(found: ValidationResult, *, same_data: bool) -> Compared:
    return Compared(found.images, found.differing, found.scores, same_data, found.layers)


def _measured(
    fp32: Model, file: Model, data: Source, labels: Labels | None, found: ValidationResult, limit: int | None = None
) -> Measured:
    """What a page shows beside what ``found`` says, on the same data."""
    opened = _opened(fp32, data, labels, found, limit)
    # Of what was handed over only some samples are opened again.
    same = not isinstance(data, Given) or len(opened) >= found.images + len(found.skipped)
    return measure(fp32, file, opened, names=_names(fp32), compared=_compared(found, same_data=same))


def _opened(
    fp32: Model, data: Source, labels: Labels | None, found: ValidationResult, limit: int | None = None
) -> Dataset:
    """The data that ``found`` was made on, open again; of what was handed over so many samples as a page looks at."""
    handed = isinstance(data, Given)
    if handed:
        limit = ANSWER_IMAGES if limit is None else min(limit, ANSWER_IMAGES)
    specs, preprocess = specs_of(load_model(fp32), describe(fp32)), found.preprocess or Preprocess()
    return open_validation(data, specs, preprocess, labels, limit, keep=handed, classes=False)


def report_validation(
    result: ValidationResult, page: str | Path, *, data: Data | None = None, command: str = ""
) -> None:
    """Write the page of what :func:`mrecg_onnx.validate` found; what it shows beside is measured on the same data.

    Args:
        result: what it returned.
        page: the HTML file.
        data: the data again, where they can be read once only.
        command: what makes the same again, shown as it is.

    Raises:
        MrecgError: as :func:`report_quantization`.
    """
    require_page(page)
    if result.asked is None:
        raise SettingsError("this result does not know its models: validate makes those that do")
    fp32, quantized, before, labels, limit = result.asked
    source = given(before if data is None else data)
    if isinstance(source, Given) and not source.again and data is None:
        raise DataError(f"{source} went by once: give the data again, report(path, data=...)")
    measured = _measured(fp32, quantized, source, labels, result, limit)
    write_page(validation_page(result, measured, _layers(quantized), names=_names(fp32), command=command), page)


def report_comparison(result: Comparison, page: str | Path, *, command: str = "") -> None:
    """Write the page of what :func:`mrecg_onnx.compare` found.

    Raises:
        SettingsError: jinja2 or matplotlib is missing.
        ExportError: the page cannot be written.
    """
    require_packages()
    write_page(comparison_page(result, command=command), page)


def report_ranking(found: Ranking, page: str | Path, *, command: str = "", following: str = "") -> None:
    """Write the page of what :func:`mrecg_onnx.sensitivity` found; ``following`` is the command with all that help.

    Raises:
        SettingsError: jinja2 or matplotlib is missing.
        ExportError: the page cannot be written.
    """
    require_packages()
    if found.source is None:
        raise SettingsError("this result does not know its model: sensitivity makes those that do")
    made = ranking_page(found, found.source, names=_names(found.source), command=command, following=following)
    write_page(made, page)


@takes(preprocess=Preprocess, metric=Metric)
def report(
    result: str | Path | onnx.ModelProto | Made | ValidationResult | Comparison | Ranking,
    output: str | Path,
    *,
    against: Model | Made | None = None,
    data: Data | None = None,
    labels: Labels | None = None,
    preprocess: Preprocess | str | Path | None = None,
    limit: int | None = None,
    metric: AnyMetric = None,
    command: str = "",
) -> None:
    """Write a page to look at: of what a call returned, or of a file that :func:`mrecg_onnx.quantize` made.

    Args:
        result: what quantize, validate, compare or sensitivity returned; or a quantized model (the path of a file, one in memory,
            what convert returned), of which the page shows what its metadata say and what is measured.
        output: the page, an HTML file.
        against: the float model a file was made from; with ``data`` both are run.
        data: images, as for :func:`mrecg_onnx.validate`; what quantize returned is measured on its calibration data without.
        labels: labels for them.
        preprocess: how images become inputs, also by name or from a file; what the file says by default.
        limit: images used at most.
        metric: what outputs are worth, as for :func:`mrecg_onnx.validate`; needs ``data``.
        command: what makes the same again, shown as it is.

    Raises:
        SettingsError: jinja2 or matplotlib is missing, one of ``against`` and ``data`` is given alone, or an argument says
            nothing of such a result.
        ModelError: the file cannot be read, or another tool made it.
        ExportError: the page cannot be written.
        MrecgError: the float model or the data cannot be read, or do not belong to the file.
    """
    require_page(output)
    more = {
        "against": against,
        "data": data,
        "labels": labels,
        "preprocess": preprocess,
        "limit": limit,
        "metric": metric,
    }
    if isinstance(result, QuantizationResult):
        _only(more, "quantize", "data", "labels", "limit", "metric")
        report_quantization(result, output, data=data, labels=labels, limit=limit, metric=metric, command=command)
        return
    if isinstance(result, ValidationResult):
        _only(more, "validate", "data")
        report_validation(result, output, data=data, command=command)
        return
    if isinstance(result, Comparison | Ranking):
        _only(more, "compare" if isinstance(result, Comparison) else "sensitivity")
        if isinstance(result, Comparison):
            report_comparison(result, output, command=command)
        else:
            report_ranking(result, output, command=command)
        return
    if (against is None) != (data is None):
        raise SettingsError("a file is measured against its float model on images: give --against and --data together")
    if metric is not None and data is None:
        raise SettingsError("a metric is measured on images: give --against and --data, too")
    made, against = model_of(result), model_of(against)
    found = inspect_result(made)
    validation: ValidationResult | None = None
    measured: Measured | None = None
    said: tuple[str, ...] = ()
    if against is not None and data is not None:
        said_of = profile(preprocess) if isinstance(preprocess, str | Path) else preprocess
        known = said_of, found.preprocess
        validation, measured = _validated(against, made, data, labels, known, limit, metric)
    else:
        said = ("nothing was measured: --against and --data with the float model and images show errors and answers",)
    # A node that was made anew has lost what torch wrote: the float model has it.
    names = NodeNames({**found.modules, **(_names(against).modules if against is not None else {})})
    write_page(finished_page(found, measured, validation, names=names, said=said, command=command), output)


def _only(given: dict[str, Any], call: str, *taken: str) -> None:
    """Refuse arguments that say nothing of what ``call`` returned.

    Raises:
        SettingsError: there is one.
    """
    for name, value in given.items():
        if value is not None and name not in taken:
            raise SettingsError(f"{name} says nothing of what {call} returned: leave it out")
