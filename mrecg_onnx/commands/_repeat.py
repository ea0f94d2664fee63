"""The command line that makes the same again: as it was given, or from what a file says that it was made with."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mrecg_onnx.commands._files import CONFIG
from mrecg_onnx.commands._sections import FIELDS
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.text import bounded, printable
from mrecg_onnx.data import NO_LABELS, PROFILES, UNIT_SCALE, Preprocess
from mrecg_onnx.measures import READY
from mrecg_onnx.settings import WITHOUT_OPTION, changed
from mrecg_onnx.targets import TARGET_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrecg_onnx.data import InputSpec
    from mrecg_onnx.inspecting import FinishedFile

__all__ = ["argument", "given_command", "likewise", "rule_text", "stored_command"]

#: Parameters that say what is measured and where it is written, no choices of a file's.
_MEASURED = frozenset({"data", "labels", "metric", "lower_is_better", "json_file", "report_file", "debug"})

#: What a drop is counted in where no metric is named: with labels, and without.
TOP1, AGREEMENT = "top-1", "agreement"


def given_command(ctx: click.Context) -> str:
    """The command of ``ctx`` with all that was given."""
    words = ["mrecg-onnx", ctx.command.name or ""]
    for parameter in ctx.command.params:
        # --config alone has a value and is no parameter of the function.
        value = ctx.params.get(parameter.name or "", ctx.meta.get(CONFIG))
        source = ctx.get_parameter_source(parameter.name or "")
        if isinstance(parameter, click.Argument):
            words += map(argument, value if isinstance(value, tuple) else [value])
        elif source is ParameterSource.COMMANDLINE:
            words += _option(parameter, value)
    return shlex.join(words)


def likewise(ctx: click.Context, command: click.Command, more: Sequence[tuple[str, str]]) -> str:
    """``command`` with what was given to that of ``ctx`` and makes a file what it is, and ``more`` options."""
    words = ["mrecg-onnx", command.name or ""]
    known = {parameter.name for parameter in command.params} - _MEASURED
    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if isinstance(parameter, click.Argument):
            words.append(argument(ctx.params[name]))
        elif name in known and source in {ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP}:
            words += _option(parameter, ctx.params[name])
    return shlex.join([*words, *(word for option in more for word in option)])


def argument(path: Any) -> str:
    """A path as an argument: one that begins like an option is told from it."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _option(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [max(parameter.opts if value else parameter.secondary_opts or parameter.opts, key=len)]
    name = max(parameter.opts, key=len)
    values = value if isinstance(value, tuple) else (value,)
    return [word for one in values for word in (name, "auto" if one is None else str(one))]


def stored_command(found: FinishedFile, command: click.Command, *, model: str, specs: Sequence[InputSpec]) -> str:
    """``quantize`` (``command``) with the settings of a file, where they are not what the defaults come to.

    What no option can write stands in front of it as comments of a shell.

    Args:
        found: the file.
        command: ``quantize``.
        model: what the float model is called.
        specs: what the file is fed.
    """
    made, said = found.origin is not None, list[str]()
    own = changed(found.settings, made=made)
    calib = "zeroq" if made else "ARRAYS.npy" if found.preprocess is None else "IMAGES/"
    words = ["mrecg-onnx", command.name or "", model, "--calib", calib, "-o", Path(found.name).name]
    own |= _form(found, said)
    # Sums are in another order, and the file says another number, on other threads or another device.
    own |= {name: value for name in ("device", "threads") if (value := found.settings.get(name)) is not None}
    if own["target"] == "ort":
        del own["target"]
    if own["container"] == "int8":
        del own["container"]
    if found.settings.get("scheme") == "file":
        own["scheme"] = "SCHEME.json"
        units = json.dumps({"units": [list(unit) for unit in found.units if unit]})
        said.append(f"SCHEME.json holds {units}")
    if found.settings.get("max_drop") is not None:
        words += _judge(found, said)
    if own.get("size_budget") is not None:
        own["size_budget"] = f"{own['size_budget']}B"
    for parameter in command.params:
        name = parameter.name or ""
        if name in FIELDS and name in own:
            words += _option(parameter, own.pop(name))
    words += [w for pattern in _list(own, "exclude") for w in ("--exclude", str(pattern))]
    words += [w for rule in _given_rules(found.settings, said) for w in ("--bits", rule)]
    words += _preprocess(found, specs)
    rest = {name: value for name, value in own.items() if name in WITHOUT_OPTION}
    if rest:
        fields = ", ".join(f"{name}={_python(value)}" for name, value in rest.items())
        said.append(f"no option, set in Python: Settings({fields})")
    return "\n".join([*(f"# {printable(line)}" for line in said), shlex.join(words)])


