"""The settings of all rooms together: one flat form, its defaults, its refusals and its place in the metadata."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

from mrecg_onnx import Preprocess, Settings
from mrecg_onnx.calibrating import ZeroqSettings
from mrecg_onnx.converters.choices import SettingsGroup
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import DataSettings
from mrecg_onnx.finishing import FinishSettings
from mrecg_onnx.learning import LearningSettings
from mrecg_onnx.machine import MachineSettings
from mrecg_onnx.methods import METHODS, MethodSettings
from mrecg_onnx.planning import BitRule, BitSettings, BudgetSettings, MergeSettings
from mrecg_onnx.quantizers import RangeSettings
from mrecg_onnx.rewriting import RewritingSettings
from mrecg_onnx.settings import STORED_ORDER
from mrecg_onnx.targets import TargetSettings

GROUPS = (
    MethodSettings, TargetSettings, DataSettings, BitSettings, BudgetSettings, MergeSettings, RangeSettings, MachineSettings,
    ZeroqSettings, RewritingSettings, LearningSettings, FinishSettings,
)  # fmt: skip
#: A value that is not the default, for each field.
OTHERS = {
    "wbits": 3, "abits": 32, "method": "brecq", "base": "qdrop", "scheme": "none", "equalize": "off", "relu6": "auto",
    "absorb": "auto", "residual": "shared", "protect": 1, "iters": 7, "batch_size": 8, "samples": 9, "augment": "flip", "seed": 5,
    "device": "cpu", "first_last_bits": 6, "exclude": ("a",), "bits": (BitRule("b", 4, None),),
    "preprocess": Preprocess(color="bgr"), "target": "portable", "container": "packed", "threads": 1, "memory": 10**9,
    "compile": "off", "drop": 0.25, "selection": "eq4", "merges": 2, "joint_iters": "same", "penalty": 0.5, "alpha": 1.0,
    "probe_fraction": 0.5, "lr_rounding": 0.1, "lr_scale": 0.1, "rounding": "ste", "anneal": "cosine", "allocate": "milp",
    "size_budget": 10**6, "avg_wbits": 3.5, "max_drop": 1.0, "bias_correction": True, "loss": "mse", "knee": 1.0,
    "learn_bias": False, "learn_weight_scales": False, "rounding_weight": 0.1, "range": "mse", "percentile": 99.0,
    "channel_bits": "off", "lapq_evaluations": 3, "lapq_images": 4, "range_samples": 6, "held_out": 0.25, "window": 0,
    "zeroq_iters": 2, "stop": "auto", "finish": 3, "symmetric_weights": True, "timeout": 5.0,
}  # fmt: skip


def names(group: type[SettingsGroup]) -> list[str]:
    return [field.name for field in dataclasses.fields(group)]


def test_every_field_has_its_group_and_its_place_in_the_metadata():
    assert sorted(STORED_ORDER) == sorted(names(Settings))
    assert len(set(STORED_ORDER)) == len(STORED_ORDER)
    assert {name for group in GROUPS for name in names(group)} == set(STORED_ORDER)
    assert list(Settings().to_json()) == list(STORED_ORDER)


@pytest.mark.parametrize("group", GROUPS)
def test_settings_go_wherever_a_group_is_asked_for(group):
    assert isinstance(Settings(), group)
    assert all(getattr(Settings(), name) == getattr(group(), name) for name in names(group))


def test_each_field_is_described_where_it_is_declared():
    for group in GROUPS:
        own = set(inspect.get_annotations(group)) - ({"preprocess"} if group is ZeroqSettings else set())
        assert own == {line.split(":")[0].strip() for line in _attributes(group.__doc__ or "")}, group


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_each_field_checks_its_type_when_it_is_made(name):
    with pytest.raises(SettingsError, match=f"{name} is"):
        Settings(**{name: object()})
    value = OTHERS[name]
    if isinstance(value, bool):
        assert getattr(Settings(**{name: np.bool_(value)}), name) is value
        with pytest.raises(SettingsError, match=f"{name} is 1: it must be True or False"):
            Settings(**{name: 1})
    elif isinstance(value, int | float):
        for other in (np.float32(value), np.int64(value)) if value == int(value) else (np.float64(value),):
            made = getattr(Settings(**{name: other}), name)
            assert (made, type(made)) == (value, type(value))
        sizes = name in {"memory", "size_budget"}  # which take 4GB
        for wrong in (True, float("nan"), *(() if sizes else ("4",))):
            with pytest.raises(SettingsError, match=f"{name} is {wrong!r}"):
                Settings(**{name: wrong})
    if isinstance(value, int) and not isinstance(value, bool):
        with pytest.raises(SettingsError, match=rf"{name} is {value}\.5: it must be a whole number"):
            Settings(**{name: value + 0.5})


def _attributes(text: str) -> list[str]:
    lines = text.split("Attributes:\n")[1].splitlines()
    return [line for line in lines if line.startswith(" " * 8) and not line.startswith(" " * 9)]


@pytest.mark.parametrize("name", STORED_ORDER)
def test_the_flat_keyword_form(name):
    value = OTHERS[name]
    made = dataclasses.replace(Settings(), **{name: value})
    assert made == Settings(**{name: value}) != Settings()
    assert getattr(made, name) == value
    assert json.loads(json.dumps(made.to_json())) != json.loads(json.dumps(Settings().to_json()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, value)


@pytest.mark.parametrize("group", [DataSettings, ZeroqSettings, Settings])
def test_a_preprocessing_by_name_becomes_one(group):
    assert group().preprocess == Preprocess(beside=True)
    assert group(preprocess="raw").preprocess == Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))
    assert Settings(preprocess="unit").to_json()["preprocess"]["std"] == [1.0]


@pytest.mark.parametrize(("given", "images"), [({}, 64), ({"samples": 9}, 9), ({"samples": 9, "range_samples": 5}, 5)])
def test_images_for_ranges(given, images):
    assert DataSettings(**given).range_images == Settings(**given).range_images == images


@pytest.mark.parametrize("given", [{"allocate": "milp"}, {"size_budget": 1}, {"avg_wbits": 2.0}, {"max_drop": 0.0}])
def test_a_budget_gives_layers_widths_of_their_own(given):
    assert BudgetSettings(**given).mixed
    assert not BudgetSettings().mixed


@pytest.mark.parametrize(
    ("group", "given", "says"),
    [
        (BitSettings, {"abits": 9}, "abits is 9: it must lie between 2 and 8, or be 16, or 32 for float activations"),
        (BitSettings, {"abits": 16}, "target ort: --abits asks for 16-bit activations"),
        (BitSettings, {"exclude": ("(",)}, r"'\(' is not a regular expression"),
        (BitSettings, {"bits": (BitRule("[", 4, 4),)}, r"'\[' is not a regular expression"),
        (TargetSettings, {"target": "tensorrt", "container": "typed"}, "target tensorrt has no container 'typed'"),
        (TargetSettings, {"target": "abacus"}, "target 'abacus' is neither ort"),
        (MergeSettings, {"scheme": "other"}, "scheme 'other' is neither loss, modcap, none nor an existing JSON file"),
        (
            BudgetSettings,
            {"avg_wbits": 3.0, "max_drop": 1.0},
            "--avg-wbits and --max-drop are budgets of the same bits",
        ),
        (
            BudgetSettings,
            {"target": "qnn", "abits": 16, "allocate": "milp"},
            "--allocate milp chooses among 2 to 8 bits",
        ),
    ],
)
def test_a_group_refuses_alone_what_all_refuse_together(group, given, says):
    for kind in (group, Settings):
        with pytest.raises(SettingsError, match=says):
            kind(**given)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"wbitz": 4}, TypeError, "Settings has no 'wbitz': did you mean 'wbits'?"),
        ({"xyz": 4}, TypeError, "Settings has no 'xyz'"),
        ({"method": "breqc"}, SettingsError, "mrecg; did you mean 'brecq'?"),
        ({"scheme": "lost"}, SettingsError, "JSON file; did you mean 'loss'?"),
        ({"bits": 4}, SettingsError, "bits is 4: it takes widths of single layers, bits='conv1=W8A8' or a list"),
        ({"bits": "W8A8"}, SettingsError, "'W8A8': expected REGEX=W4A8, REGEX=W8 or REGEX=A8 (in Python: bits=)"),
        ({"exclude": [4]}, SettingsError, "exclude is [4]: it takes regular expressions, exclude='conv1' or a list"),
        ({"range": ["mse"]}, SettingsError, "range is ['mse']: choose among auto"),
        ({"wbits": "auto"}, SettingsError, "wbits is 'auto': it must be a number"),
        ({"preset": 3}, SettingsError, "preset is 3: choose among fast"),
        ({"size_budget": "much"}, SettingsError, "expected a size such as 2GB or 1.8MB (in Python: size_budget=)"),
        ({"wbits": "4"}, SettingsError, "wbits is '4': it must be a number"),
        ({"abits": "4"}, SettingsError, "abits is '4': it must be a number"),
        ({"alpha": "1"}, SettingsError, "alpha is '1': it must be a number"),
    ],
)
def test_what_is_misspelt_or_of_another_type_is_answered_with_what_was_meant(given, kind, says):
    with pytest.raises(kind) as error:
        Settings(**given)
    assert says in str(error.value)


def test_words_of_the_command_line_are_taken():
    rule = BitRule("head", 8, 8)
    for words in ("head=W8A8", ["head=W8A8"], (rule,)):
        assert Settings(bits=words).bits == (rule,)
    assert Settings(exclude="conv1").exclude == Settings(exclude=["conv1"]).exclude == ("conv1",)
    assert (Settings(memory="2GB").memory, Settings(size_budget="1.8 MB").size_budget) == (2 * 10**9, 1_800_000)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.least_wbits > 2])
def test_widths_that_a_method_cannot_do(name):
    with pytest.raises(SettingsError, match=f"method {name} needs weights of 3 bits or more, wbits says 2"):
        Settings(method=name, wbits=2)
    assert MethodSettings(method=name)
    assert BitSettings(wbits=2)


def test_help_explains_every_field():
    explained = re.findall(r"^    (\w+): ", inspect.getdoc(Settings).partition("Attributes:")[2], re.MULTILINE)
    assert sorted(explained) == sorted(field.name for field in dataclasses.fields(Settings))


def test_settings_by_place_say_how() -> None:
    with pytest.raises(TypeError, match=r"by name: Settings\(wbits=4, abits=8\)"):
        Settings(4, 8)  # type: ignore[misc]


def test_auto_is_what_a_run_chooses() -> None:
    assert Settings(finish="auto", samples="auto", memory="auto") == Settings(finish=None)  # type: ignore[arg-type]


def test_help_begins_with_fields_and_their_defaults() -> None:
    shown = str(inspect.signature(Settings))
    assert shown.startswith("(*, ")
    assert "wbits=4" in shown
    assert "Annotated" not in shown
