"""``--preset``: several options at once, each of which may be given beside it."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from mrecg_onnx.commands._console import PRESET
from mrecg_onnx.commands._sections import METHOD, Choice, option
from mrecg_onnx.settings import PRESETS

__all__ = ["given_beside", "preset_option"]


def _words(row: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in row.items())


def _row(name: str) -> dict[str, Any]:
    """The options of a preset as they would be typed."""
    return {field: "auto" if value is None else value for field, value in PRESETS[name].items()}


def _fill(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Make the options of the preset defaults of the command.

    On the command line it goes before a file of options, as everything there; in the file what else it says goes before.
    """
    if name is not None:
        row, found = _row(name), ctx.default_map or {}
        first = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        ctx.default_map = {**found, **row} if first else {**row, **found}
        ctx.meta[PRESET] = row if first else {field: row[field] for field in row if field not in found}
    return name


def given_beside(ctx: click.Context) -> list[str]:
    """Names of the parameters that somebody chose: on the command line, or in a file, which may have defaults written out.

    What a preset fills in is left out.
    """
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    from_file = {name for name, source in sources.items() if source is ParameterSource.DEFAULT_MAP}
    usual = {p.name for p in ctx.command.params if p.name in from_file and ctx.params[p.name] == p.default}
    nobodys = usual | (from_file & ctx.meta.get(PRESET, {}).keys())
    return [name for name, source in sources.items() if source is not ParameterSource.DEFAULT and name not in nobodys]


preset_option = option(
    METHOD,
    "--preset",
    type=Choice(list(PRESETS)),
    is_eager=True,
    callback=_fill,
    help="Options by how much time there is; those given beside it go before. "
    + "".join(f"{name}: {_words(_row(name))}. " for name in PRESETS).rstrip(),
)
