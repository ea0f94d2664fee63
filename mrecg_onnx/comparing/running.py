"""Run what is missing of a cell in processes of its own, and keep what each stage found in the cell's file."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx.comparing.cells import GRACE_S, CellProcess, unpack, validated
from mrecg_onnx.comparing.progress import Tell
from mrecg_onnx.comparing.result import Cell
from mrecg_onnx.converters.errors import ExportError, MrecgError
from mrecg_onnx.converters.files import require_regular, write_whole
from mrecg_onnx.converters.text import with_arguments
from mrecg_onnx.machine import locked
from mrecg_onnx.validating import Accuracy, source_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.comparing.cells import Job
    from mrecg_onnx.comparing.inputs import Inputs
    from mrecg_onnx.comparing.progress import ComparisonProgress
    from mrecg_onnx.comparing.result import Widths

__all__ = ["measure_latency", "run_cell"]

logger = logging.getLogger(__name__)


class Record:
    """A cell's file: what each of its stages found, and for which inputs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        try:
            require_regular(path)
            self.content = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s): the cell is run again", path, error)

    def get(self, stage: str, by: dict[str, Any]) -> dict[str, Any] | None:
        """What ``stage`` found for the inputs ``by``; None if it was not run on them."""
        entry = self.content.get(stage)
        return entry["found"] if isinstance(entry, dict) and entry.get("by") == by else None

    def put(self, stage: str, by: dict[str, Any], found: dict[str, Any]) -> None:
        """Keep what a stage found; the file is there whole or as it was.

        Raises:
            ExportError: it cannot be written.
        """
        self.content[stage] = {"by": by, "found": found}
        try:
            write_whole(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def run_cell(inputs: Inputs, method: str, widths: Widths, tell: Tell) -> Cell:
    """One cell from what is there or by its own process; whatever goes wrong in it stays in it."""
    cell = Cell(method, widths)
    tell()
    try:
        job = inputs.job(method, widths)
        record = Record(inputs.record(method, widths))
        made = record.get("quantize", inputs.quantized_by)
        checked = record.get("validate", inputs.validated_by)
        if made is not None and _sha256(job.output) != made["sha256"]:
            made = None  # the file is gone or another one
        kept = made is not None and checked is not None
        if made is None:
            _wait_for_last(Path(job.checkpoint))
            with CellProcess("quantize", job) as process:
                made = process.result(lambda inner: tell(inner=inner))
            record.put("quantize", inputs.quantized_by, made)
            shutil.rmtree(job.checkpoint, ignore_errors=True)
            checked = None
        if checked is None:
            tell(stage="validate")
            checked = _validated(inputs, job)
            record.put("validate", inputs.validated_by, checked)
    except (MrecgError, OSError) as error:
        logger.info("cell %s failed: %s", cell.name, error)
        return dataclasses.replace(cell, error=" ".join(str(error).split()))
    inputs.fp32 = checked["fp32"]
    return _cell(cell, Path(job.output), made, checked, kept=kept)


def _validated(inputs: Inputs, job: Job) -> dict[str, Any]:
    """What the cell's file is worth; a metric that has no name is known in this process alone."""
    if inputs.metric is not None and inputs.metric.spec is None:
        return dict(json.loads(json.dumps(validated(job, inputs.metric))))
    with CellProcess("validate", job) as process:
        return process.result()


def _wait_for_last(checkpoint: Path) -> None:
    """Where the last call was killed, its cell's process may still be at its end."""
    if checkpoint.is_dir():
        with locked(checkpoint, str(checkpoint), wait_s=GRACE_S + 2):
            pass


def _cell(cell: Cell, file: Path, made: dict[str, Any], checked: dict[str, Any], *, kept: bool) -> Cell:
    right = checked.get("right")
    return dataclasses.replace(
        cell,
        file=file,
        images=made["images"],
        kept=kept,
        seconds=made["seconds"],
        peak_bytes=made["peak_bytes"],
        device_peak_bytes=made["device_peak_bytes"],
        size_bytes=made["size_bytes"],
        top1=Accuracy(**checked["top1"]) if checked["top1"] else None,
        drop=checked["drop"],
        score=checked.get("score"),
        score_drop=checked.get("score_drop"),
        fp32_p=checked["fp32_p"],
        agreement=checked["agreement"],
        sqnr_db=checked["sqnr_db"],
        sqnr_by_output=checked.get("sqnr_by_output", {}),
        equal_by_output=checked.get("equal_by_output", {}),
        warnings=tuple(map(with_arguments, (*made["warnings"], *checked.get("warnings", ())))),
        right=unpack(right, checked["labelled"]) if right is not None else None,
    )


def measure_latency(
    inputs: Inputs, cells: list[Cell], report: Callable[[ComparisonProgress], None] | None
) -> list[Cell]:
    """Latency of every finished cell, in turn with the float model, where it is not known for these files."""
    timed = []
    total = sum(cell.error is None for cell in cells)
    for cell in cells:
        if cell.file is None:
            timed.append(cell)
            continue
        tell = Tell(report, cell.name, 1 + sum(c.file is not None for c in timed), total)
        tell(stage="latency")
        try:
            record = Record(inputs.record(cell.method, cell.widths))
            by = inputs.latency | {"sha256": _sha256(cell.file), "data": inputs.validated_by["data"]}
            found = record.get("latency", by)
            if found is None:
                job = dataclasses.replace(inputs.job(cell.method, cell.widths), latency=inputs.latency)
                with CellProcess("latency", job) as process:
                    found = process.result()
                record.put("latency", by, found)
        except (MrecgError, OSError) as error:
            logger.warning("the latency of %s could not be measured: %s", cell.name, error)
            timed.append(cell)
            continue
        seconds, fp32 = found["latency_s"], found["fp32_latency_s"]
        low, high = found["speedup_interval"]
        timed.append(dataclasses.replace(cell, latency_s=seconds, speedup=fp32 / seconds, speedup_interval=(low, high)))
    return timed


def _sha256(path: str | Path) -> str | None:
    return source_sha256(path) if Path(path).is_file() else None
