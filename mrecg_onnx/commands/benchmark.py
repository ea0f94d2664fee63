"""``mrecg-onnx benchmark``: several files in turn, their speed, size, memory and kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import cloup

from mrecg_onnx.commands._completion import listed, providers
from mrecg_onnx.commands._console import VERBOSE, asked, show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import Extras, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import output_options
from mrecg_onnx.commands._paths import FILE, PATH
from mrecg_onnx.commands._progress import counter
from mrecg_onnx.commands._sections import Command
from mrecg_onnx.commands._tables import grid, rows
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import byte_size, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.validating import Benchmark, FileReport

__all__ = ["benchmark_command"]

#: Kernels of a file that are shown; --json has all.
SHOWN = 10


@click.command("benchmark", cls=Command)
@click.argument("files", metavar="FP32.onnx QUANT.onnx...", nargs=-1, required=True, type=PATH)
@cloup.option("--batch", metavar="N,...", help="Items a run; 1, or the batch that a file fixes, by default.")
@cloup.option("--threads", metavar="N,...", help="Threads of ONNX Runtime; its own choice by default.")
@cloup.option(
    "--provider", default="cpu", metavar="NAME,...", show_default=True, shell_complete=listed(providers),
    help="cpu, cuda, tensorrt, openvino, qnn, ...: where the files run.",
)  # fmt: skip
@cloup.option("--runs", type=int, default=50, metavar="N", help="Timed runs of each file.", show_default=True)
@cloup.option("--plot", "plot_file", type=FILE, metavar="FILE", help="Draw the latencies as PNG.")
@output_options
def benchmark_command(
    *,
    files: tuple[Path, ...],
    batch: str | None,
    threads: str | None,
    provider: str,
    runs: int,
    plot_file: Path | None,
    json_file: Path | None,
    debug: bool,
) -> None:
    """Measure FILES on ONNX Runtime, taking turns; the first is what the others are compared with.

    \b
    mrecg-onnx benchmark model.onnx model_mrecg_w4a8.onnx --batch 1,8 --threads 1,2
    """  # noqa: D301 - click wants the character, not backslash and b
    writes = [file for file in (json_file, plot_file) if file is not None]
    with guarded(debug=debug, writes=writes):
        batches = _numbers("--batch", batch) if batch is not None else None
        counts = _numbers("--threads", threads) if threads else (None,)
        check_writes({"--json": json_file, "--plot": plot_file}, files)

        with loading():
            from mrecg_onnx.comparing import draw_timings, have_matplotlib
            from mrecg_onnx.validating import benchmark

        if plot_file is not None and not have_matplotlib():
            raise SettingsError("--plot needs matplotlib: pip install 'mrecg-onnx[plot]'")

        with counter("benchmark") as report:
            found = benchmark(
                files,
                batch=batches,
                threads=counts,
                provider=[name.strip() for name in provider.split(",")],
                runs=runs,
                progress=report,
            )
        extras = Extras()
        extras.write(json_file, lambda path: write_json(found.to_json(), path))
        extras.write(plot_file, lambda path: draw_timings(found, path))
        show(_files(found), _timings(found), _kernels(found.files))
        extras.settle()


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"{option} '{text}': expected whole numbers with commas between them") from error


def _files(found: Benchmark) -> RenderableType:
    content = [
        [file.name, byte_size(file.size_bytes), f"{1e3 * file.load_s:.0f} ms", byte_size(file.memory_bytes)]
        for file in found.files
    ]
    return rows("", ["file", "size", "load", "memory"], content)


def _timings(found: Benchmark) -> RenderableType:
    from mrecg_onnx.running import speedup_text

    first = found.files[0].name
    content = [
        [
            one.provider,
            "own" if one.threads is None else str(one.threads),
            str(one.batch),
            one.file,
            f"{milliseconds(one.median_s)} ms",
            f"{milliseconds(one.low_s)} to {milliseconds(one.high_s)}",
            f"{one.throughput:.0f}",
            speedup_text(one.speedup, one.speedup_interval) if one.file != first else "",
        ]
        for one in found.timings
    ]
    headings = ["provider", "threads", "batch", "file", "median", "10 to 90 %", "items/s", "against the first"]
    less = ("10 to 90 %", "items/s", "threads", "provider")
    return rows("", headings, content, left=(0, 3), names=(3,), wraps=(7,), less=less)


def _kernels(files: Sequence[FileReport]) -> RenderableType:
    from mrecg_onnx.running import elsewhere

    pairs: dict[str, str | list[str]] = {}
    for file in files:
        for provider, kernels in file.kernels.items():
            total = sum(kernel.seconds for kernel in kernels) or 1.0
            most = len(kernels) if asked(VERBOSE) else SHOWN
            shown = [f"{k.op} {k.count} ({k.seconds / total:.0%})" for k in kernels[:most]]
            others = elsewhere(kernels, provider)
            more = [f"and {len(kernels) - most} more"] if len(kernels) > most else []
            note = [f"not all on {provider}: {others}"] if others else []
            pairs[f"{file.name}, {provider}"] = ", ".join([*shown, *more, *note])
    pairs["notes"] = [note for file in files for note in file.notes]
    return grid(pairs)
