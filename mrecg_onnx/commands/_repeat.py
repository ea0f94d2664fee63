"""The command line that makes the same again: as it was given, or from what a file says that it was made with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mrecg_onnx.commands._files import CONFIG
from mrecg_onnx.commands._finished import own_settings
from mrecg_onnx.commands._sections import FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["given_command", "stored_command"]


def given_command(ctx: click.Context) -> str:
    """The command of ``ctx`` with all that was given."""
    words = ["mrecg-onnx", ctx.command.name or ""]
    for parameter in ctx.command.params:
        # --config alone has a value and is no parameter of the function.
        value = ctx.params.get(parameter.name or "", ctx.meta.get(CONFIG))
        source = ctx.get_parameter_source(parameter.name or "")
        if isinstance(parameter, click.Argument):
            words += map(str, value if isinstance(value, tuple) else [value])
        elif source is ParameterSource.COMMANDLINE:
            words += _option(parameter, value)
    return shlex.join(words)


def _option(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [max(parameter.opts if value else parameter.secondary_opts or parameter.opts, key=len)]
    name = max(parameter.opts, key=len)
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (name, "auto" if one is None else str(one))]


def stored_command(settings: Mapping[str, Any], target: str, container: str, command: click.Command) -> str:
    """``quantize`` (``command``) with the settings of a file, where they are not the defaults."""
    words = ["mrecg-onnx", "quantize", "MODEL.onnx", "--calib", "IMAGES/"]
    own = own_settings(settings) | {"target": target, "container": container}
    own = {name: value for name, value in own.items() if name not in _IMPLIED or _IMPLIED[name] != value}
    for parameter in command.params:
        name = parameter.name or ""
        if name in FIELDS and name in own and isinstance(own[name], str | int | float | bool):
            words += _option(parameter, own[name])
    words += [w for pattern in _list(own, "exclude") for w in ("--exclude", str(pattern))]
    for rule in _list(own, "bits"):
        if isinstance(rule, dict):
            widths = "".join(f"{k[0].upper()}{rule[k]}" for k in ("wbits", "abits") if rule.get(k) is not None)
            words += ["--bits", f"{rule.get('pattern')}={widths}"]
    return shlex.join(words)


#: What a run fills in by itself.
_IMPLIED = {"samples": 1024, "target": "ort", "container": "int8"}


def _list(own: Mapping[str, Any], name: str) -> list[Any]:
    found = own.get(name)
    return found if isinstance(found, list) else []
