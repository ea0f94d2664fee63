"""Options that commands share, with the defaults of :class:`mrecg_onnx.Settings`, and the settings made of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import COLORS, INTERPOLATIONS, LAYOUTS, NO_LABELS, NO_RESIZE, ZEROQ, Preprocess, profile
from mrecg_onnx.methods import METHODS, RANGE_NAMES
from mrecg_onnx.planning import BitRule
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import CONTAINER_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CALIBRATION",
    "CONTAINER",
    "PATH",
    "TARGET",
    "Command",
    "Option",
    "all_but",
    "budget_options",
    "calib_option",
    "calibration_options",
    "image_options",
    "labels_option",
    "learning_options",
    "output_options",
    "outputs_option",
    "plan_options",
    "preprocess_from",
    "settings_from",
    "unused_options",
]

#: Sections of the help pages, in their order.
SECTIONS = _IMAGES, _BITS, _METHOD, _RUN, _EXPERT = "Images", "Bits", "Method", "Run", "For experts"

F = TypeVar("F", bound=Callable[..., Any])

#: Whether a path exists is for the method to say: its message names what was wrong with what.
PATH = click.Path(path_type=Path)


class PathOrWord(click.Path):
    """A path, or a word as it stands: a file or folder of that name is ``./zeroq``."""

    def __init__(self, word: str) -> None:
        super().__init__(path_type=Path)
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word as a string, anything else as a path."""
        return value if value == self.word else super().convert(value, param, ctx)


CALIBRATION = PathOrWord(ZEROQ)
#: What --labels takes.
LABELS: dict[str, Any] = {
    "type": PathOrWord(NO_LABELS),
    "metavar": "FILE|none",
    "help": "CSV of file,label for images, .npy of one class a row for arrays; none: take data without labels.  "
    "[default: folder names, or y in an .npz, are the classes]",
}
_DEFAULTS = Settings()
_FIELDS = frozenset(field.name for field in dataclasses.fields(Settings)) - {"bits", "exclude", "preprocess"}
_PREPROCESS = frozenset(Preprocess().to_json())
#: Options whose parameter has another name.
_SPELLED = {"ranges": "range"}
_SIZE = re.compile(r"^(\d+)(?:[x,](\d+))?$")


_MEMORY = re.compile(r"^(\d+(?:\.\d+)?)\s*(K|M|G|T)(i?)B?$", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


class Option(click.Option):
    """An option that the help page lists under ``section``."""

    def __init__(self, *args: Any, section: str = _RUN, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help page has a section for each name that its options carry."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", _RUN), []).append(record)
        for name in sorted(sections, key=SECTIONS.index):
            with formatter.section(name):
                formatter.write_dl(sections[name])


