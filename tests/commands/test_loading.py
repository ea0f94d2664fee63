"""What is imported is no garbage; what is made later is."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from helpers.command_line import fails

from mrecg_onnx.commands._loading import loading


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_waits_and_goes_on_without_what_was_imported():
    gc.unfreeze()
    with loading():
        assert not gc.isenabled()
        held = [[] for _ in range(5)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(held)
    assert not any(found is held[0] for found in gc.get_objects())


def test_it_goes_on_where_an_import_fails():
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_one_that_waited_before_waits_on():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quantize", "none.onnx", "--calib", "."], "none.onnx: no such file; check the path of the model"),
        (["quantize", "model.onnx", "--calib", "none"], "none: no such file or folder; give a folder of images"),
        (["validate", "model.onnx", "none.onnx", "--data", "."], "none.onnx: no such file"),
        (["benchmark", "model.onnx", "none.onnx"], "none.onnx: no such file"),
        (["inspect", "."], ".: is a folder; give the path of the .onnx file in it"),
        (
            ["validate", "model.onnx", "model.onnx", "--data", ".", "--labels", "gone.csv"],
            "labels gone.csv: no such file or folder",
        ),
        (["runtimes", "model.onnx", "--data", "none"], "none: no such file or folder"),
    ],
)
def test_a_path_where_nothing_is_is_told_before_torch_is_loaded(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, "torch", None)  # who imports it fails
    assert says in fails(*arguments, code=2)
