"""What doctor finds, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import run, works
from packaging.requirements import Requirement

from mrecg_onnx.running import environment
from mrecg_onnx.running.environment import TESTED_TORCH, doctor

ROOT = Path(__file__).resolve().parents[2]


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, module: str = "") -> None:
    """Make a package look installed: its metadata, found before all others."""
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)


def runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make packages of ONNX Runtime look installed, in a folder in front of the one that this environment has."""
    for name, version in versions.items():
        pretend(tmp_path, monkeypatch, name.replace("_", "-"), version, "onnxruntime")


def asked_for() -> Requirement:
    return next(one for name, one in environment._requirements().items() if name.startswith("onnxruntime"))


def test_what_is_here_is_listed() -> None:
    said = works("doctor").stdout
    for text in ("mrecg-onnx", "python", "torch ", "torchvision", "onnx2torch", "providers", "CPU", "cores", "memory"):
        assert text in said
    assert "instruction sets" in said
    found = json.loads(works("doctor", "--json", "-").stdout)
    assert found["works"] is True
    assert {entry["state"] for entry in found["findings"]} <= {"ok", "note"}


def test_two_packages_of_the_runtime_are_broken_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes(tmp_path, monkeypatch, onnxruntime="99.1.0", onnxruntime_gpu="99.2.3")
    result = run("doctor")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    for text in (
        "onnxruntime 99.1.0",
        "onnxruntime-gpu 99.2.3",
        "overwritten each other",
        "pip uninstall -y onnxruntime",
    ):
        assert text in error
    assert f"pip install --no-deps '{asked_for().name}>=" in error
    assert "providers" in result.stdout
    assert run("doctor", "-q").stdout == ""
    assert json.loads(run("doctor", "--json", "-").stdout)["works"] is False


def test_packages_in_folders_of_their_own_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "onnxruntime-qnn", "2.7.0", "onnxruntime_qnn")
    elsewhere = tmp_path / "first"
    elsewhere.mkdir()
    here = environment._owners("onnxruntime")
    assert len(here) == 1
    assert "onnxruntime-qnn" not in here
    runtimes(elsewhere, monkeypatch, onnxruntime_rocm="99.0")
    assert environment._owners("onnxruntime") == {"onnxruntime-rocm": "99.0"}


def test_another_package_of_the_runtime_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes(tmp_path, monkeypatch, onnxruntime_rocm="99.1.0")
    found = next(one for one in doctor().findings if one.name == "onnxruntime")
    assert (found.state, found.value) == ("ok", f"onnxruntime-rocm 99.1.0, in place of {asked_for().name}")


def test_a_runtime_that_is_too_old_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes(tmp_path, monkeypatch, onnxruntime_rocm="1.0.0")
    (found,) = doctor().broken
    assert found.value == "onnxruntime-rocm 1.0.0 is too old"
    assert found.do == f"pip install --upgrade --no-deps 'onnxruntime-rocm{asked_for().specifier}'"


def test_a_package_whose_folder_was_taken_away_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left where two were installed and one was removed: an empty folder, which Python imports."""
    runtimes(tmp_path, monkeypatch, onnxruntime="99.1.0")
    monkeypatch.setattr(environment.importlib, "import_module", lambda _: object())
    (found,) = environment._runtime()
    assert found.state == "broken"
    assert "99.1.0 cannot be imported: AttributeError" in found.value
    assert found.do.startswith("pip install --force-reinstall --no-deps 'onnxruntime>=")


def test_what_is_too_old_missing_or_does_not_import_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "onnx2torch", "0.1")
    (tmp_path / "hollow.py").write_text("raise OSError('no such\\nlibrary')")
    pretend(tmp_path, monkeypatch, "hollow", "3")
    wanted = {"onnx2torch": Requirement("onnx2torch>=1.5"), "nowhere-to-be": Requirement("nowhere-to-be>=2")}
    monkeypatch.setattr(environment, "_requirements", lambda: wanted)
    needed = {"onnx2torch": "onnx2torch", "nowhere-to-be": "nowhere_to_be", "hollow": "hollow"}
    monkeypatch.setattr(environment, "NEEDED", needed)
    found = {one.name: one for one in doctor().broken}
    assert (found["onnx2torch"].value, found["onnx2torch"].do) == ("0.1 is too old", "pip install 'onnx2torch>=1.5'")
    assert (found["nowhere-to-be"].value, found["nowhere-to-be"].do) == (
        "is not installed",
        "pip install 'nowhere-to-be>=2'",
    )
    assert found["hollow"].value == "3 cannot be imported: OSError: no such library"
    monkeypatch.setattr(environment, "NEEDED", {})
    monkeypatch.setattr(environment, "WANTED", {"hollow": "nothing is missed"})
    assert not doctor().broken
    assert environment._wanted("hollow").value.endswith("no such library: nothing is missed")


def test_a_torch_newer_than_tested_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "torch", "99.1.0")
    found = environment._package("torch", "torch")
    assert found.state == "note"
    assert "newer than the tested" in found.value


def test_the_tested_torch_is_the_one_below_the_cap() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    stated = {one.name: one for one in map(Requirement, [line for line in lines if line and not line.startswith("#")])}
    major, minor = map(int, TESTED_TORCH.split("."))
    assert stated["torch"].specifier.contains(f"{major}.{minor}.0")
    assert not stated["torch"].specifier.contains(f"{major}.{minor + 1}.0")


def test_missing_extras_say_what_they_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        environment, "EXTRAS", {"plot": (("no_such_module",), "plots"), "page": (("sys", "no_such_module"), "pages")}
    )
    *_, found, page = doctor().findings
    assert page.value == "is not there (no_such_module): pages"
    assert (found.value, found.state, found.do) == ("is not there: plots", "ok", "pip install 'mrecg-onnx[plot]'")
