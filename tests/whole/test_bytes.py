"""What the bytes of a file depend on: the result, and nothing of who asked for it, how, where and when."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers.command_line import classifier, write_images
from helpers.scarce import cache_nothing, have_free
from helpers.targets import RULES

from mrecg_onnx import Settings, quantize
from mrecg_onnx.machine import Run, open_run
from mrecg_onnx.methods import METHODS
from mrecg_onnx.preparation import prepare
from mrecg_onnx.provenance import metadata

SETTINGS = Settings(wbits=4, abits=4, method="brecq", iters=4, batch_size=8, threads=1)


@dataclass
class Here:
    """A model and images in a folder, and the file that the settings make of them."""

    folder: Path
    file: bytes

    def made(self, settings: Settings = SETTINGS, model: Any = None, images: Any = None, **more: Any) -> bytes:
        return made(model or self.folder / "model.onnx", images or self.folder / "images", settings, **more)


def made(model: Any, images: Any, settings: Settings, **more: Any) -> bytes:
    return quantize(model, images, settings, **more).model.SerializeToString()


def stored(file: bytes) -> dict[str, Any]:
    """The settings in a file's metadata."""
    entries = {entry.key: entry.value for entry in onnx.load_from_string(file).metadata_props}
    found: dict[str, Any] = json.loads(entries["mrecg_onnx.settings"])
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Here:
    folder = tmp_path_factory.mktemp("bytes")
    onnx.save(classifier(), folder / "model.onnx")
    write_images(folder / "images", 24)
    torch.set_num_threads(1)
    return Here(folder, made(folder / "model.onnx", folder / "images", SETTINGS))


# --- what was used ---------------------------------------------------------------------------------------------


def test_threads_are_those_that_were_used(here):
    assert stored(here.file)["threads"] == 1
    assert here.made(replace(SETTINGS, threads=None)) == here.file  # torch has one: the process said so
    with open_run("cpu", None) as run:
        ready = prepare(here.folder / "model.onnx", here.folder / "images", replace(SETTINGS, threads=None), run)
    torch.set_num_threads(2)
    assert json.loads(metadata(ready, ready.plan)["mrecg_onnx.settings"])["threads"] == 2


@pytest.mark.slow
def test_threads_that_the_process_has_are_as_good_as_asked_for(here):
    nearest = replace(SETTINGS, method="nearest")
    torch.set_num_threads(2)
    two = here.made(replace(nearest, threads=None))
    torch.set_num_threads(1)
    assert here.made(replace(nearest, threads=2)) == two


def test_device_and_kernels_are_those_that_were_used(here):
    assert (stored(here.file)["device"], stored(here.file)["compile"]) == ("cpu", "off")
    assert here.made(replace(SETTINGS, device="cpu", compile="off")) == here.file


@pytest.mark.parametrize("cached", [False, True])
def test_memory_is_none_of_the_result(here, cached, monkeypatch):
    memory = 8 * 10**9
    if not cached:
        memory = 7 * 10**9
        cache_nothing(monkeypatch)
    assert here.made(replace(SETTINGS, memory=memory)) == here.file


@pytest.mark.parametrize("target", ["openvino", "portable"])
def test_rules_in_a_file_go_by_its_name_wherever_it_lies(here, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        shutil.copy(RULES / f"{target}.toml", f"{folder}/mine.toml")
    files = [here.made(replace(SETTINGS, target=t)) for t in ("one/mine.toml", str(tmp_path / "two" / "mine.toml"))]
    assert files[0] == files[1]
    assert stored(files[0])["target"] == "mine"
    assert b"one/" not in files[0]


def test_units_of_a_file_are_stored_and_not_its_path(here, tmp_path):
    plan = quantize(here.folder / "model.onnx", here.folder / "images", replace(SETTINGS, method="nearest")).plan
    layers = [list(unit.layers) for unit in plan.units]
    joined = [[name for unit in layers[:2] for name in unit], *layers[2:]]
    files = []
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps({"units": joined}))
        files.append(here.made(replace(SETTINGS, method="mrecg", scheme=str(tmp_path / name))))
    assert files[0] == files[1]
    assert stored(files[0])["scheme"] == "file"
    assert str(tmp_path).encode() not in files[0]


