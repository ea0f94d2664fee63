"""All choices of a run in one frozen dataclass, made once at the door and never changed: the groups of all rooms together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, TypeVar

from mrecg_onnx.calibrating import IMAGES, ZeroqSettings
from mrecg_onnx.converters.choices import OneOf
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import did_you_mean
from mrecg_onnx.data import IMAGENET_MEAN, IMAGENET_STD, RANGE_IMAGES, SAMPLES, UNIT_SCALE, Preprocess, PreprocessField
from mrecg_onnx.finishing import FinishSettings
from mrecg_onnx.machine import parse_byte_size
from mrecg_onnx.methods import METHODS
from mrecg_onnx.planning import BudgetSettings, PlanSettings
from mrecg_onnx.quantizers import RangeSettings
from mrecg_onnx.rewriting import RewritingSettings
from mrecg_onnx.targets import load_target

__all__ = ["PRESETS", "WITHOUT_OPTION", "Settings", "changed"]

#: ``preset``: fields by how much time there is; what they reach and cost is in benchmarks/results/presets.md.
PRESETS: dict[str, Mapping[str, Any]] = {
    "fast": {"method": "brecq", "iters": 100},
    "balanced": {"method": "brecq", "iters": 300, "augment": "flip", "finish": None},
    "best": {"method": "brecq", "iters": 1000, "augment": "flip", "finish": 800},
}

#: Fields in the order of the files' metadata: with it the same run would write other bytes. A new one goes to the end.
STORED_ORDER = (
    "wbits", "abits", "method", "base", "scheme", "equalize", "relu6", "absorb", "residual", "protect", "iters", "batch_size",
    "samples", "augment", "seed", "device", "first_last_bits", "exclude", "bits", "preprocess", "target", "container", "threads",
    "memory", "compile", "drop", "selection", "merges", "joint_iters", "penalty", "alpha", "probe_fraction", "lr_rounding",
    "lr_scale", "rounding", "anneal", "allocate", "size_budget", "avg_wbits", "max_drop", "bias_correction", "loss", "knee",
    "learn_bias", "learn_weight_scales", "rounding_weight", "range", "percentile", "channel_bits", "lapq_evaluations",
    "lapq_images", "range_samples", "held_out", "window", "zeroq_iters", "stop", "finish", "symmetric_weights",
    "timeout",
)  # fmt: skip

#: Fields that no option of the command line writes: parts of the method, and the images for ranges, which follow ``samples``.
WITHOUT_OPTION = frozenset({
    "probe_fraction", "lr_rounding", "lr_scale", "knee", "learn_bias", "learn_weight_scales", "rounding_weight", "range_samples",
    "held_out",
})  # fmt: skip


#: Arguments of the calls, which are no settings: what a run reads and where it writes.
OF_THE_CALL = frozenset({"model", "calib", "output", "checkpoint", "data", "labels", "metric", "progress"})
_PREPROCESS = frozenset(Preprocess().to_json())


def _belongs(name: str, fields: Sequence[str]) -> str:
    """Where something goes that is no field of the settings."""
    if name in _PREPROCESS:
        return f"how images become inputs is preprocess=mrecg_onnx.Preprocess({name}=...)"
    if name in OF_THE_CALL:
        return f"it is an argument of the call, quantize(..., {name}=...)"
    if name == "layer_bits":  # compare's option, whose --bits are widths of the whole
        return "did you mean 'bits'?"
    return did_you_mean(name, fields, "") or "help(mrecg_onnx.Settings) lists its fields"


_Class = TypeVar("_Class", bound=type)


def _taking_presets(settings: _Class) -> _Class:
    """The same class, made with the fields of a preset where ``preset`` names one and they are not given."""
    make = settings.__init__  # type: ignore[misc]

    @functools.wraps(make)
    def init(self: Any, *args: Any, preset: str | None = None, **given: Any) -> None:
        if args:
            raise TypeError("Settings takes its fields by name: Settings(wbits=4, abits=8)")
        if preset is not None:
            OneOf(*PRESETS).check("preset", preset)
            if PRESETS[preset].keys() <= given.keys():  # as dataclasses.replace does it
                raise SettingsError(f"preset '{preset}' changes nothing: all of its fields are given beside it")
            given = {**PRESETS[preset], **given}
        for name in ("memory", "size_budget"):
            if isinstance(given.get(name), str) and given[name] != "auto":  # as the command line has them: 2GB
                given[name] = parse_byte_size(f"--{name.replace('_', '-')}", given[name])
        fields = [field.name for field in dataclasses.fields(settings)]
        for name in given.keys() - set(fields):
            raise TypeError(f"Settings has no '{name}': {_belongs(name, [*fields, 'preset'])}")
        make(self, **given)

    # What help shows first: what a field takes is said below, field by field.
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in inspect.signature(make).parameters.values()]
    init.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    settings.__init__ = init  # type: ignore[misc]
    return settings


@_taking_presets
@dataclass(frozen=True, kw_only=True)
class Settings(ZeroqSettings, RangeSettings, FinishSettings, RewritingSettings, BudgetSettings, PlanSettings):
    """Settings of :func:`mrecg_onnx.quantize`: the fields of all groups, each by its keyword.

    Every room describes its own: :class:`~mrecg_onnx.methods.MethodSettings` (method, base),
    :class:`~mrecg_onnx.targets.TargetSettings` (target, container), :class:`~mrecg_onnx.data.DataSettings` (images),
    :class:`~mrecg_onnx.planning.BitSettings` (widths), :class:`~mrecg_onnx.planning.BudgetSettings` (budgets),
    :class:`~mrecg_onnx.planning.MergeSettings` (merged units), :class:`~mrecg_onnx.quantizers.RangeSettings` (ranges),
    :class:`~mrecg_onnx.machine.MachineSettings` (device, memory), :class:`~mrecg_onnx.calibrating.ZeroqSettings` (made images),
    :class:`~mrecg_onnx.rewriting.RewritingSettings` (equalization), :class:`~mrecg_onnx.learning.LearningSettings`
    (reconstruction) and :class:`~mrecg_onnx.finishing.FinishSettings` (the network together).

    ``preset="fast"``, ``"balanced"`` or ``"best"`` is no field: it stands for several (``mrecg_onnx.settings.PRESETS``), and
    those that are given beside it go before.

    Raises:
        SettingsError: a value is out of its range, or contradicts another.
        TypeError: there is no such field.
    """

    # Once more: mypy takes the type that an inherited descriptor is set to for the one that it gives.
    preprocess: PreprocessField = PreprocessField()  # noqa: RUF009 - a descriptor, which holds nothing itself

    preset: InitVar[str | None] = None

    def __post_init__(self, preset: str | None) -> None:
        """Check, as every group does; of a preset its fields are left."""
        super().__post_init__()

    def check(self) -> None:
        """What a method can do at these widths and for this target."""
        super().check()
        method = METHODS[self.method]
        widths = {"wbits": self.wbits, "first_last_bits": self.first_last_bits}
        widths |= {f"bits '{rule.pattern}'": rule.wbits for rule in self.bits if rule.wbits is not None}
        for name, width in widths.items():
            if width < method.least_wbits:
                raise SettingsError(
                    f"method {self.method} needs weights of {method.least_wbits} bits or more, {name} says {width}"
                )
        rules = load_target(self.target)
        if rules.bounds not in {"codes", "either"} and method.allocate and self.channel_bits == "auto":
            raise SettingsError(
                f"target {rules.name} cannot hold widths a channel of activations: add --channel-bits weights to "
                f"--method {self.method}"
            )
        if rules.symmetric and method.joint_steps:
            raise SettingsError(
                f"method {self.method} does not keep activations symmetric as target {rules.name} needs them"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of all settings, as stored in the output file's metadata."""
        plain = dataclasses.asdict(self) | {"preprocess": self.preprocess.to_json()}
        return {name: plain[name] for name in STORED_ORDER}


