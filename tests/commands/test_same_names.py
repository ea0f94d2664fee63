"""The command line and Python have the same names: a command is a function, an option its argument."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import mrecg_onnx
from mrecg_onnx import converters
from mrecg_onnx.commands import main
from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.text import at_the_terminal
from mrecg_onnx.settings import OF_THE_CALL, WITHOUT_OPTION

#: Options whose argument has another name, and why.
ARGUMENTS = {
    ("compare", "layer_bits"): "bits",  # a field of the settings there, whose name compare needs for its widths
    ("quantize", "dry_run"): "settings",  # a call of its own: estimate, with the same arguments
}
#: What only a terminal has: how much it says, files of options, and files of what a call returns (.save, .report).
TERMINAL = {"help", "config", "verbose", "quiet", "debug", "json", "report", "plot"}
#: Python writes over results: whoever calls names them.
IN_PYTHON_ALWAYS = {("quantize", "force"), ("convert", "force")}


def _options(command: click.Command) -> list[str]:
    return [_name(p) for p in command.params if isinstance(p, click.Option)]


def _name(option: click.Option) -> str:
    return next(name for name in option.opts if name.startswith("--")).lstrip("-").replace("-", "_")


def _function(command: str) -> inspect.Signature:
    return inspect.signature(getattr(mrecg_onnx, command))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_each_command_is_a_function_of_its_name(command: str) -> None:
    assert command in dir(mrecg_onnx)
    assert callable(getattr(mrecg_onnx, command))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_each_option_is_an_argument_of_its_name(command: str) -> None:
    known = set(_function(command).parameters)
    if "settings" in known:
        known |= set(inspect.signature(mrecg_onnx.Settings).parameters)  # its fields, and preset
    if known & {"settings", "preprocess"} or command == "runtimes":  # the function is given arrays
        known |= {field.name for field in dataclasses.fields(mrecg_onnx.Preprocess)} | {"preprocess"}
    if "metric" in known:
        known |= {field.name for field in dataclasses.fields(mrecg_onnx.Metric)}
    found = [
        ARGUMENTS.get((command, name), name)
        for name in _options(main.commands[command])
        if name not in TERMINAL and (command, name) not in IN_PYTHON_ALWAYS
    ]
    assert [name for name in found if name not in known] == []


def test_each_field_of_the_settings_is_an_option_of_its_name() -> None:
    options = set(_options(main.commands["quantize"]))
    fields = {field.name for field in dataclasses.fields(mrecg_onnx.Settings)}
    assert fields - options == WITHOUT_OPTION


def _names() -> set[str]:
    """All that options are called in Python, and options that only a terminal has."""
    found = {field.name for kind in (mrecg_onnx.Settings, mrecg_onnx.Preprocess) for field in dataclasses.fields(kind)}
    found |= {field.name for field in dataclasses.fields(mrecg_onnx.Metric)}
    for command in main.commands:
        found |= set(_function(command).parameters)
    return found | TERMINAL | {"force"}


def test_options_in_messages_are_arguments_in_python() -> None:
    """So that what an error adds for Python is right: see with_arguments."""
    root, wrong = Path(mrecg_onnx.__file__).parent, []
    for file in [*root.rglob("*.py"), *Path(converters.__file__).parent.rglob("*.py")]:
        if file.is_relative_to(root / "commands") or file.is_relative_to(
            root / "running"
        ):  # there pip and others have options
            continue
        texts = [n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)]
        for text in texts:
            if isinstance(text, str):
                names = {name.replace("-", "_") for name in re.findall(r"(?<![\w-])--([a-z][a-z-]*[a-z])", text)}
                wrong += [(file.name, name) for name in names - _names() - {"dry_run"}]
    assert wrong == []


def test_an_error_names_options_at_the_terminal_and_arguments_in_python() -> None:
    text = "give --mean and --std, or --preprocess NAME"
    inner = ModelError(text)
    assert str(ModelError(f"x: {inner}; or --batch-size 4")) == (
        f"x: {text}; or --batch-size 4 (in Python: batch_size=, preprocess=Preprocess(mean=, std=))"
    )
    with at_the_terminal():
        assert str(inner) == text
    assert str(ModelError("a--b and 'c --d'")).startswith("a--b and 'c --d'")


@pytest.mark.parametrize("name", sorted({"quantize", "compare", "sensitivity", "inspect", "estimate"}))
def test_settings_among_the_arguments_are_told_where_they_belong(name: str) -> None:
    function = getattr(mrecg_onnx, name)
    given = ["model.onnx", np.zeros((2, 3))] + ([np.zeros((2, 3)), "out"] if name == "compare" else [])
    with pytest.raises(
        TypeError, match=rf"{name} has no 'wbits', a field of Settings: settings=Settings\(wbits=\.\.\.\)"
    ):
        function(*given, wbits=4)
    with pytest.raises(TypeError, match=r"settings=Settings\(preprocess=Preprocess\(mean=\.\.\.\)\)"):
        function(*given, mean=0.5)
    with pytest.raises(SettingsError, match=rf"settings of {name} is 'out\.onnx': give mrecg_onnx\.Settings\("):
        function(*given, settings="out.onnx")


def test_other_calls_say_what_they_take() -> None:
    with pytest.raises(TypeError, match=r"preprocess=Preprocess\(mean=\.\.\.\)"):
        mrecg_onnx.validate("a.onnx", "b.onnx", "val", mean=0.5)
    with pytest.raises(TypeError, match=r"metric=Metric\(lower_is_better=\.\.\.\)"):
        mrecg_onnx.validate("a.onnx", "b.onnx", "val", lower_is_better=True)
    with pytest.raises(TypeError, match=r"validate has no 'wbits': .*labels, preprocess, limit"):
        mrecg_onnx.validate("a.onnx", "b.onnx", "val", wbits=4)
    with pytest.raises(TypeError, match=r"convert takes model, container, target by place.* to=\.\.\."):
        mrecg_onnx.convert("a.onnx", "packed", "ort", "out.onnx")
    with pytest.raises(SettingsError, match=r"a file to write is output='out\.onnx'"):
        mrecg_onnx.quantize("a.onnx", "imgs", "out.onnx")


def test_fields_of_other_things_are_told_where_they_go() -> None:
    for name in OF_THE_CALL:
        assert name in _function("quantize").parameters
        with pytest.raises(TypeError, match=rf"argument of the call, quantize\(\.\.\., {name}="):
            mrecg_onnx.Settings(**{name: "x"})
    with pytest.raises(TypeError, match=r"preprocess=mrecg_onnx\.Preprocess\(mean=\.\.\.\)"):
        mrecg_onnx.Settings(mean=0.5)
    with pytest.raises(TypeError, match="did you mean 'bits'"):
        mrecg_onnx.Settings(layer_bits=())


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"convert", "doctor", "report"}))
def test_what_takes_long_says_how_far_it_is(command: str) -> None:
    assert "progress" in _function(command).parameters


def test_defaults_are_the_same() -> None:
    """Where both have one: what a command leaves out is what the function does."""
    differ = []
    for name, command in main.commands.items():
        parameters = _function(name).parameters
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            argument = parameters.get(_name(option))
            if argument is None or not isinstance(argument.default, (int, float, str)) or option.is_flag:
                continue
            if option.default != argument.default:
                differ.append((name, option.name, option.default, argument.default))
    assert differ == []


def test_progress_says_where_it_is_in_a_line() -> None:
    done = mrecg_onnx.Progress("validate", done=32, total=64, of="images")
    assert str(done) == "validate 32/64 images"
    unit = mrecg_onnx.Progress("reconstruct", "layer1", done=1, total=3, iteration=50, iters=300, loss=0.5)
    assert str(unit) == "reconstruct 1/3 layer1, iteration 50/300, loss 0.5"


@pytest.mark.parametrize("name", ["benchmark", "compare", "convert", "inspect", "quantize", "sensitivity", "validate"])
def test_a_model_is_a_path_or_one_in_memory(name: str) -> None:
    """And a network of torch's is told how it becomes one, before anything else is looked at."""
    function = getattr(mrecg_onnx, name)
    first, *others = inspect.signature(function).parameters.values()
    assert any(word in str(first.annotation) for word in ("onnx.ModelProto", "Model'", "Model")), first
    needed = [p for p in others if p.default is p.empty]
    given = {
        "methods": ["nearest"],
        "bits": ["W8A8"],
        "data": np.zeros((2, 3)),
        "calib": np.zeros((2, 3)),
        "output": "out",
    }
    arguments = {p.name: given.get(p.name, torch.nn.Linear(1, 1)) for p in needed}
    with pytest.raises(ModelError, match=r"not Linear: export it first: torch\.onnx\.export"):
        function(torch.nn.Linear(1, 1), **arguments)
    assert not Path("out").exists()
