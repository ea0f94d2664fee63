"""What all cells of a comparison are made from, and the folder that is theirs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx import __version__
from mrecg_onnx.comparing.cells import Job
from mrecg_onnx.comparing.handed import CALIBRATION, MODEL, MODEL_FILE, VALIDATION, Files, Handed
from mrecg_onnx.comparing.result import OWN, Widths
from mrecg_onnx.converters.errors import DataError, ExportError, SettingsError
from mrecg_onnx.converters.files import require_regular, write_whole
from mrecg_onnx.data import ZEROQ, for_images, given, holds_images, open_calibration, open_validation, require_numbers
from mrecg_onnx.measures import Metric, metric_key
from mrecg_onnx.running import input_specs, open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import chosen_outputs, require_metric, source_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from mrecg_onnx.data import Data, InputSpec, Labels

__all__ = ["Inputs"]

#: Settings that change how a cell is computed but not what of it is compared: they may differ from call to call.
_FREE = frozenset({"memory", "compile"})
#: How outputs are compared: cells validated by another measure are validated again.
MEASURE = "variance"


@dataclass
class Inputs:
    """The inputs of all cells, and what tells them from those of another comparison."""

    model: Path
    calib: Files
    data: Files
    folder: Path
    settings: Settings
    labels: Labels | None
    limit: int | None
    outputs: tuple[str, ...]
    quantized_by: dict[str, Any]
    validated_by: dict[str, Any]
    metric: Metric | None = None
    handed: Handed = field(default_factory=Handed)
    latency: dict[str, Any] = field(default_factory=dict)
    fp32: dict[str, Any] | None = None
    """What a cell's validation found about the float model, the same in all of them."""

    @classmethod
    def make(
        cls,
        model: onnx.ModelProto | str | Path,
        calib: Data,
        data: Data,
        folder: Path,
        settings: Settings,
        *,
        labels: Labels | None,
        limit: int | None,
        outputs: Sequence[str] | None,
        metric: Metric | None,
    ) -> Inputs:
        """Open model and data once, before any work."""
        handed = Handed()
        model = handed.model(model)
        session = open_session(model)
        specs = input_specs(session)
        chosen = chosen_outputs(session, outputs, str(model))
        require_metric(model, metric, str(model))
        calib, data = given(calib), given(data)
        settings = dataclasses.replace(settings, preprocess=for_images(settings.preprocess, model, calib, data))
        if holds_images(data) and not holds_images(calib):
            require_numbers(settings.preprocess, specs, f"{data} holds images, and {calib} arrays")
        calib = handed.calibration(calib, specs, settings)
        data, labels = handed.validation(data, specs, settings, labels, limit)
        checked = open_validation(data, specs, settings.preprocess, labels, limit, classes=metric is None)
        checked.require_values()
        checked.require_taken(partial(run_padded, session), str(model))
        content = {name: value for name, value in settings.to_json().items() if name not in _FREE}
        quantized_by = {
            "version": __version__,
            "model": handed.digests.get(MODEL) or source_sha256(model),
            "calib": handed.digests.get(CALIBRATION) or _calibration_key(calib, specs, settings),
            **{name: value for name, value in content.items() if name not in OWN},
        }
        validated_by: dict[str, Any] = {
            "data": handed.digests.get(VALIDATION) or checked.fingerprint(),
            "labels": hashlib.sha256(checked.labels_key()).hexdigest(),
            "outputs": list(chosen),
            "measure": MEASURE,
        }
        if metric is not None:
            if metric.needs_targets and checked.labels is None and checked.targets is None:
                raise DataError(
                    f"metric {metric.name} holds outputs against targets, and {data} has none: give --labels"
                )
            validated_by["metric"] = metric_key(metric)
        plain = json.loads(json.dumps([quantized_by, validated_by]))
        by: dict[str, Any] = dict(zip(("quantized_by", "validated_by"), plain, strict=True))
        return cls(model, calib, data, folder, settings, labels, limit, chosen, **by, metric=metric, handed=handed)

    def settle(self) -> None:
        """Bring what was handed over into the folder, which is ours by now.

        Raises:
            ExportError: it cannot be written.
        """
        place = self.cells / "data"
        made = self.handed.move(MODEL, place)
        if made is not None:
            self.model = Path(str(made[0])) / MODEL_FILE
        self.calib, _ = self.handed.move(CALIBRATION, place) or (self.calib, None)
        self.data, self.labels = self.handed.move(VALIDATION, place) or (self.data, self.labels)

    @property
    def cells(self) -> Path:
        """Where the cells' own files lie."""
        return self.folder / "cells"

    @property
    def _description(self) -> Path:
        """What tells a folder of a comparison from another one."""
        return self.cells / "comparison.json"

    def output(self, method: str, widths: Widths) -> Path:
        """A cell's quantized file."""
        return self.folder / f"{self.stem(method, widths)}.onnx"

    def record(self, method: str, widths: Widths) -> Path:
        """What is kept of a cell."""
        return self.cells / f"{self.stem(method, widths)}.json"

    def require_own(self, writes: Sequence[Path]) -> None:
        """Refuse a folder that no comparison has made and that holds one of ``writes``: the files of somebody else.

        Raises:
            SettingsError: one of them is there.
        """
        if os.path.lexists(self._description):
            return
        # A folder is not lost: nothing is put in its place.
        foreign = next((path for path in writes if os.path.lexists(path) and not path.is_dir()), None)
        if foreign is not None:
            raise SettingsError(
                f"{foreign} is there already, and is not of an earlier comparison: --force writes over it, --output names "
                "another folder"
            )

    def claim_folder(self) -> None:
        """Make the folder, or check that what is in it belongs to this comparison.

        Raises:
            SettingsError: it holds another comparison, or is no folder.
            ExportError: it cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise SettingsError(f"{self.folder} is a file: give a folder to write into")
        description = self._description
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            if not description.exists():
                write_whole(description, json.dumps(self.quantized_by, indent=1) + "\n")
            require_regular(description)
            found = dict(json.loads(description.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{description} is no description of a comparison ({error}): remove it") from error
        except OSError as error:
            raise ExportError(f"{self.folder}: cannot be used: {error.strerror or error}") from error
        differ = sorted(k for k in {*found, *self.quantized_by} if found.get(k) != self.quantized_by.get(k))
        if differ:
            raise SettingsError(
                f"{self.folder}: the cells in it belong to another comparison (different: {', '.join(differ)}); "
                "name another folder or remove this one"
            )

    def stem(self, method: str, widths: Widths) -> str:
        """Name of a cell's files."""
        return f"{self.model.stem}_{method}_{str(widths).lower()}"

    def job(self, method: str, widths: Widths) -> Job:
        """What the cell's process has to do.

        Raises:
            SettingsError: the method cannot do these widths.
        """
        settings = dataclasses.replace(self.settings, method=method, wbits=widths.wbits, abits=widths.abits)
        stem = self.stem(method, widths)
        return Job(
            model=str(self.model),
            calib=self.calib,
            data=self.data,
            output=str(self.output(method, widths)),
            checkpoint=str(self.cells / f"{stem}.units"),
            settings=settings,
            labels=self.labels,
            limit=self.limit,
            outputs=self.outputs,
            threads=self.settings.threads,
            metric=self.metric.spec if self.metric is not None else None,
            lower_is_better=self.metric.lower_is_better if self.metric is not None else None,
        )


def _calibration_key(calib: Files, specs: Sequence[InputSpec], settings: Settings) -> str:
    """Changes with the calibration data."""
    if calib == ZEROQ:  # made by every cell from the model, with the same seed
        return ZEROQ
    data = open_calibration(calib, specs, settings.preprocess, samples=settings.samples, seed=settings.seed)
    data.require_values()
    return data.fingerprint()
