"""--dry-run: the plan, what would be written, time and memory, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import pytest
from helpers.command_line import fails, files, run, works
from helpers.targets import SAMPLES

import mrecg_onnx

if TYPE_CHECKING:
    from pathlib import Path

CALL = ("quantize", "model.onnx", "--calib", "images", "--threads", "1", "--dry-run")


def test_it_says_the_plan_and_writes_nothing(here: Path) -> None:
    before = files(here)
    said = works(*CALL, "--exclude", "conv4", "--bits", "conv1=W8A8", "--iters", "200", "--report", "page.html").stdout
    assert files(here) == before
    for text in (
        "model_mrecg_w4a4.onnx",
        "model_mrecg_w4a4.toml",
        "page.html",
        "ort, container int8",
        "--exclude 'conv4' matched 1: conv4",
        "--bits 'conv1' matched 1: conv1",
        "1 layer in float",
        "W8A8",
        "float\n",
        "of processor time",
        "about ",
        "mrecg, ",
        "probing run",
    ):
        assert text in said, text
    assert re.search(r"memory +about [\d.]+ [MG]B", said)
    assert "validate" not in said


def test_a_result_that_is_there_is_named_and_not_refused(here: Path) -> None:
    (here / "model_mrecg_w4a4.onnx").write_bytes(b"mine")
    assert "model_mrecg_w4a4.onnx (is there: only with --force)" in works(*CALL).stdout
    assert (here / "model_mrecg_w4a4.onnx").read_bytes() == b"mine"
    fails(*CALL, "-o", "model.onnx", code=2, says=("is the model itself",))
    assert run(*CALL[:3], "nowhere", "--dry-run").exit_code == 2


def test_json_goes_to_standard_output_and_to_no_file(here: Path) -> None:
    before = files(here)
    result = run(*CALL, "--json", "-", "-q", "--method", "brecq", "--iters", "100", "--finish", "7")
    found = json.loads(result.stdout)
    assert found["steps"] == 7
    assert found["iters"] == 100 * len(found["plan"]["units"])
    assert set(found["cpu_seconds"]) >= {
        "start",
        "load",
        "calibrate",
        "read",
        "reconstruct",
        "finish",
        "export",
        "verify",
    }
    assert all(spent >= 0 for spent in found["seconds"].values())
    assert found["memory"] > 10**8
    works(*CALL, "--json", "found.json")
    assert files(here) == before


@pytest.mark.parametrize(
    "method",
    [
        *("mrecg", "nearest", "lapq"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("brecq", "brecq-paper", "bit-split", "adaround", "aciq")),
    ],
)
def test_every_method_has_an_estimate(here: Path, method: str) -> None:
    settings = mrecg_onnx.Settings(method=method, iters=100, threads=1)
    found = mrecg_onnx.estimate("model.onnx", "images", settings)
    assert found.settings.method == method
    assert found.settings.iters == 100
    assert found.images == sum(path.is_file() for path in (here / "images").rglob("*"))
    assert sum(found.cpu_seconds.values()) > 0
    assert (found.iters > 0) is (method in {"mrecg", "brecq", "brecq-paper", "adaround"})


@pytest.mark.parametrize(
    "more",
    [
        {"max_drop": 1.0},
        {"avg_wbits": 4.0},
        {"protect": 1},
        {"bias_correction": True},
        {"loss": "fisher"},
        {"stop": "auto"},
        {"scheme": "modcap"},
        {"augment": "flip"},
    ],
)
def test_options_that_add_work_have_one_too(here: Path, more: dict[str, object]) -> None:
    found = mrecg_onnx.estimate("model.onnx", "images", mrecg_onnx.Settings(iters=60, threads=1, **more))  # type: ignore[arg-type]
    assert sum(found.seconds.values()) > 0
    assert {name: getattr(found.settings, name) for name in more} == more


def test_more_iterations_and_steps_take_longer(here: Path) -> None:
    def spent(**more: int) -> float:
        settings = mrecg_onnx.Settings(method="brecq", threads=1, **more)  # type: ignore[arg-type]
        return sum(mrecg_onnx.estimate("model.onnx", "images", settings).cpu_seconds.values())

    short = spent(iters=50)
    assert spent(iters=50_000) > 20 * short
    assert spent(iters=50, finish=50_000) > 20 * short


def test_images_that_would_be_made_are_counted() -> None:
    model, settings = SAMPLES / "digits.onnx", mrecg_onnx.Settings(method="nearest", threads=1, samples=64)
    found = mrecg_onnx.estimate(model, "zeroq", settings)
    longer = mrecg_onnx.estimate(model, "zeroq", dataclasses.replace(settings, zeroq_iters=20_000))
    assert found.images == longer.images == found.settings.samples == 64
    assert longer.cpu_seconds["zeroq"] > 8 * found.cpu_seconds["zeroq"] > 0
