"""Where the time of learning goes: CPU seconds of its parts, and of an iteration's operations.

usage: python benchmarks/learning_time.py [--data ../shared] [--models NAME ...] [--methods mrecg qdrop] [--bits W4A4 W4A8]
           [--iters 100] [--samples 1024] [--keep NAME]

Each row is a whole run; the parts are timed in it with the process's CPU clock, one thread. Then the loop runs once more
below torch's profiler, for --profiled iterations a unit, whose operations are sorted by who called them. Rows are kept in
benchmarks/results/learning_time.json under --keep, so that two builds can be compared; learning_time.md is written from it.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _record import header
from main import SETS
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import mrecg_onnx
from mrecg_onnx.learning import judging, learner, loop, masks, prefix, reconstruction, training_pass

RESULTS = Path(__file__).parent / "results"
#: Parts of learning by the function that does them.
PARTS: dict[str, tuple[Any, str]] = {
    "reading the images": (prefix.Inputs, "read"),
    "float outputs (targets)": (prefix.Prefix, "targets"),
    "iterations": (reconstruction, "learn"),
    "judging": (judging, "evaluate_unit"),
    "advancing the prefix": (prefix.Prefix, "advance"),
}
#: Kinds of operations by what the outermost name of an event begins with; the first that fits counts.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gathering the batch", ("part: batch",)),
    ("drop masks", ("part: draw",)),
    ("Adam", ("Optimizer.",)),
    ("convolutions, forward", ("aten::conv2d", "aten::convolution", "aten::linear")),
    ("convolutions, backward", tuple(f"autograd::engine::evaluate_function: {name}" for name in ("Convolution", "Addmm"))),
    ("fake quantizers, forward", ("_LearnableFakeQuantize", "part: learnable_fake_quantize")),
    ("fake quantizers, backward", ("autograd::engine::evaluate_function: _LearnableFakeQuantize",)),
    ("loss", ("part: reconstruction_loss", "autograd::engine::evaluate_function: Huber")),
    ("rounding, gains, biases", ("part: weight", "autograd::engine::evaluate_function: _SoftWeight")),
)  # fmt: skip
REST = "the rest (activation functions, additions, scales, their gradients)"


def named(owner: Any, name: str) -> Any:
    """A patch of ``owner.name`` that the profiler sees."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"part: {name}"):
            return function(*args, **kwargs)

    return patch.object(owner, name, call)


def timed(owner: Any, name: str, seconds: dict[str, float], part: str) -> Any:
    """A patch of ``owner.name`` that counts its CPU seconds."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.process_time() - begin

    return patch.object(owner, name, call)


def kind_of(event: FunctionEvent) -> str:
    """Who an operation belongs to."""
    chain = [event]
    while chain[-1].cpu_parent is not None:
        chain.append(chain[-1].cpu_parent)
    for caller in reversed(chain):
        for kind, starts in KINDS:
            if caller.name.startswith(starts):
                return kind
    return REST


def profiled(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of every kind of operation in the loops of ``run``."""
    found: dict[str, float] = defaultdict(float)
    learn = reconstruction.learn

    def watched(*args: Any, **kwargs: Any) -> None:
        with profile(activities=[ProfilerActivity.CPU]) as watch:
            learn(*args, **kwargs)
        for event in watch.events():
            found[kind_of(event)] += event.self_cpu_time_total / 1e3

    with ExitStack() as stack:
        for owner, name in (
            (loop.Loop, "batch"),
            (loop.Loop, "weight"),
            (masks.Masks, "draw"),
            (loop, "reconstruction_loss"),
            (training_pass, "learnable_fake_quantize"),
        ):
            stack.enter_context(named(owner, name))
        stack.enter_context(patch.object(reconstruction, "learn", watched))
        run()
    return dict(found)


def measure(args: argparse.Namespace, model: str, method: str, bits: str) -> dict[str, Any]:
    """One row."""
    wbits, abits = (int(part) for part in bits[1:].split("A"))
    source = args.data / "models" / f"{model}.onnx"
    images = args.data / "data" / SETS[model] / "calib"

    def run(iters: int) -> Any:
        settings = mrecg_onnx.Settings(
            wbits=wbits, abits=abits, method=method, iters=iters, samples=args.samples, threads=1, stop="off"
        )
        return mrecg_onnx.quantize(source, images, settings)

    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(timed(owner, name, seconds, part))
        learning: dict[str, float] = {"all": 0.0}
        stack.enter_context(timed(learner.Learner, "learn", learning, "all"))
        units = len(run(args.iters).units)
    shares = profiled(lambda: run(args.profiled))
    return {
        "model": model, "method": method, "bits": bits, "iters": args.iters, "units": units, "samples": args.samples,
        "seconds": {k: round(v, 2) for k, v in seconds.items()}, "learning": round(learning["all"], 2),
        "milliseconds": {k: round(v / args.profiled / units, 4) for k, v in shares.items()}, "header": header(),
    }  # fmt: skip


def write_markdown(builds: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The tables for people."""
    lines = ["# Where the time of learning goes", "",
             "Written by `python benchmarks/learning_time.py`; commands, dates, versions are in the JSON file beside this one.",
             "CPU seconds of one thread, and shares of the iterations' operations below torch's profiler. On a busy machine",
             "seconds of two builds compare only where they were taken in turn; shares do.", ""]  # fmt: skip
    for key in sorted({key for rows in builds.values() for key in rows}):
        rows = {name: rows[key] for name, rows in builds.items() if key in rows}
        row = next(iter(rows.values()))
        head = f"{row['model']}, {row['bits']}, {row['method']}: {row['units']} units, {row['iters']} iterations each"
        names, rule = " | ".join(rows), "|---|" + "---|" * len(rows)
        lines += [f"## {head}, {row['samples']} images", "", f"| seconds | {names} |", rule]
        for part in PARTS:
            lines.append(f"| {part} | " + " | ".join(f"{r['seconds'][part]:.1f}" for r in rows.values()) + " |")
        lines.append("| **all of learning** | " + " | ".join(f"{r['learning']:.1f}" for r in rows.values()) + " |")
        lines += ["", f"| share of an iteration | {names} |", rule]
        for kind in (*(kind for kind, _ in KINDS), REST):
            shares = [r["milliseconds"].get(kind, 0.0) / sum(r["milliseconds"].values()) for r in rows.values()]
            lines.append(f"| {kind} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="*", default=["resnet20_cifar10"], choices=list(SETS))
    parser.add_argument("--methods", nargs="*", default=["brecq", "qdrop"])
    parser.add_argument("--bits", nargs="*", default=["W4A4"])
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--profiled", type=int, default=10, help="iterations a unit below the profiler")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--keep", default="now", help="name of the build in the tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "learning_time.json"
    for model in args.models:
        for method in args.methods:
            for bits in args.bits:
                row = measure(args, model, method, bits)
                builds = json.loads(path.read_text()) if path.exists() else {}
                builds.setdefault(args.keep, {})[f"{model} {bits} {method}"] = row
                path.write_text(json.dumps(builds, indent=1) + "\n")
                path.with_suffix(".md").write_text(write_markdown(builds))
                print(f"{model} {bits} {method}: {row['learning']} s", flush=True)


if __name__ == "__main__":
    main()