def _judge(found: FinishedFile, said: list[str]) -> list[str]:
    """What --max-drop was measured by; the file says that, and not on which images."""
    judged = found.judged or {}
    name = str(judged.get("name", TOP1))
    if name == AGREEMENT:
        said.append("VALIDATION/: the images on which the drop was measured: answers that are FP32's")
        return ["--data", "VALIDATION/", "--labels", NO_LABELS]
    said.append("VALIDATION/: the labelled images on which the drop was measured")
    words = ["--data", "VALIDATION/"]
    if name in READY:
        return words if name == TOP1 else [*words, "--metric", name]
    said.append(f"MODULE:FUNCTION: a metric of one's own, called {bounded(name, 80)}, which the file does not hold")
    less = ["--lower-is-better"] if judged.get("lower_is_better") is True else []
    return [*words, "--metric", "MODULE:FUNCTION", *less]


def _form(found: FinishedFile, said: list[str]) -> dict[str, Any]:
    """Target and container; rules that came from a file are not in the file that was made."""
    if found.target not in TARGET_NAMES:
        said.append(f"TARGET.toml: rules of a target of one's own, called {found.target}, which the file does not hold")
        return {"target": "TARGET.toml", "container": found.container}
    return {"target": found.target, "container": found.container}


def _given_rules(settings: Mapping[str, Any], said: list[str]) -> list[str]:
    """Rules for single layers as --bits takes them, without those that a budget chose: they stand last."""
    rules = [rule for rule in _list(settings, "bits") if isinstance(rule, dict)]
    budgets = (settings.get(name) for name in ("size_budget", "avg_wbits", "max_drop"))
    if settings.get("allocate") == "milp" or any(value is not None for value in budgets):
        seen: set[str] = set()
        while rules and _ONE_LAYER.match(pattern := str(rules[-1].get("pattern"))) and pattern not in seen:
            seen.add(pattern)
            rules.pop()
        said.append(
            "the budget chooses widths of layers: a --bits '^NAME$=W8' that was given beside it has to be added"
        )
    return list(map(rule_text, rules))


def rule_text(rule: Mapping[str, Any]) -> str:
    """A stored rule for single layers in the words of --bits: ``fc=W8A8``; anybody may have written it."""
    widths = "".join(f"{k[0].upper()}{rule[k]}" for k in ("wbits", "abits") if rule.get(k) is not None)
    return f"{rule.get('pattern')}={widths}"


def _preprocess(found: FinishedFile, specs: Sequence[InputSpec]) -> list[str]:
    """Options that say how images became inputs, as few as do; of a file that was calibrated on arrays what was stated."""
    if found.preprocess is None:
        try:
            stated = Preprocess.from_json(found.settings.get("preprocess", {}))
        except SettingsError:
            return []
        return _stated(stated)
    least: list[str] | None = None
    for name, base in sorted(PROFILES.items(), key=lambda row: row[0] != "unit"):  # which says least
        fields = {} if len(specs) != 1 else _differing(found.preprocess, base, specs[0])
        if fields is None or not specs:
            continue
        words = ["--preprocess", name, *_stated(Preprocess(**fields))]
        if least is None or len(words) < len(least):
            least = words
    # A file beside the model is not read where a name is given.
    return least if least is not None else ["--preprocess", "unit", *_stated(found.preprocess)]


def _differing(wanted: Preprocess, base: Preprocess, spec: InputSpec) -> dict[str, Any] | None:
    """The fewest fields that make ``wanted`` of ``base`` for an input; None where none do."""

    def do(fields: dict[str, Any]) -> bool:
        try:
            return Preprocess(**fields).over(base).resolve(spec) == wanted
        except (SettingsError, DataError):
            return False

    every = {name: getattr(wanted, name) for name in wanted.to_json()}
    if not do(every):
        return None
    for name in list(every):
        less = {key: value for key, value in every.items() if key != name}
        one = {**every, name: every[name][:1]} if name in {"mean", "std"} else every
        every = less if do(less) else one if do(one) else every
    return every


def _stated(preprocess: Preprocess) -> list[str]:
    """The options that state the same."""
    words = []
    for name, value in preprocess.to_json().items():
        if value in (None, "auto"):
            continue
        if name in {"mean", "std"}:
            text = ",".join(map(_number, value))
        elif name == "scale":
            text = "1/255" if value == UNIT_SCALE else _number(value)
        else:
            text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{name}", text]
    return words


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _python(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float) or value is None else repr(str(value))


#: A rule that a budget wrote: the whole name of a layer.
_ONE_LAYER = re.compile(r"^\^.*\$$", re.DOTALL)


def _list(own: Mapping[str, Any], name: str) -> list[Any]:
    found = own.get(name)
    return found if isinstance(found, list) else []
