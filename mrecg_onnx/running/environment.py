"""What this installation and this machine have, and what of it is broken, before anybody waits for a run to find out."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mrecg_onnx.converters.results import Result
from mrecg_onnx.machine import cores

__all__ = ["TESTED_TORCH", "Environment", "Finding", "doctor"]

PRODUCT = "mrecg-onnx"
#: The module of ONNX Runtime, which several packages bring.
RUNTIME = "onnxruntime"
#: The newest release of torch that all tests ran with.
TESTED_TORCH = "2.13"
#: Packages without which nothing works, and the module that shows whether one does; onnx2torch as the product imports it.
NEEDED = {"torch": "torch", "onnx": "onnx", "onnx2torch": "mrecg_onnx.converters.registry", "numpy": "numpy"}
#: What the product can do without, and what is missed then.
WANTED = {"torchvision": "two operators of detectors (NonMaxSuppression, RoiAlign) stay with ONNX Runtime"}
#: Extras of the product: modules that tell whether one is there, and what it gives.
EXTRAS = {
    "plot": (("matplotlib",), "plots of compare and benchmark"),
    "report": (("jinja2", "matplotlib"), "pages of --report"),
    "detection": (("pycocotools",), "the metrics mAP and mAP50"),
    "openvino": (("openvino",), "files for --target openvino run on OpenVINO itself"),
    "litert": (("ai_edge_litert",), "convert --to tflite"),
}
#: Instruction sets that integer kernels gain from, by the flag that Linux has for them.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_int8": "AMX INT8",
    "asimddp": "DOT",
    "i8mm": "I8MM",
    "sve": "SVE",
}
#: One of these multiplies bytes without a detour.
_BYTES = frozenset({"AVX-512 VNNI", "AVX VNNI", "AMX INT8", "DOT", "I8MM"})


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        name: what was looked at.
        value: what there is.
        state: "ok", "note" (it works, and something is to be known) or "broken".
        do: what to do about it, "" where nothing is to be done.
    """

    name: str
    value: str
    state: str = "ok"
    do: str = ""


@dataclass(frozen=True, repr=False)
class Environment(Result):
    """What :func:`doctor` found, in the order in which it matters."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What keeps the product from working."""
        return tuple(one for one in self.findings if one.state == "broken")

    def __str__(self) -> str:
        """Whether it works, and every finding with what to do."""
        lines = [
            "works" if not self.broken else f"{len(self.broken)} broken: " + ", ".join(f.name for f in self.broken)
        ]
        for one in self.findings:
            mark = "" if one.state == "ok" else f" ({one.state})"
            lines.append(f"{one.name}: {one.value}{mark}" + (f": {one.do}" if one.do else ""))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {"works": not self.broken, "findings": [asdict(one) for one in self.findings]}


def doctor() -> Environment:
    """Look at the packages, the runtime and the machine; nothing is installed or changed."""
    runtime = _runtime()
    packages = [_package(*entry) for entry in NEEDED.items()] + [_wanted(name) for name in WANTED]
    machine = [_threads(), _instructions(), _memory(), _cuda()]
    return Environment((*_versions(), *packages, *runtime, *machine, *map(_extra, EXTRAS)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, Requirement]:
    """What the installed product asks for here, by package; of a checkout that is not installed nothing is known."""
    try:
        found = [Requirement(text) for text in metadata.requires(PRODUCT) or ()]
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})}


def _versions() -> list[Finding]:
    from mrecg_onnx import __version__  # noqa: PLC0415 - the roof, for its version alone

    where = f"{platform.system()} {platform.machine()}"
    return [Finding(PRODUCT, __version__), Finding("python", f"{platform.python_version()}, {where}, {sys.executable}")]


def _package(name: str, module: str) -> Finding:
    """A package that is needed: whether it is there, new enough and can be imported."""
    version, wanted = _version(name), _requirements().get(name)
    if version is None:
        return Finding(name, "is not installed", "broken", f"pip install '{wanted or name}'")
    least = [spec for spec in wanted.specifier if spec.operator == ">="] if wanted is not None else []
    if any(not spec.contains(version, prereleases=True) for spec in least):
        return Finding(name, f"{version} is too old", "broken", f"pip install '{wanted}'")
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        again = f"pip install --force-reinstall '{wanted or name}'"
        return Finding(name, f"{version} cannot be imported: {_said(error)}", "broken", again)
    if name == "torch" and Version(version).release[:2] > Version(TESTED_TORCH).release:
        return Finding(
            name, f"{version}, newer than the tested {TESTED_TORCH}", "note", "if something is odd, try that one"
        )
    return Finding(name, version)


