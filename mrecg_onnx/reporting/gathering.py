"""Pages written: what a command found and what is measured for the page, put together and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters import check_writable, load_model
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import ZEROQ, Dataset, Preprocess, open_calibration, open_validation
from mrecg_onnx.inspecting import inspect_result
from mrecg_onnx.reporting.comparisons import comparison_page, ranking_page
from mrecg_onnx.reporting.measuring import Measured, measure
from mrecg_onnx.reporting.pages import finished_page, quantization_page, validation_page
from mrecg_onnx.reporting.writing import require_packages, write_page
from mrecg_onnx.runtimes import describe, specs_of
from mrecg_onnx.validating import int8_form, layers_of, validate

if TYPE_CHECKING:
    from mrecg_onnx.comparing import Comparison
    from mrecg_onnx.inspecting import Ranking
    from mrecg_onnx.measures import AnyMetric
    from mrecg_onnx.results import QuantizationResult
    from mrecg_onnx.validating import ValidationResult, WrittenLayer

__all__ = ["report", "report_comparison", "report_quantization", "report_ranking", "report_validation"]

_MADE = "the calibration images were made and are not kept: layers and answers are measured where --data gives others"


def _layers(file: Path) -> list[WrittenLayer]:
    return layers_of(int8_form(load_model(file), describe(file)))


def report_quantization(
    result: QuantizationResult,
    fp32: str | Path,
    calib: str | Path,
    page: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    metric: AnyMetric = None,
    command: str = "",
) -> None:
    """Write the page of what :func:`mrecg_onnx.quantize` made.

    Args:
        result: what it returned, written to a file.
        fp32: the float model's file.
        calib: the calibration data, on some of which is measured what the run did not know.
        page: the HTML file.
        data: images to measure on instead, as for :func:`mrecg_onnx.validate`; labelled ones give accuracies.
        labels: labels for them.
        metric: what outputs are worth, as for :func:`mrecg_onnx.validate`.
        command: what makes the same again, shown as it is.

    Raises:
        SettingsError: jinja2 or matplotlib is missing, or the result is in no file.
        ExportError: the page cannot be written.
        MrecgError: a file or the data cannot be read.
    """
    require_packages()
    check_writable(page)
    if result.output is None:
        raise SettingsError("a page is made of files: give quantize an output")
    fp32, file, settings = Path(fp32), result.output, result.settings
    validation: ValidationResult | None = None
    measured: Measured | None = None
    said: tuple[str, ...] = ()
    if data is not None:
        validation, measured = _validated(fp32, file, data, labels, metric=metric)
    elif calib != ZEROQ:
        specs = specs_of(load_model(fp32), str(fp32))
        dataset = open_calibration(calib, specs, settings.preprocess, samples=settings.samples, seed=settings.seed)
        measured = measure(fp32, file, dataset, threads=settings.threads)
    else:
        said = (_MADE,)
    made = quantization_page(
        result, fp32, measured, layers=_layers(file), validation=validation, said=said, command=command
    )
    write_page(made, page)


def _validated(
    fp32: Path,
    file: Path,
    data: str | Path,
    labels: str | Path | None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    metric: AnyMetric = None,
) -> tuple[ValidationResult, Measured]:
    """Both files on all of ``data``, and on some of it what else a page shows."""
    found = validate(fp32, file, data, labels=labels, preprocess=preprocess, limit=limit, metric=metric)
    return found, measure(fp32, file, _opened(fp32, data, labels, found, limit))


def _opened(
    fp32: Path, data: str | Path, labels: str | Path | None, found: ValidationResult, limit: int | None = None
) -> Dataset:
    """The data that ``found`` was made on, open again."""
    return open_validation(data, specs_of(load_model(fp32), str(fp32)), found.preprocess or Preprocess(), labels, limit)


def report_validation(
    result: ValidationResult,
    fp32: str | Path,
    quantized: str | Path,
    data: str | Path,
    page: str | Path,
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    command: str = "",
) -> None:
    """Write the page of what :func:`mrecg_onnx.validate` found, called with the same arguments.

    Raises:
        MrecgError: as :func:`report_quantization`.
    """
    require_packages()
    check_writable(page)
    fp32, quantized = Path(fp32), Path(quantized)
    measured = measure(fp32, quantized, _opened(fp32, data, labels, result, limit))
    write_page(validation_page(result, measured, _layers(quantized), command=command), page)


def report_comparison(result: Comparison, page: str | Path, *, command: str = "") -> None:
    """Write the page of what :func:`mrecg_onnx.compare` found.

    Raises:
        SettingsError: jinja2 or matplotlib is missing.
        ExportError: the page cannot be written.
    """
    require_packages()
    write_page(comparison_page(result, command=command), page)


def report_ranking(found: Ranking, model: str | Path, page: str | Path, *, command: str = "") -> None:
    """Write the page of what :func:`mrecg_onnx.sensitivity` found of ``model``.

    Raises:
        SettingsError: jinja2 or matplotlib is missing.
        ExportError: the page cannot be written.
    """
    require_packages()
    write_page(ranking_page(found, model, command=command), page)


def report(
    file: str | Path,
    output: str | Path,
    *,
    against: str | Path | None = None,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    metric: AnyMetric = None,
    command: str = "",
) -> None:
    """Write a page on a file that :func:`mrecg_onnx.quantize` made, from its metadata and what is measured.

    Args:
        file: the quantized file.
        output: the page, an HTML file.
        against: the float model it was made from; with ``data`` both are run.
        data: images, as for :func:`mrecg_onnx.validate`.
        labels: labels for them.
        preprocess: how images become inputs; what the file says by default.
        limit: images used at most.
        metric: what outputs are worth, as for :func:`mrecg_onnx.validate`; needs ``against`` and ``data``.
        command: what makes the file again, shown as it is.

    Raises:
        SettingsError: jinja2 or matplotlib is missing, or one of ``against`` and ``data`` is given alone.
        ModelError: the file cannot be read, or another tool made it.
        ExportError: the page cannot be written.
        MrecgError: the float model or the data cannot be read, or do not belong to the file.
    """
    require_packages()
    check_writable(output)
    if (against is None) != (data is None):
        raise SettingsError("a file is measured against its float model on images: give --against and --data together")
    if metric is not None and data is None:
        raise SettingsError("a metric is measured on images: give --against and --data, too")
    found = inspect_result(file)
    validation: ValidationResult | None = None
    measured: Measured | None = None
    said: tuple[str, ...] = ()
    if against is not None and data is not None:
        validation, measured = _validated(Path(against), Path(file), data, labels, preprocess, limit, metric)
    else:
        said = ("nothing was measured: --against and --data with the float model and images show errors and answers",)
    write_page(finished_page(found, measured, validation, said=said, command=command), output)
