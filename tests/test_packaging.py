"""What pip sees: dependencies, the files beside them, one version, and workflows that call the scripts of ``.ci``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Machines that wheels are chosen for: Python, system, processor.
MACHINES = [
    {"python_version": python, "sys_platform": system, "platform_machine": processor, "extra": ""}
    for python in ("3.10", "3.11", "3.13")
    for system, processor in [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
]


def stated(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def read(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def holding(requirements: list[Requirement], machine: dict[str, str]) -> dict[str, str]:
    found = [one for one in requirements if one.marker is None or Marker(str(one.marker)).evaluate(machine)]
    assert len({one.name for one in found}) == len(found)
    return {one.name: str(one.specifier) for one in found}


def test_users_are_bound_from_below_alone():
    """A cap in the metadata cannot be lifted by who has a newer version: caps are for constraints.txt."""
    for one in stated(PROJECT["dependencies"]):
        assert {clause.operator for clause in one.specifier} == {">="}, one


def test_the_constraints_allow_what_is_asked_for():
    asked = {one.name: one for one in stated(PROJECT["dependencies"])}
    constraints = stated(read("constraints.txt"))
    assert {one.name for one in constraints} == {"torch", "torchvision"}
    for one in constraints:
        (lowest,) = (clause.version for clause in asked[one.name].specifier)
        assert one.specifier.contains(lowest)
        assert {clause.operator for clause in one.specifier} == {"<"}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda one: "-".join(one.values()).strip("-"))
def test_the_list_for_cpus_differs_in_the_runtime_alone(machine: dict[str, str]):
    asked = holding(stated(PROJECT["dependencies"]), machine)
    listed = holding(stated(read("requirements-cpu.txt")), machine)
    runtime = asked.pop("onnxruntime-gpu", None) or asked.pop("onnxruntime")
    assert listed.pop("onnxruntime") == runtime
    assert listed == asked


def test_the_product_imports_what_it_asks_for_and_nothing_of_the_tests():
    """Of what only tests need nothing is imported, not even where it happens to be installed."""
    sources = [*(ROOT / "mrecg_onnx").rglob("*.py*"), *(ROOT / "converters").rglob("*.py*")]
    imported = {
        name
        for path in sources
        if path.suffix in {".py", ".pyi"}
        for name in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert not imported & {"onnxscript", "pytest", "hypothesis", "grimp", "networkx", "ruff", "mypy", "sklearn"}
    modules = {one.name.lower().replace("-", "_") for one in stated(PROJECT["dependencies"])}
    modules = {{"pillow": "PIL", "onnxruntime_gpu": "onnxruntime"}.get(name, name) for name in modules}
    # torchvision is asked for by name when the bridge is made: registry.py imports it where it works.
    assert modules - imported <= {"torchvision"}


def test_trying_needs_no_runtime_of_others_and_no_linter():
    names = {one.name for one in stated(PROJECT["dependencies"])}
    assert not names & {"openvino", "ai-edge-litert", "ruff", "mypy", "matplotlib", "jinja2", "onnxscript"}


def test_the_version_stands_in_one_place():
    version = PROJECT["version"]
    latest = next(line for line in read("CHANGELOG.md") if line.startswith("## "))
    assert latest.split()[1] == version
    assert f"version: {version}" in read("CITATION.cff")
    for name in ("mrecg_onnx", "converters"):
        assert [
            path for path in (ROOT / name).rglob("*.py") if f'"{version}"' in path.read_text(encoding="utf-8")
        ] == []


def test_workflows_call_the_scripts_and_leave_none_out():
    workflows = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    called = set(re.findall(r"bash \.ci/(\w+)", workflows))
    scripts = {path.name for path in (ROOT / ".ci").iterdir()}
    # .ci/run is those of one submission in a row, for a machine of one's own.
    assert called == scripts - {"run"}
    assert set(re.findall(r"bash \.ci/(\w+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))) <= called


def test_the_extras_of_workflows_and_scripts_exist():
    extras = set(PROJECT["optional-dependencies"])
    files = [*(ROOT / ".github").rglob("*.yml"), *(ROOT / ".ci").iterdir(), ROOT / "README.md"]
    named = {
        extra
        for path in files
        for group in re.findall(r"(?:\.|wheel|mrecg-onnx)\[([\w,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert {"dev", "test", "report"} <= named <= extras
