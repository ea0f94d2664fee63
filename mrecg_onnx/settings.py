"""All choices of a run in one frozen dataclass, made once at the door and never changed."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import PreprocessField
from mrecg_onnx.methods import METHODS, RANGE_NAMES
from mrecg_onnx.planning import FLOAT_BITS, WIDE_BITS
from mrecg_onnx.targets import CONTAINER_NAMES, load_target

__all__ = ["BitRule", "Settings"]

#: Images on which activation ranges are searched where the user does not say.
RANGE_IMAGES = 64
_BITS = re.compile(r"^(?:W(?P<w>\d+))?(?:A(?P<a>\d+))?$", re.IGNORECASE)


@dataclass(frozen=True)
class BitRule:
    """Widths for the layers whose node name matches ``pattern`` (``re.search``); None leaves a width as it is."""

    pattern: str
    wbits: int | None
    abits: int | None

    @classmethod
    def parse(cls, text: str) -> BitRule:
        """Read ``REGEX=W4A8``, ``REGEX=W8`` or ``REGEX=A8``.

        Raises:
            SettingsError: the text has another form, or a width is not in 2..8 (or 16, of activations).
        """
        pattern, _, widths = text.rpartition("=")
        match = _BITS.match(widths)
        if not pattern or match is None or not widths:
            raise SettingsError(f"--bits '{text}': expected REGEX=W4A8, REGEX=W8 or REGEX=A8")
        w, a = (int(g) if g else None for g in (match["w"], match["a"]))
        for width, wide in ((w, None), (a, WIDE_BITS)):
            if width is not None and not 2 <= width <= 8 and width != wide:
                raise SettingsError(f"--bits '{text}': widths go from 2 to 8 (activations have {WIDE_BITS}, too)")
        return cls(pattern, w, a)


def _in(name: str, value: float, low: float, high: float) -> None:
    if high == math.inf and not value >= low:
        raise SettingsError(f"{name} is {value}: it must be {low:g} or more")
    if not low <= value <= high:
        raise SettingsError(f"{name} is {value}: it must lie between {low:g} and {high:g}")


@dataclass(frozen=True)
class Settings:
    """Settings of :func:`mrecg_onnx.quantize`; the first block are the command line's options, the rest are for experts.

    Attributes:
        wbits: weight width, 2..8.
        abits: activation width, 2..8, 16 where the target has it, or 32 to leave activations in float.
        method: a row of :data:`mrecg_onnx.methods.METHODS`.
        base: reconstruction under ``mrecg``: "qdrop" or "brecq".
        scheme: how ``mrecg`` merges units: "loss", "modcap", "none" or the path of a JSON file.
        equalize: "auto" or "off".
        relu6: "auto": equalization may turn a Relu6 into an upper bound for each channel where that lowers the error of the
            output; "off".
        absorb: "auto": what a channel never falls below moves into the biases behind it where that lowers it; "off".
        residual: "wide": tensors that low-bit layers share with additions keep 8 bits, the layers read a copy of their
            own width; "shared": one quantizer of the layers' width for all, as in the papers.
        protect: number of activation tensors raised to 8 bits, the most sensitive first.
        iters: iterations a reconstruction unit.
        batch_size: images an iteration.
        samples: calibration images used at most, None for 1024; with ``zeroq`` the number made, None for 256.
        augment: "flip": units learn from the mirror image of every calibration image, too; "none".
        seed: seed of every random choice.
        device: "auto", "cpu" or "cuda".
        first_last_bits: width of the first and the last weighted layers and of their inputs.
        exclude: regular expressions; matching nodes stay in float.
        bits: widths of single layers.
        preprocess: how an image becomes an input: a Preprocess, the name of a profile ("imagenet", "unit", "raw") or a file with
            one (:mod:`data.profiles`). By default what a file beside the model says, else ImageNet's mean and deviation
            where the input has three channels; others have to be told.
        target: where the file is meant to run: one of :data:`targets.target.TARGET_NAMES`, or the path of a file of rules.
        container: how codes are stored, a row of :data:`mrecg_onnx.writing.containers.CONTAINERS`.
        threads: CPU threads of torch, None for its default.
        memory: bytes that the process should stay within, None for half of what is free; activations that do not fit go
            to temporary files.
        compile: use kernels that torch.compile makes: "on", "off", or "auto", on a GPU in runs long enough to earn their
            making (on the CPU they were measured to bring nothing).
        drop: probability that QDrop keeps an element quantized, None for the method's own (docs/method.md 2).
        selection: "peak" (signed rule), "eq4" (literal top-k objective) or "relative" (the same on relative differences),
            docs/method.md 4.
        merges: number of merges k, None for the rule of :mod:`mrecg_onnx.planning.granularity`.
        joint_iters: iterations of joined units: "sum", those of all members, so that every weight is moved as often as alone;
            "same" as every other unit, as published (in short runs joining then costs more than it brings, docs/method.md 4).
        penalty: lambda of Eq. 4, None for a hard limit at k.
        alpha: stride correction of the module capacity, Eq. 3.
        probe_fraction: iterations of the probing run as a share of ``iters``.
        lr_rounding: Adam's rate for the rounding variables, None for a rate that grows as ``iters`` shrinks.
        lr_scale: Adam's rate for activation scales, relative to the scale, None likewise.
        rounding: how weights are rounded: "adaround", "flexround", "ste", or "auto" for the method's own.
        anneal: schedule of the rounding regularizer: "linear", "cosine", or "auto" for the method's own.
        allocation: "milp": integer programming gives every layer its own widths, ``wbits`` and ``abits`` on average; "none".
        size_budget: bytes of the file with packed codes within which every layer's weights get widths of their own, None without.
        avg_wbits: the same, bits a weight on average, the first and the last layer not counted.
        max_drop: the same, by as few bits as lose at most so many points of top-1 on ONNX Runtime (without labels: percent of
            predictions that change).
        bias_correction: biases are shifted by the mean error of their layers' outputs in the end, where that lowers the error of
            the network's outputs on held-out images.
        loss: "huber" (robust to outliers), "mse" (the papers') or "fisher" (BRECQ's, weighted by the task loss's gradient).
        knee: where the Huber loss turns from squares to magnitudes, in standard deviations of the unit's output.
        learn_bias: biases are learned with the rounding (beyond the paper; they cost nothing, being int32).
        learn_weight_scales: learn the scale of each channel's weights together with the rounding (beyond the paper, too).
        rounding_weight: weight of the rounding regularizer.
        ranges: a row of :data:`quantizers.ranges.RANGES` for activations, "auto" for the method's own. "output": several norms
            propose a range and the network's output chooses; "mse": the papers' p = 2.4 alone; "minmax", for weights, too.
        percentile: share of the values, in percent, that the range "percentile" keeps on either side.
        channel_bits: "auto": ``aciq`` gives channels of weights and activations widths of their own, "weights": of weights only;
            "off": every channel has the tensor's width.
        lapq_evaluations: how often ``lapq`` may run the network to find its steps, None for eight times a step: about one pass.
        lapq_images: calibration images it runs it on.
        range_samples: images for the range search, None for ``samples`` where given, else :data:`RANGE_IMAGES`.
        held_out: share of the calibration images on which a unit is compared with nearest rounding.
        window: largest side, in pixels, of the maps a unit is trained on; 0 for whole maps.
        zeroq_iters: iterations for a batch of images made by ``zeroq``.
    """

    wbits: int = 4
    abits: int = 4
    method: str = "mrecg"
    base: str = "brecq"
    scheme: str = "loss"
    equalize: str = "auto"
    relu6: str = "off"
    absorb: str = "off"
    residual: str = "wide"
    protect: int = 0
    iters: int = 1000
    batch_size: int = 32
    samples: int | None = None
    augment: str = "none"
    seed: int = 0
    device: str = "auto"
    first_last_bits: int = 8
    exclude: tuple[str, ...] = ()
    bits: tuple[BitRule, ...] = ()
    preprocess: PreprocessField = PreprocessField()  # noqa: RUF009 - a descriptor, which holds nothing itself
    target: str = "ort"
    container: str = "int8"

    threads: int | None = None
    memory: int | None = None
    compile: str = "auto"
    drop: float | None = None
    selection: str = "peak"
    merges: int | None = None
    joint_iters: str = "sum"
    penalty: float | None = None
    alpha: float = 1.6
    probe_fraction: float = 0.1
    lr_rounding: float | None = None
    lr_scale: float | None = None
    rounding: str = "auto"
    anneal: str = "auto"
    allocation: str = "none"
    size_budget: int | None = None
    avg_wbits: float | None = None
    max_drop: float | None = None
    bias_correction: bool = False
    loss: str = "huber"
    knee: float = 0.5
    learn_bias: bool = True
    learn_weight_scales: bool = True
    rounding_weight: float = 0.01
    ranges: str = "auto"
    percentile: float = 99.99
    channel_bits: str = "auto"
    lapq_evaluations: int | None = None
    lapq_images: int = 512
    range_samples: int | None = None
    held_out: float = 0.125
    window: int = 28
    zeroq_iters: int = 500

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            SettingsError: a value is out of range.
        """
        _in("wbits", self.wbits, 2, 8)
        if self.abits not in {WIDE_BITS, FLOAT_BITS} and not 2 <= self.abits <= 8:
            raise SettingsError(
                f"abits is {self.abits}: it must lie between 2 and 8, or be {WIDE_BITS}, or {FLOAT_BITS} for float activations"
            )
        _in("first_last_bits", self.first_last_bits, 2, 8)
        choices = {
            "method": tuple(METHODS),
            "base": ("qdrop", "brecq"),
            "equalize": ("auto", "off"),
            "relu6": ("auto", "off"),
            "absorb": ("auto", "off"),
            "residual": ("wide", "shared"),
            "augment": ("none", "flip"),
            "compile": ("auto", "on", "off"),
            "device": ("auto", "cpu", "cuda"),
            "selection": ("peak", "eq4", "relative"),
            "ranges": ("auto", *RANGE_NAMES),
            "channel_bits": ("auto", "weights", "off"),
            "loss": ("huber", "mse", "fisher"),
            "rounding": ("auto", "adaround", "flexround", "ste"),
            "anneal": ("auto", "linear", "cosine"),
            "allocation": ("none", "milp"),
            "joint_iters": ("sum", "same"),
            "container": CONTAINER_NAMES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} is '{getattr(self, name)}': choose one of {', '.join(allowed)}")
        if self.scheme not in {"loss", "modcap", "none"} and not Path(self.scheme).is_file():
            raise SettingsError(f"scheme '{self.scheme}' is neither loss, modcap, none nor an existing JSON file")
        for name, low in {
            "protect": 0,
            "iters": 1,
            "batch_size": 1,
            "lapq_images": 1,
            "window": 0,
            "zeroq_iters": 1,
        }.items():
            _in(name, getattr(self, name), low, math.inf)
        for name, least in {
            "samples": 1.0,
            "range_samples": 1.0,
            "lapq_evaluations": 1.0,
            "threads": 1.0,
            "memory": 1.0,
            "merges": 0.0,
            "penalty": 0.0,
        }.items():
            if getattr(self, name) is not None:
                _in(name, getattr(self, name), least, math.inf)
        if self.drop is not None:
            _in("drop", self.drop, 0.0, 1.0)
        self._check_budgets()
        self._check_method_widths()
        self._check_target()
        _in("percentile", self.percentile, 50.0, 100.0)
        _in("alpha", self.alpha, 0.0, math.inf)
        _in("probe_fraction", self.probe_fraction, 0.001, 1.0)
        _in("knee", self.knee, 1e-3, 100.0)
        _in("held_out", self.held_out, 0.0, 0.5)
        for pattern in (*self.exclude, *(rule.pattern for rule in self.bits)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingsError(f"'{pattern}' is not a regular expression: {error}") from error

    def _check_budgets(self) -> None:
        given = [n for n in ("size_budget", "avg_wbits", "max_drop") if getattr(self, n) is not None]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(f"{options} are budgets of the same bits: give one of them")
        if self.size_budget is not None:
            _in("size_budget", self.size_budget, 1, math.inf)
        if self.avg_wbits is not None:
            _in("avg_wbits", self.avg_wbits, 2.0, 8.0)
        if self.max_drop is not None:
            _in("max_drop", self.max_drop, 0.0, 100.0)
        if self.allocation == "milp" and self.abits == WIDE_BITS:
            raise SettingsError(
                f"--allocate milp chooses among 2 to 8 bits, which cannot be {WIDE_BITS} on average: use a budget"
            )

    @property
    def range_images(self) -> int:
        """Images for the range search."""
        return self.range_samples or self.samples or RANGE_IMAGES

    @property
    def mixed(self) -> bool:
        """Layers get weight widths of their own."""
        budgets = (self.size_budget, self.avg_wbits, self.max_drop)
        return self.allocation == "milp" or any(value is not None for value in budgets)

    def _check_method_widths(self) -> None:
        least = METHODS[self.method].least_wbits
        widths = {"wbits": self.wbits, "first_last_bits": self.first_last_bits}
        widths |= {f"bits '{rule.pattern}'": rule.wbits for rule in self.bits if rule.wbits is not None}
        for name, width in widths.items():
            if width < least:
                raise SettingsError(f"method {self.method} needs weights of {least} bits or more, {name} says {width}")

    def _check_target(self) -> None:
        rules = load_target(self.target)
        rules.check_widths(self.wbits, self.abits, "--wbits, --abits")
        rules.check_widths(self.first_last_bits, self.first_last_bits, "--first-last-bits")
        for rule in self.bits:
            rules.check_widths(rule.wbits or 32, rule.abits or 32, f"--bits '{rule.pattern}'")
        if self.container not in rules.containers:
            raise SettingsError(
                f"target {rules.name} has no container '{self.container}': choose one of {', '.join(rules.containers)}"
            )
        method = METHODS[self.method]
        if rules.bounds == "float" and method.allocate and self.channel_bits == "auto":
            raise SettingsError(
                f"target {rules.name} cannot hold widths a channel of activations: add --channel-bits weights to "
                f"--method {self.method}"
            )
        if rules.symmetric and method.joint_steps:
            raise SettingsError(
                f"method {self.method} does not keep 8-bit activations symmetric as target {rules.name} needs them"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary of all settings, as stored in the output file's metadata."""
        return dataclasses.asdict(self) | {"preprocess": self.preprocess.to_json()}