def _option(section: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option of a section; its default is the one of the settings' field of the same name, if there is one."""
    field = names[-1].lstrip("-").replace("-", "_")
    if field in _FIELDS:
        kwargs.setdefault("default", getattr(_DEFAULTS, field))
        kwargs.setdefault("show_default", kwargs["default"] is not None)
    return click.option(*names, cls=Option, section=section, **kwargs)


def _apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator of several, in reading order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def all_but(options: Callable[[F], F], *names: str) -> Callable[[F], F]:
    """``options`` without the parameters called ``names``: a command may have its own in their place."""

    def decorate(function: F) -> F:
        before = list(getattr(function, "__click_params__", []))
        function = options(function)
        made = [p for p in function.__click_params__ if p not in before]  # type: ignore[attr-defined]
        function.__click_params__ = before + [p for p in made if p.name not in names]  # type: ignore[attr-defined]
        return function

    return decorate


#: What ``quantize`` and ``convert`` say of the form of the file.
TARGET: dict[str, Any] = {
    "metavar": "NAME|FILE.toml",
    "help": "Where the file is meant to run: ort, openvino, tensorrt, qnn, portable, or a file of rules.",
}
CONTAINER: dict[str, Any] = {
    "type": click.Choice(CONTAINER_NAMES),
    "help": "Codes in 8-bit tensors, weights packed to 4 or 2 bits and unpacked at load, or true 4-bit Q/DQ.",
}

calib_option = _option(
    _IMAGES,
    "--calib",
    type=CALIBRATION,
    required=True,
    metavar="PATH|zeroq",
    help="Folder of images, or .npy/.npz of inputs; zeroq makes images from the model's BatchNormalization statistics.",
)

labels_option = _option(_IMAGES, "--labels", **LABELS)

outputs_option = _option(
    _IMAGES,
    "--outputs",
    multiple=True,
    metavar="NAME",
    help="Output to compare; repeatable.  [default: all]",
)

plan_options = _apply(
    _option(_BITS, "--wbits", type=int, metavar="2..8", help="Weight bits."),
    _option(
        _BITS,
        "--abits",
        type=int,
        metavar="2..8|16|32",
        help="Activation bits; 16 for --target qnn, 32 leaves activations in float.",
    ),
    _option(
        _BITS, "--first-last-bits", type=int, metavar="2..8", help="Bits of the first and last layers and their inputs."
    ),
    _option(_BITS, "--exclude", multiple=True, metavar="REGEX", help="Nodes that stay in float; repeatable."),
    _option(_BITS, "--bits", multiple=True, metavar="REGEX=W8A8", help="Bits of single layers by name; repeatable."),
    _option(_METHOD, "--method", type=click.Choice(list(METHODS)), help="How rounding is learned."),
    _option(
        _METHOD,
        "--range",
        "ranges",
        type=click.Choice(["auto", *RANGE_NAMES]),
        help="How activation ranges are found; auto: the method's own way.",
    ),
    _option(_METHOD, "--base", type=click.Choice(["qdrop", "brecq"]), help="Reconstruction under mrecg."),
    _option(_METHOD, "--scheme", metavar="loss|modcap|none|FILE.json", help="How mrecg merges units."),
    _option(_METHOD, "--equalize", type=click.Choice(["auto", "off"]), help="Rescale channels first."),
    _option(
        _METHOD,
        "--relu6",
        type=click.Choice(["auto", "off"]),
        help="Rescaling may turn a Relu6 into an upper bound for each channel, where that lowers the output's error.",
    ),
    _option(
        _METHOD,
        "--absorb",
        type=click.Choice(["auto", "off"]),
        help="Move what a channel never falls below into the biases behind it, where that lowers the output's error.",
    ),
    _option(
        _METHOD,
        "--residual",
        type=click.Choice(["wide", "shared"]),
        help="Skip paths keep 8 bits beside what layers read of them, or share its bits as in the papers.",
    ),
    _option(
        _EXPERT,
        "--selection",
        type=click.Choice(["peak", "eq4", "relative"]),
        help="Merge at peaks of the loss, by the paper's Eq. 4, or by it on relative differences.",
    ),
    _option(_EXPERT, "--merges", type=int, metavar="K", help="Number of merges; a rule decides by default."),
    _option(
        _EXPERT,
        "--joint-iters",
        type=click.Choice(["sum", "same"]),
        help="Joined units have the iterations of all members, or as many as any unit (as published).",
    ),
    _option(_EXPERT, "--penalty", type=float, metavar="LAMBDA", help="Eq. 4's lambda; by default exactly K merges."),
    _option(_EXPERT, "--alpha", type=float, help="Weight of layers with stride 2 in the module capacity (Eq. 3)."),
)

budget_options = _apply(
    _option(
        _BITS,
        "--size-budget",
        metavar="SIZE",
        help="Every layer's weights get widths of their own (2, 4 or 8 bits) within this size of the packed file, such as 1.8MB: "
        "codes of 2, 4 or 8 bits with scales, biases and graph. First and last layers take part; 3 bits would be stored as 4.",
    ),
    _option(
        _BITS,
        "--avg-wbits",
        type=float,
        metavar="BITS",
        help="The same, so many bits a weight on average (2 to 8 each), the first and the last layer not counted.",
    ),
    _option(
        _BITS,
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="The same, as few bits as lose at most so many points of top-1 on ONNX Runtime (--data; without labels percent of "
        "predictions that change). Makes up to four files.",
    ),
    _option(
        _IMAGES, "--data", type=PATH, metavar="PATH", help="Labelled images for --max-drop, or .npy/.npz of inputs."
    ),
    labels_option,
)

calibration_options = _apply(
    _option(
        _IMAGES,
        "--samples",
        type=int,
        metavar="N",
        help="Calibration images used at most, for ranges too.  [default: 1024, 64 of them for ranges; zeroq makes 256]",
    ),
    _option(_EXPERT, "--zeroq-iters", type=int, metavar="N", help="Iterations for a batch of images made by zeroq."),
    _option(_RUN, "--seed", type=int, metavar="N", help="Seed of every random choice."),
    _option(_RUN, "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where torch runs."),
    _option(_RUN, "--threads", type=int, metavar="N", help="CPU threads of torch; its own choice by default."),
)

learning_options = _apply(
    _option(
        _RUN,
        "--memory",
        metavar="SIZE",
        help="Memory to stay within, such as 2GB; more goes to temporary files.  [default: half of what is free]",
    ),
    _option(
        _RUN, "--checkpoint", type=PATH, metavar="DIR", help="Keep finished units here; the same command goes on there."
    ),
    _option(
        _METHOD,
        "--allocate",
        "allocation",
        type=click.Choice(["none", "milp"]),
        help="Give every layer widths of its own, --wbits and --abits on average, by integer programming.",
    ),
    _option(
        _METHOD,
        "--rounding",
        type=click.Choice(["auto", "adaround", "flexround", "ste"]),
        help="What is learned of a weight: up or down, a divisor, or its value; auto: the method's own.",
    ),
    _option(
        _METHOD,
        "--bias-correction/--no-bias-correction",
        "bias_correction",
        help="Shift biases by the mean error of their layers' outputs in the end.",
    ),
    _option(
        _EXPERT,
        "--loss",
        type=click.Choice(["huber", "mse", "fisher"]),
        help="Error of a unit: robust, squared, or weighted by the task loss's gradient.",
    ),
    _option(
        _EXPERT,
        "--anneal",
        type=click.Choice(["auto", "linear", "cosine"]),
        help="Schedule of the rounding regularizer; auto: the method's own.",
    ),
    _option(_BITS, "--target", **TARGET),
    _option(_BITS, "--container", **CONTAINER),
    _option(_METHOD, "--protect", type=int, metavar="N", help="Raise the N most sensitive tensors to 8 bits."),
    _option(_IMAGES, "--augment", type=click.Choice(["none", "flip"]), help="Learn from mirror images, too."),
    _option(_METHOD, "--iters", type=int, metavar="N", help="Iterations a unit."),
    _option(_METHOD, "--batch-size", type=int, metavar="N", help="Images an iteration."),
    _option(
        _EXPERT, "--percentile", type=float, metavar="PERCENT", help="What --range percentile keeps on either side."
    ),
    _option(
        _EXPERT,
        "--channel-bits",
        type=click.Choice(["auto", "weights", "off"]),
        help="Widths a channel under aciq: of weights and activations, of weights only, or one for all.",
    ),
    _option(_EXPERT, "--lapq-evaluations", type=int, metavar="N", help="How often lapq may run the network."),
    _option(_EXPERT, "--lapq-images", type=int, metavar="N", help="Calibration images lapq runs it on."),
    _option(
        _EXPERT,
        "--compile",
        type=click.Choice(["auto", "on", "off"]),
        help="Kernels of torch.compile; auto: on a GPU.",
    ),
    _option(_EXPERT, "--drop", type=float, metavar="P", help="Probability that QDrop keeps an element quantized."),
    _option(
        _EXPERT, "--window", type=int, metavar="PIXELS", help="Largest side of the maps trained on; 0: whole maps."
    ),
)


def image_options(*, stored: bool = False) -> Callable[[F], F]:
    """The fields of Preprocess, without defaults: what is not given is its own default or, ``stored``, the file's."""

    def default(text: str) -> str:
        return f"  [default: {'what QUANT says' if stored else text}]"

    beside = "a preprocessor_config.json or timm's config.json beside the model"
    read = f"what QUANT says, else {beside}" if stored else f"{beside}, else imagenet for 3 channels"
    unsized = "size/0.875; images of the model's size stay as they are"
    return _apply(
        _option(
            _IMAGES,
            "--preprocess",
            metavar="NAME|FILE",
            help="How images become inputs: imagenet, unit (0..1), raw (0..255), or a file: preprocessor_config.json of "
            f"transformers, config.json of timm, JSON with fields of Preprocess. Options below go before it.  [default: {read}]",
        ),
        _option(_IMAGES, "--mean", metavar="M[,M,M]", help="Subtracted after scaling." + default("ImageNet's")),
        _option(_IMAGES, "--std", metavar="S[,S,S]", help="Divided by." + default("ImageNet's")),
        _option(_IMAGES, "--scale", metavar="X", help="What pixels 0..255 are multiplied by." + default("1/255")),
        _option(
            _IMAGES,
            "--resize",
            metavar="PIXELS|HxW|off",
            help="Bring the shorter side to this, or both, whatever the proportions." + default(unsized),
        ),
        _option(_IMAGES, "--crop", metavar="SIZE|HxW", help="Centre crop." + default("the model's size")),
        _option(
            _IMAGES,
            "--interpolation",
            type=click.Choice(list(INTERPOLATIONS)),
            help="Filter of the resizing." + default("bilinear"),
        ),
        _option(_IMAGES, "--layout", type=click.Choice(LAYOUTS), help="Order of the axes." + default("by the input")),
        _option(_IMAGES, "--color", type=click.Choice(COLORS), help="Order of the channels." + default("by the input")),
    )


output_options = _apply(
    _option(_RUN, "--json", "json_file", type=PATH, metavar="FILE", help="Write everything found as JSON."),
    _option(_RUN, "--debug", is_flag=True, help="Show log messages, and the traceback of an error."),
)


def _beside() -> Preprocess:
    """Nothing stated: a file beside the model may say it."""
    return Preprocess(beside=True)


def settings_from(options: Mapping[str, Any]) -> Settings:
    """The settings of a command's parameters; those a command does not have keep their defaults.

    Raises:
        SettingsError: a value is out of range.
    """
    given = {name: value for name, value in options.items() if name in _FIELDS}
    if given.get("memory") is not None:
        given["memory"] = _bytes("--memory", given["memory"])
    if given.get("size_budget") is not None:
        given["size_budget"] = _bytes("--size-budget", given["size_budget"])
    return Settings(
        **given,
        exclude=tuple(options["exclude"]),
        bits=tuple(BitRule.parse(text) for text in options["bits"]),
        preprocess=preprocess_from(options, _beside) or _beside(),
    )


def preprocess_from(options: Mapping[str, Any], stored: Callable[[], Preprocess] = Preprocess) -> Preprocess | None:
    """What --preprocess names, else what ``stored`` gives, with the other options put in; None where none was given.

    Raises:
        SettingsError: a value or a file cannot be read.
    """
    given = {name: value for name, value in options.items() if name in _PREPROCESS and value is not None}
    for name, read in (("mean", _numbers), ("std", _numbers), ("scale", _number), ("crop", _size), ("resize", _resize)):
        if name in given:
            given[name] = read(f"--{name}", given[name])
    named = options.get("preprocess")
    if not given and named is None:
        return None
    base = stored() if named is None else profile(named)
    return Preprocess(**given).over(base)


def unused_options(settings: Settings, given: Sequence[str], calib: str | Path | None = None) -> list[str]:
    """A sentence for each option among ``given`` that the other choices leave without a use."""
    if calib == ZEROQ:
        given = [name for name in given if name != "batch_size"]  # images are made in batches, whatever the method
    method = METHODS[settings.method]
    scheme_only = {"selection", "merges", "penalty", "alpha"}
    idle: list[tuple[str, set[str]]] = []
    if calib is not None and calib != ZEROQ:
        idle.append((f"--calib {calib}", {"zeroq_iters"}))
    if not method.merge:
        idle.append((f"--method {settings.method}", {"base", "scheme", "joint_iters"} | scheme_only))
    elif settings.scheme == "none":
        idle.append((f"--scheme {settings.scheme}", {"joint_iters"} | scheme_only))
    elif settings.scheme not in {"loss", "modcap"}:
        idle.append((f"--scheme {settings.scheme}", scheme_only))
    elif settings.selection == "peak":
        idle.append((f"--selection {settings.selection}", {"penalty"}))
    if method.granularity == "none":
        learning = {"iters", "batch_size", "window", "drop", "compile", "rounding", "anneal", "loss"}
        idle.append((f"--method {settings.method}", learning | (set() if settings.bias_correction else {"augment"})))
    elif method.solver != "gradient":
        learning = {"iters", "batch_size", "window", "drop", "compile", "rounding", "anneal", "loss"}
        idle.append((f"--method {settings.method}", learning))
    elif method.keep_quantized is None:
        idle.append((f"--method {settings.method}", {"drop"}))
    if method.granularity != "none" and method.solver == "gradient" and _rounding(settings) != "adaround":
        idle.append((f"--rounding {_rounding(settings)}", {"anneal"}))
    idle += _idle_choices(settings)
    if settings.ranges != "percentile":
        idle.append((f"--range {settings.ranges}", {"percentile"}))
    if not method.allocate:
        idle.append((f"--method {settings.method}", {"channel_bits"}))
    if not method.joint_steps:
        idle.append((f"--method {settings.method}", {"lapq_evaluations", "lapq_images"}))
    return [
        f"--{_SPELLED.get(name, name).replace('_', '-')} has no effect with {choice}"
        for choice, names in idle
        for name in given
        if name in names
    ]


def _idle_choices(settings: Settings) -> list[tuple[str, set[str]]]:
    budgets = [n for n in ("size_budget", "avg_wbits", "max_drop") if getattr(settings, n) is not None]
    found = [(f"--{name.replace('_', '-')}", {"wbits"}) for name in budgets]
    if "max_drop" not in budgets:
        found.append(("no --max-drop", {"data", "labels"}))
    if settings.equalize == "off":
        found.append(("--equalize off", {"relu6"}))
    return found


def _rounding(settings: Settings) -> str:
    return METHODS[settings.method].rounding if settings.rounding == "auto" else settings.rounding


def _bytes(option: str, text: str) -> int:
    match = _MEMORY.match(text.strip())
    if match is None:
        raise SettingsError(f"{option} '{text}': expected a size such as 2GB or 1.8MB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])


def _number(option: str, text: str) -> float:
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(f"{option} '{text}': expected a number such as 0.5 or 1/255") from error


def _numbers(option: str, text: str) -> tuple[float, ...]:
    return tuple(_number(option, part) for part in text.replace(",", " ").split())


def _resize(option: str, text: str) -> int | tuple[int, int] | str:
    if text == NO_RESIZE:
        return text
    if text.isdigit():
        return int(text)
    if _SIZE.match(text) is None:
        raise SettingsError(
            f"{option} '{text}': expected a length such as 256, a size such as 224x320 (height x width), or {NO_RESIZE}"
        )
    return _size(option, text)


def _size(option: str, text: str) -> tuple[int, int]:
    match = _SIZE.match(text)
    if match is None:
        raise SettingsError(f"{option} '{text}': expected a size such as 224 or 224x320 (height x width)")
    return int(match[1]), int(match[2] or match[1])
