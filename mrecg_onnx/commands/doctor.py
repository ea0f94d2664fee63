"""``mrecg-onnx doctor``: what is installed here, and what of it is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mrecg_onnx.commands._console import show
from mrecg_onnx.commands._errors import Failure, guarded
from mrecg_onnx.commands._files import check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import output_options
from mrecg_onnx.commands._sections import Command
from mrecg_onnx.commands._tables import grid

if TYPE_CHECKING:
    from pathlib import Path

    from mrecg_onnx.running import Finding

__all__ = ["doctor_command"]


@click.command("doctor", cls=Command)
@output_options
def doctor_command(*, json_file: Path | None, debug: bool) -> None:
    """Look at this installation and this machine; nothing is changed.

    Versions, providers of ONNX Runtime, threads, instruction sets, memory, extras. Exit code 1 where something is broken,
    such as two packages of ONNX Runtime in one environment; what to do stands beside it.

    \b
    mrecg-onnx doctor
    mrecg-onnx doctor --json -
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[json_file] if json_file else []):
        check_writes({"--json": json_file}, [])
        with loading():
            from mrecg_onnx.running import doctor

            found = doctor()
        if json_file is not None:
            write_json(found.to_json(), json_file)
        show(grid({one.name: _line(one) for one in found.findings}))
        if found.broken:
            raise Failure("; ".join(f"{one.name} {one.value}: {one.do}" for one in found.broken))


def _line(one: Finding) -> list[str]:
    mark = "" if one.state == "ok" else f"{one.state}: "
    return [f"{mark}{one.value}", *([f"-> {one.do}"] if one.do else [])]