def _attributes() -> str:
    """What the groups say of their fields, one below the other: ``help(mrecg_onnx.Settings)`` is where a user looks."""
    said = (inspect.cleandoc(group.__dict__.get("__doc__") or "") for group in reversed(Settings.__mro__[1:]))
    return "\n".join(
        text.partition("\nAttributes:\n")[2].partition("\n\n")[0] for text in said if "\nAttributes:\n" in text
    )


Settings.__doc__ = f"{inspect.cleandoc(Settings.__doc__ or '')}\n\nAttributes:\n{_attributes()}"


def changed(settings: Mapping[str, Any], *, made: bool = False) -> dict[str, Any]:
    """Those of ``settings`` that are not what their defaults come to, by field, as JSON gives them back.

    A run fills in what was left to it, and a file holds what was used: the number of images, device, threads, kernels, and how
    images became inputs. What may be the machine's or the model's own word is nobody's choice.

    Args:
        settings: as :meth:`Settings.to_json` or a file's metadata have them.
        made: calibration images were made, of which there are fewer by default.
    """
    default: dict[str, Any] = json.loads(json.dumps(Settings().to_json()))
    plain: dict[str, Any] = json.loads(json.dumps({name: settings[name] for name in settings if name in default}))
    left = {name for name, value in plain.items() if value == default[name]} | _filled(plain, made=made)
    return {name: value for name, value in plain.items() if name not in left}


def _filled(plain: Mapping[str, Any], *, made: bool) -> set[str]:
    """Fields that have what a run fills in."""
    samples, ranges, usual = plain.get("samples"), plain.get("range_samples"), IMAGES if made else SAMPLES
    found = {"device"}
    if samples == usual and ranges != samples:  # who says how many says it for ranges, too
        found.add("samples")
    if ranges == (RANGE_IMAGES if "samples" in found else samples):
        found.add("range_samples")
    if plain.get("compile") != "auto":  # as it was used, and so are the threads
        found.add("threads")
    if plain.get("compile") == "off" or plain.get("device") == "cuda":
        found.add("compile")
    if _is_usual(plain.get("preprocess")):
        found.add("preprocess")
    return found


def _is_usual(preprocess: Any) -> bool:
    """Whether a model of three channels and its images come to this without a word."""
    if not isinstance(preprocess, dict):
        return False
    usual = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "scale": UNIT_SCALE, "color": "rgb"}
    usual |= {"resize": None, "interpolation": "bilinear"}
    return all(preprocess.get(name, "") == value for name, value in usual.items())
