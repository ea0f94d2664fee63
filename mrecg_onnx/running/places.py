"""Where runtimes live: this environment, others by their Python, packages of npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.files import temporary_folder
from mrecg_onnx.running.attempts import reason
from mrecg_onnx.running.catalogue import RUNTIMES, Runtime
from mrecg_onnx.running.sessions import PROVIDERS

__all__ = ["Place", "environment_of", "find_places", "program_file"]

#: Providers that a build for GPUs has on every machine, and that load for long, to fail, where there is none.
NVIDIA = frozenset(PROVIDERS[name][0] for name in ("cuda", "tensorrt"))
#: Seconds in which an environment says what it has.
ASKING_S = 120
_FILES = {"python": ("worker.py", "openers.py", "parents.py"), "node": ("worker.cjs",)}


@dataclass(frozen=True)
class Place:
    """A runtime in an environment.

    Attributes:
        row: the runtime.
        program: what starts it.
        version: that of its package, empty where it has none.
        environment: path of the Python or folder of npm packages.
        lacks: what it needs and the machine does not have; empty where it can be tried.
    """

    row: Runtime
    program: str
    version: str
    environment: str
    lacks: str = ""


def find_places(rows: Sequence[Runtime], pythons: Sequence[str]) -> list[Place]:
    """Where ``rows`` are, each version once, in the order of ``pythons``.

    Raises:
        SettingsError: one of ``pythons`` cannot be used.
    """
    found_at = [str(Path(shutil.which(python) or python).absolute()) for python in pythons]
    there = {python: _asked(python) for python in found_at}
    found = []
    for row in rows:
        versions: set[str] = set()
        for place in _node_places(row) if row.program == "node" else _python_places(row, there):
            if not place.version or place.version not in versions:
                versions.add(place.version)
                found.append(place)
    return found


def program_file(program: str, folder: Path) -> str:
    """Copy the worker of ``program`` ("python" or "node") into ``folder``: its name there.

    Copied, since beside it here lie modules whose names others may have, too.
    """
    for name in _FILES[program]:
        (folder / name).write_bytes(resources.files("mrecg_onnx.running").joinpath(name).read_bytes())
    return _FILES[program][0]


def _asked(python: str) -> dict[str, Any]:
    """Modules, versions and ONNX Runtime's providers of an environment."""
    modules = sorted({module for row in RUNTIMES.values() for module in row.modules})
    try:
        with temporary_folder() as folder:
            ended = subprocess.run(  # noqa: S603 - a Python that the caller names
                [python, program_file("python", folder), "--installed", *modules], capture_output=True, text=True,
                errors="replace", check=False, timeout=ASKING_S, cwd=folder, stdin=subprocess.DEVNULL, env=environment_of(python),
            )  # fmt: skip
        answer = _read_answer(ended.stdout)
    except OSError as error:
        raise SettingsError(f"--python {python}: cannot be started: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"--python {python}: does not answer within {ASKING_S} s") from error
    except (IndexError, ValueError, RecursionError) as error:
        said = reason(ended.stderr, crashed=True) or "it says nothing"
        raise SettingsError(f"--python {python}: cannot be used, it needs numpy: {said}") from error
    return answer


def _read_answer(printed: str) -> dict[str, Any]:
    """The last line that an environment printed.

    Raises:
        IndexError: it printed nothing.
        ValueError: it is not what ``worker.py`` prints.
    """
    answer = json.loads(printed.splitlines()[-1])
    parts = answer if isinstance(answer, dict) else {}
    if [type(parts.get(part)) for part in ("modules", "versions", "providers", "nvidia")] != [list, dict, list, bool]:
        raise ValueError("no answer of worker.py")
    return parts


def _python_places(row: Runtime, there: Mapping[str, Mapping[str, Any]]) -> Iterator[Place]:
    for python, has in there.items():
        version = next((has["versions"][name] for name in row.distributions if name in has["versions"]), "")
        provider = row.options.get("provider")
        if set(row.modules) <= set(has["modules"]) and (provider is None or provider in has["providers"]):
            lacks = "there is no NVIDIA GPU" if provider in NVIDIA and not has["nvidia"] else ""
            yield Place(row, python, version, python, lacks)


def _node_places(row: Runtime) -> Iterator[Place]:
    node = shutil.which("node")
    folders = [*filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)), str(Path("node_modules").absolute())]
    for folder in folders if node else []:
        file = Path(folder) / row.opener / "package.json"
        if file.is_file():
            try:
                version = str(json.loads(file.read_text(encoding="utf-8"))["version"])
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                version = ""  # node says what is wrong with it
            yield Place(row, str(node), version, folder)


def environment_of(python: str) -> dict[str, str]:
    """Variables for a Python: those of this process, less what leads another one to the packages of this."""
    drop = set() if python == sys.executable else {"PYTHONPATH", "PYTHONHOME"}
    return {name: value for name, value in os.environ.items() if name not in drop}
