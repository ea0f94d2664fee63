"""What every result file says of itself: command, date, versions and kind of machine."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["by", "header"]

_PACKAGES = (
    "mrecg-onnx",
    "torch",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "onnx2torch",
    "onnx-ir",
    "numpy",
    "ai-edge-litert",
)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    return f"{fields.get('model name', '?')} ({', '.join(known)})"


def _gpu() -> str:
    """The GPU that torch sees, "" without."""
    torch = sys.modules.get("torch")
    return f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""


def header() -> dict[str, Any]:
    """Command, date, commit, versions, machine."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = ""
    if git := shutil.which("git"):
        ask = [git, "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    return {
        # Where an environment lies on this machine is nobody's concern: the end of its path says which it was.
        "command": " ".join(["python", *("/".join(w.split("/")[-3:]) if w.startswith("/") else w for w in sys.argv)]),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores{_gpu()}",
    }


def by(found: Mapping[str, Any]) -> str:
    """A page's words on the command that made it, when, where and on which ONNX Runtime."""
    versions = found["versions"]
    runtime = versions.get("onnxruntime", versions.get("onnxruntime-gpu"))
    return f"By `{found['command']}`, {found['date']}, {found['machine']},\nonnxruntime {runtime}."
