"""What a quantization made and measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from mrecg_onnx.calibrating import Sensitivity
from mrecg_onnx.checking import Verification
from mrecg_onnx.converters import save_model
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.results import Pictured
from mrecg_onnx.converters.text import counted, with_arguments
from mrecg_onnx.data import Data
from mrecg_onnx.finishing import FinishResult
from mrecg_onnx.learning import Lapq
from mrecg_onnx.machine import byte_size, duration
from mrecg_onnx.planning import Plan, told_cut
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.rewriting import Absorbed, Equalized
from mrecg_onnx.running import size_bytes
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import ValidationResult, validate
from mrecg_onnx.widths import Allocation, Trial

#: What rounding to nearest is nearly the best for.
EIGHT_BITS = 8

__all__ = ["QuantizationResult"]


@dataclass(frozen=True, repr=False)
class QuantizationResult(Pictured):
    """What :func:`mrecg_onnx.quantize` made and measured.

    Attributes:
        model: the quantized model.
        output: where it was written, None if it was not.
        settings: the run's settings, with everything automatic resolved.
        plan: the plan that was carried out.
        units: outcome of every unit, in order; of the phase that learned the rounding where a method has several.
        probe: outcome of the probing run's units, empty without one.
        equalized: decision for every stream.
        absorbed: decision for every tensor whose channels could be shifted, with ``absorb``.
        sensitivities: quantizers by how much each hurts alone; measured only with ``protect``.
        protected: quantizers raised to 8 bits.
        parity: relative error between ONNX Runtime and torch on the float model.
        verification: checks on the result.
        skipped: calibration images that could not be read.
        images: calibration images used, for whatever: those learned from, or all that were given, at most ``samples``.
        seconds: wall time by stage.
        origin: how calibration data were made, None where they were given.
        lapq: what the joint search for steps found, None without one.
        phases: outcome of every unit by phase, in order.
        corrections: with ``bias_correction``, the largest shift of each layer's bias; empty where it brought nothing.
        finished: outcome of the finishing stage, None without one.
        allocation: widths chosen by integer programming, None where they were given.
        trials: files made on the search for ``max_drop``, in order.
        source: the float model, as it was given.
        calib: the calibration data, as they were given.
        doubts: what makes calibration data such as nothing is learned from.
    """

    model: onnx.ModelProto
    output: Path | None
    settings: Settings
    plan: Plan
    units: tuple[UnitResult, ...]
    probe: tuple[UnitResult, ...]
    equalized: tuple[Equalized, ...]
    sensitivities: tuple[Sensitivity, ...]
    protected: tuple[str, ...]
    parity: float
    verification: Verification
    skipped: tuple[str, ...]
    images: int
    seconds: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] | None = None
    lapq: Lapq | None = None
    phases: dict[str, tuple[UnitResult, ...]] = field(default_factory=dict)
    corrections: dict[str, float] = field(default_factory=dict)
    finished: FinishResult | None = None
    absorbed: tuple[Absorbed, ...] = ()
    allocation: Allocation | None = None
    trials: tuple[Trial, ...] = ()
    source: onnx.ModelProto | str | Path | None = field(default=None, repr=False, compare=False)
    calib: Data | None = field(default=None, repr=False, compare=False)
    doubts: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What did not hold, a line each: the checks' own, and how many units learning did not help."""
        warnings = (*self.doubts, *self._wide(), *self.verification.warnings)
        # At 8 bits there is nothing to learn, and nothing to warn of.
        narrow = {layer.name for layer in self.plan.quantized_layers if layer.wbits < EIGHT_BITS}
        nearest = sum(unit.kept == "nearest" and not narrow.isdisjoint(unit.layers) for unit in self.units)
        if nearest:
            said = f"{nearest} of {len(self.units)} units keep rounding to nearest: learning did not lower their loss"
            warnings = (*warnings, f"{said}; more iterations (--iters) help")
        return tuple(map(with_arguments, warnings))

    def _wide(self) -> tuple[str, ...]:
        """What is said where fewer bits were asked for than any layer has."""
        widths = [layer.wbits for layer in self.plan.quantized_layers]
        asked, ends = self.settings.wbits, self.settings.first_last_bits
        if not widths or self.settings.mixed or asked >= min(widths) or ends <= asked:
            return ()
        said = f"no layer has weights of {asked} bits: the first and the last one have {ends}, and there is no other"
        return (f"{said} (--first-last-bits {asked} gives them fewer)",)

    @property
    def range_images(self) -> int:
        """How many of the images activation ranges are of; 0 where no activation has one."""
        return min(self.settings.range_images, self.images) if self.plan.activations else 0

    @property
    def calibrated(self) -> str:
        """What how many calibration images were for: "learned from 256 images, ranges of 64 of them"."""
        images, some = counted(self.images, "image"), 0 < self.range_images < self.images
        if any(unit.layers for unit in self.units):
            ranges = f", ranges of {self.range_images} of them" if some else ""
            return f"learned from {images}{ranges}"
        if some:
            return f"ranges of {self.range_images} of {images}"
        return f"{'ranges of' if self.range_images else 'calibrated on'} {images}"

    @property
    def cut(self) -> str:
        """Where the model was cut, and why: what lies behind has no row for each image; "" where it was not."""
        return told_cut({entry.key: entry.value for entry in self.model.metadata_props})

    def __str__(self) -> str:
        """What a user decides by: file, widths, size, expected loss, integer kernels, time, and warnings."""
        settings, plan, found = self.settings, self.plan, self.verification
        size = byte_size(size_bytes(self.output if self.output is not None and self.output.exists() else self.model))
        known = isinstance(self.source, onnx.ModelProto) or (self.source is not None and Path(self.source).exists())
        before = f", FP32 {byte_size(size_bytes(self.source))}" if known and self.source is not None else ""
        counts = f"{counted(len(plan.quantized_layers), 'layer')} and {counted(len(plan.activations), 'activation')} quantized"
        lines = [
            f"{self.output or 'in memory'}: {settings.widths} by {settings.method}, {counts}",
            f"size: {size}{before}",
        ]
        if found.agreement_float is not None:
            lines.append(
                f"agreement: {found.agreement_float:.2%} of {found.images} calibration images get FP32's prediction"
            )
        lines += [f"cut: {self.cut}"] if self.cut else []
        lines.append(f"integer kernels: {found.integer_layers} of {counted(found.layers, 'layer')}")
        lines.append(f"time: {duration(sum(self.seconds.values()))}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def save(self, path: str | Path) -> Path:
        """Write the quantized model; the file appears whole or not at all. What was measured is in :meth:`to_json`.

        Returns:
            The path.

        Raises:
            SettingsError: what the call read is there (the float model, its tensors, images, labels), or what is no model.
            ExportError: it cannot be written.
        """
        self.reads.check(path)
        require_kind(path, "model")
        save_model(self.model, path)
        return Path(path)

    def validate(self, data: Data, **more: Any) -> ValidationResult:
        """Compare the quantized model with the float model it was made from.

        Args:
            data: images or arrays, labelled ones for accuracy, as :func:`mrecg_onnx.validate` takes them.
            more: what else that takes, such as ``labels`` and ``metric``.

        Raises:
            SettingsError: the result was loaded, and does not know its float model.
            MrecgError: as :func:`mrecg_onnx.validate`.
        """
        if self.source is None:
            raise SettingsError(
                "this result does not know its float model: call mrecg_onnx.validate(fp32, quantized, data)"
            )
        return validate(self.source, self.output if self.output is not None else self.model, data, **more)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary without the model itself."""
        return {
            "output": str(self.output) if self.output else None,
            "settings": self.settings.to_json(),
            "warnings": list(self.warnings),
            "plan": self.plan.to_json(),
            "units": [dataclasses.asdict(u) for u in self.units],
            "phases": {stage: [dataclasses.asdict(u) for u in units] for stage, units in self.phases.items()},
            "probe": [dataclasses.asdict(u) for u in self.probe],
            "equalized": [dataclasses.asdict(e) for e in self.equalized],
            "sensitivities": [dataclasses.asdict(s) for s in self.sensitivities],
            "protected": list(self.protected),
            "parity": self.parity,
            "verification": dataclasses.asdict(self.verification),
            "skipped": list(self.skipped),
            "images": self.images,
            "range_images": self.range_images,
            "seconds": self.seconds,
            "origin": self.origin,
            "lapq": dataclasses.asdict(self.lapq) if self.lapq else None,
            "corrections": self.corrections,
            "finished": dataclasses.asdict(self.finished) if self.finished else None,
            "absorbed": [dataclasses.asdict(a) for a in self.absorbed],
            "allocation": self.allocation.to_json() if self.allocation else None,
            "cut": self.cut,
            "trials": [dataclasses.asdict(t) for t in self.trials],
        }
