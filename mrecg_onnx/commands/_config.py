"""Options from a file, ``--config run.toml``, and the file that says with which a result was made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mrecg_onnx import __version__
from mrecg_onnx.commands._console import FORCE, PRESET, asked
from mrecg_onnx.commands._files import CONFIG
from mrecg_onnx.commands._sections import RUN, Steps, option
from mrecg_onnx.converters.files import no_such, require_regular
from mrecg_onnx.converters.text import did_you_mean

__all__ = ["config_beside", "config_option", "resolved"]

#: What no file may ask for: files that name files of options, and writing over results.
_NEVER = frozenset({"config", "help", "force"})
#: What decides where and how a run tells of its result, and not what it makes.
_NOT_THE_RESULT = _NEVER | {"output", "json", "report", "checkpoint", "debug", "verbose", "quiet", "dry-run"}
#: What stands for others, which are written out.
_STANDS_FOR_OTHERS = frozenset({"preset"})
#: Bytes of a file at most: there are a hundred options.
LARGEST = 1 << 20


def _key(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len).lstrip("-")


def _read(ctx: click.Context, _parameter: click.Parameter, file: Path | None) -> None:
    """Make the options of ``file`` the defaults of the command: what is on the command line goes before them."""
    if file is None:
        return
    known = {_key(p): p for p in ctx.command.params if isinstance(p, click.Option)}
    known = {name: p for name, p in known.items() if name not in _NEVER}
    found: dict[str, Any] = {}
    for written, value in _parsed(file).items():
        name = written.replace("_", "-")
        if name not in known:
            hint = did_you_mean(name, known, ": ")
            raise click.UsageError(f"--config {file}: '{written}' is no option of {ctx.command.name}{hint}")
        found[known[name].name or ""] = _checked(ctx, file, written, known[name], value)
    ctx.default_map = {**(ctx.default_map or {}), **found, **ctx.meta.get(PRESET, {})}
    ctx.meta[CONFIG] = file


def _parsed(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if not file.exists():
            raise click.UsageError(f"--config {no_such(file, 'check its path')}")
        require_regular(file)
        if file.stat().st_size > LARGEST:
            raise click.UsageError(f"--config {file}: is larger than any file of options")
        found: dict[str, Any] = tomllib.loads(
            file.read_text(encoding="utf-8-sig")
        )  # editors on Windows begin files with a mark
    except OSError as error:
        raise click.UsageError(f"--config {file}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise click.UsageError(f"--config {file}: is no TOML: {error}") from error
    return found


def _checked(ctx: click.Context, file: Path, name: str, parameter: click.Parameter, value: Any) -> Any:
    """``value`` as click takes it.

    Raises:
        click.UsageError: it is nothing that the option takes.
    """
    where = f"--config {file}: {name}"
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    if flag is not isinstance(value, bool):
        raise click.UsageError(f"{where} wants {'true or false' if flag else 'a value, no true or false'}")
    many = isinstance(parameter, click.Option) and parameter.multiple
    if many and isinstance(value, str):
        value = [value]
    if isinstance(value, list) and many:
        wrong = [one for one in value if not isinstance(one, str | int | float)]
    else:
        wrong = [] if isinstance(value, str | int | float) else [value]
    if wrong:
        raise click.UsageError(f"{where} wants {'a list of texts' if many else 'a text or a number'}")
    if any("\0" in one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)):
        raise click.UsageError(f"{where} holds a zero byte, which no option takes")
    try:
        parameter.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise click.UsageError(f"{where}: {error.message}") from error
    return value


config_option = option(
    RUN,
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=_read,
    help="Options from a TOML file, by their names (wbits = 4); the command line goes before it.",
)


def config_beside(ctx: click.Context, result: Path) -> Path | None:
    """Where the options that ``result`` is made with are written; None where they come from that very file.

    Raises:
        click.UsageError: that file says other options than the command line, and may not be written over.
    """
    path = result.parent / f"{result.stem}.toml"  # also of a path without a name, which is refused later
    given = ctx.meta.get(CONFIG)
    if given is None or given.resolve() != path.resolve():
        return path
    changed = [
        _key(parameter)
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option)
        and _key(parameter) not in _NOT_THE_RESULT
        and ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if not changed:
        return None
    if not asked(FORCE):
        raise click.UsageError(
            f"--config {given} would stay beside {result} and not say --{changed[0]}: name another --output, write it into "
            "the file, or --force the file to be written anew"
        )
    return path


def resolved(ctx: click.Context, arguments: str) -> str:
    """The options of a run that decide its result, as TOML: those that were given, and the defaults of the others."""
    lines = [f"# mrecg-onnx {__version__}: mrecg-onnx {ctx.command.name} {arguments} --config THIS_FILE"]
    for parameter in ctx.command.params:
        name = _key(parameter)
        if not isinstance(parameter, click.Option) or name in _NOT_THE_RESULT | _STANDS_FOR_OTHERS:
            continue
        value = ctx.params.get(parameter.name or "")
        if value is None and isinstance(parameter.type, Steps):
            value = "auto"
        if value is not None and value != ():
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # Strings of JSON are strings of TOML, but for DEL and for bytes that are no text, which TOML has no way to write.
    return json.dumps(str(value)).replace("\x7f", "\\u007f")