# --- where, how and when ---------------------------------------------------------------------------------------


def test_paths_are_none_of_the_result(here, tmp_path, monkeypatch):
    shutil.copytree(here.folder, tmp_path / "else where")
    monkeypatch.chdir(tmp_path / "else where")
    assert here.made(model="model.onnx", images="images") == here.file
    monkeypatch.chdir("images")
    assert here.made(model=Path("../model.onnx"), images=Path()) == here.file


def test_order_in_which_a_folder_lists_its_files_is_none_of_the_result(here, monkeypatch):
    walk = os.walk

    def backwards(*arguments, **options):
        for folder, subfolders, names in walk(*arguments, **options):
            subfolders.reverse()
            yield folder, subfolders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert here.made() == here.file


def test_time_of_the_files_and_umask_are_none_of_the_result(here, tmp_path):
    copy = shutil.copytree(here.folder, tmp_path / "copy")
    for number, file in enumerate(sorted(copy.rglob("*"))):
        os.utime(file, (number, 10**9 + number))
    before = os.umask(0o077)
    try:
        output = tmp_path / "out.onnx"
        here.made(model=copy / "model.onnx", images=copy / "images", output=output)
    finally:
        os.umask(before)
    assert output.read_bytes() == here.file


@pytest.mark.slow
def test_process_and_its_environment_are_none_of_the_result(here, tmp_path):
    """Hashes of text, locale, home, zone, temporary folder, threads from the environment; the command line for the call."""
    program = [
        sys.executable,
        "-m",
        "mrecg_onnx",
        "quantize",
        here.folder / "model.onnx",
        "--calib",
        here.folder / "images",
    ]
    options = ["--method", "brecq", "--iters", "4", "--batch-size", "8", "--wbits", "4", "--abits", "4"]
    (tmp_path / "temporary").mkdir()
    odd = {
        "PYTHONHASHSEED": "12345",
        "LC_ALL": "C",
        "LANG": "de_DE.UTF-8",
        "TZ": "Asia/Kolkata",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / "temporary"),
        "USER": "somebody",
        "OMP_NUM_THREADS": "1",
    }
    output = tmp_path / "out.onnx"
    command = [str(part) for part in (*program, *options, "-o", output)]
    ended = subprocess.run(
        command, env=os.environ | odd, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert output.read_bytes() == here.file


# --- the same again --------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    **{method: {"method": method, "wbits": max(3, row.least_wbits)} for method, row in METHODS.items()},
    "finish": {"finish": 6},
    "augment": {"augment": "crop"},
    "drop and fisher": {"method": "qdrop", "loss": "fisher"},
    "equalized and absorbed": {"equalize": "auto", "absorb": "auto", "relu6": "auto", "bias_correction": True},
    "protected": {"method": "nearest", "protect": 2},
    "average widths": {"method": "nearest", "avg_wbits": 3.5},
    "milp": {"method": "nearest", "allocate": "milp"},
    "modcap": {"method": "mrecg", "scheme": "modcap"},
    "flexround": {"rounding": "flexround"},
}


#: Those that hold most to be shared among images: plain pytest runs them, the slow tests all.
QUICK = {"finish", "lapq", "nearest"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OPTIONS]
)
def test_the_same_settings_make_the_same_bytes_whatever_memory_is_free(here, name, monkeypatch):
    settings, files = replace(SETTINGS, lapq_evaluations=30, **OPTIONS[name]), []
    for free in (10**12, 2 * 10**9, 10**6):
        have_free(monkeypatch, free)
        files.append(here.made(settings))
    assert files[0] == files[1] == files[2]


def test_memory_that_comes_and_goes_is_none_of_the_result(here, monkeypatch):
    settings, rooms = replace(SETTINGS, method="qdrop", finish=6), itertools.cycle([0, 10**9, 40_000, 10**6])
    plenty = here.made(settings)
    monkeypatch.setattr(Run, "cache_budget", lambda _: next(rooms))
    assert [here.made(settings) for _ in range(2)] == [plenty, plenty]