def _wanted(name: str) -> Finding:
    """A package that the product can do without."""
    found = _package(name, name)
    if found.state != "broken":
        return found
    matching = f"install the {name} that is made for this torch, from the same index"
    return Finding(name, f"{found.value}: {WANTED[name]}", "note", matching)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _runtime() -> list[Finding]:
    """ONNX Runtime: which of its packages, whether it is the only one, new enough and can be imported, and its providers.

    Any of them will do: the metadata can name but one for a machine, and who has another keeps it.
    """
    there = _owners(RUNTIME)
    shown = ", ".join(f"{name} {version}" for name, version in there.items())
    wanted = next((one for name, one in _requirements().items() if name.startswith(RUNTIME)), Requirement(RUNTIME))
    if not there:
        return [Finding(RUNTIME, "is not installed", "broken", f"pip install '{wanted}'")]
    found = []
    if len(there) > 1:
        again = wanted.name if wanted.name in there else next(reversed(there))
        found.append(
            Finding(
                RUNTIME,
                f"{shown} lie in one folder and have overwritten each other's files",
                "broken",
                f"keep one: pip uninstall -y {' '.join(there)} && pip install --no-deps '{again}{wanted.specifier}'",
            )
        )
    elif not wanted.specifier.contains(next(iter(there.values())), prereleases=True):
        newer = f"pip install --upgrade --no-deps '{next(iter(there))}{wanted.specifier}'"
        found.append(Finding(RUNTIME, f"{shown} is too old", "broken", newer))
    try:
        runtime = importlib.import_module(RUNTIME)
        providers = [name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()]
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        again = f"pip install --force-reinstall --no-deps '{next(iter(there))}{wanted.specifier}'"
        return [*found, Finding(RUNTIME, f"{shown} cannot be imported: {_said(error)}", "broken", again)]
    instead = f", in place of {wanted.name}" if wanted.name not in there else ""
    found.extend([] if found else [Finding(RUNTIME, f"{shown}{instead}")])
    return [*found, Finding("providers", ", ".join(providers))]


def _owners(module: str) -> dict[str, str]:
    """The installed packages, with their versions, whose files lie in the folder that ``import module`` takes.

    Names do not tell: ``onnxruntime-qnn`` was one of them, and has a folder of its own since version 2.
    """
    folders: dict[Path, dict[str, str]] = {}
    for one in metadata.distributions():
        top = one.read_text("top_level.txt")
        inside = module in top.split() if top is not None else f"{module}/__init__.py" in map(str, one.files or ())
        if inside:
            folder = Path(str(one.locate_file(module))).resolve()
            folders.setdefault(folder, {})[canonicalize_name(one.metadata["Name"])] = one.version
    return next(iter(folders.values()), {})


def _threads() -> Finding:
    torch = sys.modules.get("torch")
    used = f", torch uses {torch.get_num_threads()}" if torch is not None else ""
    limits = [f"{n}={os.environ[n]}" for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n in os.environ]
    return Finding("cores", f"{cores()} of {os.cpu_count()}{used}{''.join(f', {text}' for text in limits)}")


def _instructions() -> Finding:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    flags = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    known = [title for flag, title in INSTRUCTIONS.items() if flag in flags]
    if not flags:
        return Finding("instruction sets", f"not known on {platform.system()}")
    if not _BYTES & set(known):
        slower = "integer kernels gain less without VNNI or DOT: `mrecg-onnx benchmark` says how much"
        return Finding("instruction sets", ", ".join(known) or "none that matter", "note", slower)
    return Finding("instruction sets", ", ".join(known))


def _memory() -> Finding:
    found = psutil.virtual_memory()
    return Finding(
        "memory", f"{found.available / 1e9:.1f} GB free of {found.total / 1e9:.1f}; a run stays within half of that"
    )


def _cuda() -> Finding:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use: runs are on the CPU")
    return Finding("GPU", torch.cuda.get_device_name())


def _extra(name: str) -> Finding:
    modules, gives = EXTRAS[name]
    lacks = [module for module in modules if find_spec(module) is None]
    if not lacks:
        return Finding(f"extra {name}", f"is there: {gives}")
    without = f" ({', '.join(lacks)})" if len(lacks) < len(modules) else ""
    return Finding(f"extra {name}", f"is not there{without}: {gives}", "ok", f"pip install '{PRODUCT}[{name}]'")
