"""Options that commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrecg_onnx.commands._completion import offering, path_or
from mrecg_onnx.commands._config import config_option
from mrecg_onnx.commands._console import FORCE, QUIET, TAKEN, VERBOSE
from mrecg_onnx.commands._files import STDOUT
from mrecg_onnx.commands._paths import FILE, PATH, PathOrWord
from mrecg_onnx.commands._sections import BITS, EXPERT, IMAGES, METHOD, RUN, Choice, Steps, all_of, option
from mrecg_onnx.data import COLORS, INTERPOLATIONS, LAYOUTS, NO_LABELS, PROFILES, ZEROQ
from mrecg_onnx.methods import METHODS, RANGE_NAMES
from mrecg_onnx.targets import CONTAINER_NAMES, TARGET_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mrecg_onnx.commands._sections import F

__all__ = [
    "CALIBRATION",
    "CONTAINER",
    "TARGET",
    "budget_options",
    "calib_option",
    "calibration_options",
    "force_option",
    "image_options",
    "labels_option",
    "learning_options",
    "metric_options",
    "output_options",
    "outputs_option",
    "plan_options",
    "report_option",
    "talk_options",
]


CALIBRATION = PathOrWord(ZEROQ)
#: What --labels takes.
LABELS: dict[str, Any] = {
    "type": PathOrWord(NO_LABELS),
    "metavar": "PATH|none",
    "help": "For images a CSV of file,label, boxes in COCO's JSON (FILE.json:order counts categories from 0) or a folder of PNG "
    "masks (FOLDER:ENDING, where it holds several for an image); for arrays .npy, one a row; none: take data without labels.  "
    "[default: folder names, or y in an .npz, are the classes]",
}
#: What ``quantize`` and ``convert`` say of the form of the file.
TARGET: dict[str, Any] = {
    "metavar": "NAME|FILE.toml",
    "shell_complete": path_or(TARGET_NAMES),
    "help": "Where the file is meant to run: ort (ONNX Runtime, browsers, LiteRT), openvino, tensorrt, qnn (Qualcomm), portable "
    "(OpenCV, TVM and IREE, too), qonnx (FPGAs), or a file of rules.",
}
CONTAINER: dict[str, Any] = {
    "type": Choice(CONTAINER_NAMES),
    "help": "How codes are stored. int8: in 8-bit tensors; packed: weights in 4 or 2 bits, unpacked at load; typed: 4-bit types "
    "throughout, float kernels; qonnx: Quant nodes, for --target qonnx alone.",
}

calib_option = option(
    IMAGES,
    "--calib",
    type=CALIBRATION,
    required=True,
    metavar="PATH|zeroq",
    help="Folder of images, or .npy/.npz of inputs; zeroq makes images from the model's BatchNormalization statistics.",
)

labels_option = option(IMAGES, "--labels", **LABELS)

outputs_option = option(
    IMAGES,
    "--outputs",
    multiple=True,
    metavar="NAME",
    help="Output to compare; repeatable.  [default: all]",
)


def _metrics() -> Iterable[str]:
    """Names of ready metrics."""
    from mrecg_onnx.measures import READY

    return READY


metric_options = all_of(
    option(
        IMAGES,
        "--metric",
        shell_complete=offering(_metrics),
        metavar="NAME|MODULE:FUNCTION",
        help="What outputs are worth: top-1, top-5, mAP, mAP50 or mIoU, or a function (outputs, targets) -> number of your own, "
        "from a module in this folder or the environment; its code is run (docs/metrics.md).",
    ),
    option(IMAGES, "--lower-is-better", is_flag=True, help="--metric counts errors: less is better."),
)

plan_options = all_of(
    option(BITS, "--wbits", type=int, metavar="2..8", help="Weight bits."),
    option(
        BITS,
        "--abits",
        type=int,
        metavar="2..8|16|32",
        help="Activation bits; 16 for --target qnn, 32 leaves activations in float.",
    ),
    option(
        BITS, "--first-last-bits", type=int, metavar="2..8", help="Bits of the first and last layers and their inputs."
    ),
    option(
        BITS,
        "--symmetric-weights/--no-symmetric-weights",
        "symmetric_weights",
        help="Weight codes are signed, around zero point 0, or have a zero point a channel.  [default: as the target asks]",
    ),
    option(
        BITS,
        "--exclude",
        multiple=True,
        metavar="REGEX",
        help="Nodes that stay in float, by name or module; repeatable.",
    ),
    option(
        BITS,
        "--bits",
        multiple=True,
        metavar="REGEX=W8A8",
        help="Bits of single layers by name or module; repeatable.",
    ),
    option(
        METHOD,
        "--method",
        type=Choice(list(METHODS)),
        metavar="NAME",
        help=f"How rounding is learned: {', '.join(METHODS)}.",
    ),
    option(
        METHOD,
        "--range",
        type=Choice(["auto", *RANGE_NAMES]),
        help="How activation ranges are found; auto: the method's own way.",
    ),
    option(METHOD, "--base", type=Choice(["qdrop", "brecq"]), help="Reconstruction under mrecg."),
    option(
        METHOD,
        "--scheme",
        metavar="loss|modcap|none|FILE.json",
        shell_complete=path_or(("loss", "modcap", "none")),
        help="How mrecg merges units.",
    ),
    option(METHOD, "--equalize", type=Choice(["auto", "off"]), help="Rescale channels first."),
    option(
        METHOD,
        "--relu6",
        type=Choice(["auto", "off"]),
        help="Rescaling may turn a Relu6 into an upper bound for each channel, where that lowers the output's error.",
    ),
    option(
        METHOD,
        "--absorb",
        type=Choice(["auto", "off"]),
        help="Move what a channel never falls below into the biases behind it, where that lowers the output's error.",
    ),
    option(
        METHOD,
        "--residual",
        type=Choice(["wide", "shared"]),
        help="Skip paths keep 8 bits beside what layers read of them, or share its bits as in the papers.",
    ),
    option(
        EXPERT,
        "--selection",
        type=Choice(["peak", "eq4", "relative"]),
        help="Merge at peaks of the loss, by the paper's Eq. 4, or by it on relative differences.",
    ),
    option(EXPERT, "--merges", type=int, metavar="K", help="Number of merges; a rule decides by default."),
    option(
        EXPERT,
        "--joint-iters",
        type=Choice(["sum", "same"]),
        help="Joined units have the iterations of all members, or as many as any unit (as published).",
    ),
    option(EXPERT, "--penalty", type=float, metavar="LAMBDA", help="Eq. 4's lambda; by default exactly K merges."),
    option(EXPERT, "--alpha", type=float, help="Weight of layers with stride 2 in the module capacity (Eq. 3)."),
)

budget_options = all_of(
    option(
        BITS,
        "--size-budget",
        metavar="SIZE",
        help="Every layer's weights get widths of their own (2, 4 or 8 bits) within this size of the packed file, such as 1.8MB: "
        "codes of 2, 4 or 8 bits with scales, biases and graph. First and last layers take part; 3 bits would be stored as 4.",
    ),
    option(
        BITS,
        "--avg-wbits",
        type=float,
        metavar="BITS",
        help="The same, so many bits a weight on average (2 to 8 each), the first and the last layer not counted.",
    ),
    option(
        BITS,
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="The same, as few bits as lose at most so many points of top-1 on ONNX Runtime (--data; without labels percent of "
        "predictions that change; with --metric what that counts). Makes and measures up to four files.",
    ),
    option(
        IMAGES,
        "--data",
        type=PATH,
        metavar="PATH",
        help="Labelled images for --max-drop and for the page of --report, or .npy/.npz of inputs.",
    ),
    labels_option,
    metric_options,
)

calibration_options = all_of(
    option(
        IMAGES,
        "--samples",
        type=int,
        metavar="N",
        help="Calibration images used at most, for ranges too.  [default: 1024, 64 of them for ranges; zeroq makes 256]",
    ),
    option(EXPERT, "--zeroq-iters", type=int, metavar="N", help="Iterations for a batch of images made by zeroq."),
    option(RUN, "--seed", type=int, metavar="N", help="Seed of every random choice."),
    option(RUN, "--device", type=Choice(["auto", "cpu", "cuda"]), help="Where torch runs."),
    option(RUN, "--threads", type=int, metavar="N", help="CPU threads of torch; its own choice by default."),
    option(
        RUN,
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="Longest that one call of ONNX Runtime may take; a model's Loop may go on for ever.",
    ),
)

learning_options = all_of(
    option(
        RUN,
        "--memory",
        metavar="SIZE",
        help="Memory to stay within, such as 2GB; more goes to temporary files.  [default: half of what is free]",
    ),
    option(
        RUN, "--checkpoint", type=PATH, metavar="DIR", help="Keep finished work here; the same command goes on there."
    ),
    option(
        METHOD,
        "--allocate",
        type=Choice(["none", "milp"]),
        help="Give every layer widths of its own, --wbits and --abits on average, by integer programming.",
    ),
    option(
        METHOD,
        "--rounding",
        type=Choice(["auto", "adaround", "flexround", "ste"]),
        help="What is learned of a weight: up or down, a divisor, or its value; auto: the method's own.",
    ),
    option(
        METHOD,
        "--bias-correction/--no-bias-correction",
        "bias_correction",
        help="Shift biases by the mean error of their layers' outputs in the end.",
    ),
    option(
        EXPERT,
        "--loss",
        type=Choice(["huber", "mse", "fisher"]),
        help="Error of a unit: robust, squared, or weighted by the task loss's gradient.",
    ),
    option(
        EXPERT,
        "--anneal",
        type=Choice(["auto", "linear", "cosine"]),
        help="Schedule of the rounding regularizer; auto: the method's own.",
    ),
    option(BITS, "--target", **TARGET),
    option(BITS, "--container", **CONTAINER),
    option(METHOD, "--protect", type=int, metavar="N", help="Raise the N most sensitive tensors to 8 bits."),
    option(
        IMAGES,
        "--augment",
        type=Choice(["none", "flip", "shift", "crop"]),
        help="Learn from mirror images, too, or from three random variants of each image, moved or cropped.",
    ),
    option(METHOD, "--iters", type=int, metavar="N", help="Iterations a unit."),
    option(
        METHOD,
        "--stop",
        type=Choice(["auto", "off"]),
        help="auto: --iters in rounds, fewer where the loss on held-out images has settled; off: all in one.",
    ),
    option(
        METHOD,
        "--finish",
        type=Steps(),
        metavar="STEPS|auto|off",
        help="Steps in which the whole network is learned together in the end, towards the float network's answers; kept where "
        "held-out images gain. auto: two fifths of --iters, at most 400, where the method learns units and most weights have 2 "
        "or 3 bits.  [default: off]",
        show_default=False,
    ),
    option(METHOD, "--batch-size", type=int, metavar="N", help="Images an iteration."),
    option(EXPERT, "--percentile", type=float, metavar="PERCENT", help="What --range percentile keeps on either side."),
    option(
        EXPERT,
        "--channel-bits",
        type=Choice(["auto", "weights", "off"]),
        help="Widths a channel under aciq: of weights and activations, of weights only, or one for all.",
    ),
    option(EXPERT, "--lapq-evaluations", type=int, metavar="N", help="How often lapq may run the network."),
    option(EXPERT, "--lapq-images", type=int, metavar="N", help="Calibration images lapq runs it on."),
    option(
        EXPERT,
        "--compile",
        type=Choice(["auto", "on", "off"]),
        help="Kernels of torch.compile; auto: on a GPU.",
    ),
    option(EXPERT, "--drop", type=float, metavar="P", help="Probability that QDrop keeps an element quantized."),
    option(EXPERT, "--window", type=int, metavar="PIXELS", help="Largest side of the maps trained on; 0: whole maps."),
)


def image_options(*, stored: str = "") -> Callable[[F], F]:
    """The fields of Preprocess, without defaults: what is not given is its own default or what the argument ``stored`` says."""

    def default(text: str) -> str:
        return f"  [default: {f'what {stored} says' if stored else text}]"

    beside = "a preprocessor_config.json or timm's config.json beside the model"
    read = f"what {stored} says, else {beside}" if stored else f"{beside}, else imagenet for 3 channels"
    unsized = "size/0.875; images of the model's size stay as they are"
    return all_of(
        option(
            IMAGES,
            "--preprocess",
            metavar="NAME|FILE",
            shell_complete=path_or(PROFILES),
            help="How images become inputs: imagenet, unit (0..1), raw (0..255), or a file: preprocessor_config.json of "
            f"transformers, config.json of timm, JSON with fields of Preprocess. Options below go before it.  [default: {read}]",
        ),
        option(IMAGES, "--mean", metavar="M[,M,M]", help="Subtracted after scaling." + default("ImageNet's")),
        option(IMAGES, "--std", metavar="S[,S,S]", help="Divided by." + default("ImageNet's")),
        option(IMAGES, "--scale", metavar="X", help="What pixels 0..255 are multiplied by." + default("1/255")),
        option(
            IMAGES,
            "--resize",
            metavar="PIXELS|HxW|off",
            help="Bring the shorter side to this, or both, whatever the proportions." + default(unsized),
        ),
        option(IMAGES, "--crop", metavar="SIZE|HxW", help="Centre crop." + default("the model's size")),
        option(
            IMAGES,
            "--interpolation",
            type=Choice(list(INTERPOLATIONS)),
            metavar="FILTER",
            help=f"Filter of the resizing: {', '.join(INTERPOLATIONS)}." + default("bilinear"),
        ),
        option(IMAGES, "--layout", type=Choice(LAYOUTS), help="Order of the axes." + default("by the input")),
        option(IMAGES, "--color", type=Choice(COLORS), help="Order of the channels." + default("by the input")),
    )


report_option = option(
    RUN,
    "--report",
    "report_file",
    type=FILE,
    metavar="OUT.html",
    help="Also write a page to look at: one HTML file without anything beside it.",
)


def _flag(key: str, *names: str, text: str) -> Callable[[F], F]:
    """A flag that the command's context keeps: whoever prints or writes asks for it there."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.meta[key] = value

    return option(RUN, *names, is_flag=True, expose_value=False, callback=remember, help=text)


#: Other names of standard output.
_ALSO_STDOUT = frozenset({"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def _json(ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and os.fspath(value) in _ALSO_STDOUT:
        value = STDOUT  # behind > it would be another name of a file that takes the place of the one that is open
    ctx.meta[TAKEN] = value == STDOUT
    return value


force_option = _flag(FORCE, "--force", text="Write over a result that is there.")

talk_options = all_of(
    config_option,
    _flag(VERBOSE, "-v", "--verbose", text="Show details."),
    _flag(QUIET, "-q", "--quiet", text="Show nothing but errors; the exit code tells."),
    option(RUN, "--debug", is_flag=True, help="Show log messages, and the traceback of an error."),
)

output_options = all_of(
    option(
        RUN,
        "--json",
        "json_file",
        type=FILE,
        metavar="FILE|-",
        callback=_json,
        help="Write everything found as JSON; - is standard output, which then holds nothing else.",
    ),
    talk_options,
)
