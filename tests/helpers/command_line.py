"""What tests of the command line share: a network, images, and commands that work or fail as they should."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from click.testing import CliRunner
from helpers.architectures import Graph
from PIL import Image

from mrecg_onnx.commands import main

if TYPE_CHECKING:
    import onnx
    from click.testing import Result

#: Options of runs that learn no longer than a test has to wait for.
FAST = ("--iters", "5", "--samples", "16", "--threads", "1")


def classifier(seed: int = 0) -> onnx.ModelProto:
    """Stem, a residual block, an inverted bottleneck with shortcut, two plain convolutions, a classifier."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(3), 3, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 8, "conv1"), "relu1")
    x = g.relu(g.op("Add", [g.conv(y, 8, 8, "conv2"), x], "add"), "add_relu")
    y = g.clip(g.conv(x, 8, 8, "depthwise", groups=8), "clip")
    x = g.op("Add", [g.conv(y, 8, 8, "project", kernel=1), x], "add2")
    x = g.relu(g.conv(x, 8, 16, "conv3", stride=2), "relu3")
    g.classifier(g.conv(x, 16, 16, "conv4"), 16)
    return g.model()


def write_images(folder: Path, count: int, size: int = 16) -> Path:
    """Noise in class folders 0 to 9."""
    for i, content in enumerate(_noise(count, size)):
        file = folder / str(i % 10) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


@cache
def _noise(count: int, size: int) -> list[bytes]:
    """PNG files."""
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def run(*arguments: object) -> Result:
    """A command line; ``quantize`` with the details that most tests are about."""
    if arguments[0] == "quantize" and not {"-q", "-v", "--help"} & set(arguments):
        arguments = (*arguments, "-v")
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def works(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def fails(*arguments: object, code: int = 1, says: tuple[str, ...] = (), start: str = "Error: ") -> str:
    """Run a command that must fail: its exit code, one line that says these things, no traceback, nothing written."""
    before = files(Path.cwd())
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith(("Error", "Interrupted", "Aborted"))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(start)
    assert lines[0] == result.stderr.splitlines()[-1]
    for text in says:
        assert text in lines[0]
    assert "Traceback" not in result.output
    assert not result.stdout
    assert files(Path.cwd()) == before
    return lines[0]


def quantize_fails(model: str | Path, *options: object, code: int = 1, says: tuple[str, ...] = ()) -> str:
    return fails("quantize", model, "--calib", "images", *FAST, *options, code=code, says=says)
