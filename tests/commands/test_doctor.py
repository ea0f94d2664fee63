"""What doctor finds, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.command_line import run, works
from packaging.requirements import Requirement

from mrecg_onnx.runtimes import environment
from mrecg_onnx.runtimes.environment import TESTED_TORCH, examine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    """Make a package look installed: its metadata, found before all others."""
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)


def one_runtime(monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever this environment has of ONNX Runtime's packages, the first of them alone counts."""
    here = next(name for name in environment.ORT_PACKAGES if environment._version(name) is not None)
    monkeypatch.setattr(environment, "ORT_PACKAGES", (here,))
    return here


def test_what_is_here_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    one_runtime(monkeypatch)
    said = works("doctor").stdout
    for text in ("mrecg-onnx", "python", "torch ", "torchvision", "onnx2torch", "providers", "CPU", "cores", "memory"):
        assert text in said
    assert "instruction sets" in said
    found = json.loads(works("doctor", "--json", "-").stdout)
    assert found["works"] is True
    assert {entry["state"] for entry in found["findings"]} <= {"ok", "note"}


def test_two_packages_of_the_runtime_are_broken_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = one_runtime(monkeypatch)
    other = "onnxruntime-directml"
    monkeypatch.setattr(environment, "ORT_PACKAGES", (here, other))
    pretend(tmp_path, monkeypatch, other, "1.2.3")
    result = run("doctor")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    for text in (here, f"{other} 1.2.3", "overwritten each other", f"pip uninstall -y {here} {other}"):
        assert text in error
    assert "providers" in result.stdout
    assert run("doctor", "-q").stdout == ""
    assert json.loads(run("doctor", "--json", "-").stdout)["works"] is False


def test_what_is_too_old_missing_or_does_not_import_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_runtime(monkeypatch)
    pretend(tmp_path, monkeypatch, "onnx2torch", "0.1")
    (tmp_path / "hollow.py").write_text("raise OSError('no such\\nlibrary')")
    pretend(tmp_path, monkeypatch, "hollow", "3")
    wanted = {"onnx2torch": Requirement("onnx2torch>=1.5"), "nowhere-to-be": Requirement("nowhere-to-be>=2")}
    monkeypatch.setattr(environment, "_requirements", lambda: wanted)
    needed = {"onnx2torch": "onnx2torch", "nowhere-to-be": "nowhere_to_be", "hollow": "hollow"}
    monkeypatch.setattr(environment, "NEEDED", needed)
    found = {one.name: one for one in examine().broken}
    assert (found["onnx2torch"].value, found["onnx2torch"].do) == ("0.1 is too old", "pip install 'onnx2torch>=1.5'")
    assert (found["nowhere-to-be"].value, found["nowhere-to-be"].do) == (
        "is not installed",
        "pip install nowhere-to-be>=2",
    )
    assert found["hollow"].value == "3 cannot be imported: OSError: no such library"
    monkeypatch.setattr(environment, "NEEDED", {})
    monkeypatch.setattr(environment, "WANTED", {"hollow": "nothing is missed"})
    assert not examine().broken
    assert environment._wanted("hollow").value.endswith("no such library: nothing is missed")


def test_a_torch_newer_than_tested_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "torch", "99.1.0")
    found = environment._package("torch", "torch")
    assert found.state == "note"
    assert "newer than the tested" in found.value


def test_the_tested_torch_is_the_one_below_the_cap() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    torch = next(one for one in map(Requirement, stated) if one.name == "torch")
    major, minor = map(int, TESTED_TORCH.split("."))
    assert torch.specifier.contains(f"{major}.{minor}.0")
    assert not torch.specifier.contains(f"{major}.{minor + 1}.0")


def test_missing_extras_say_what_they_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "EXTRAS", {"plot": ("no_such_module", "plots")})
    found = examine().findings[-1]
    assert (found.value, found.state, found.do) == ("is not there: plots", "ok", "pip install 'mrecg-onnx[plot]'")
