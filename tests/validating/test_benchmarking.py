"""Measuring deployment: every figure is there and makes sense, and what cannot be measured is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import conv_relu, residual
from helpers.command_line import classifier, fails, works
from helpers.providers import all_on_cpu
from helpers.stages import simulated
from PIL import Image

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.running import InTurn, Seconds, speedup_text
from mrecg_onnx.validating.benchmarking import benchmark
from mrecg_onnx.writing.qdq import export


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with a float model and its quantized file."""
    monkeypatch.chdir(tmp_path)
    stage = simulated(residual())
    onnx.save(residual(), "fp32.onnx")
    onnx.save(export(stage.graph, stage.simulation, {}).model, "w4a4.onnx")
    return tmp_path


@pytest.mark.slow
def test_every_file_is_measured_in_every_place(here: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = benchmark(
        ["fp32.onnx", "w4a4.onnx"],
        batch=[1, 3],
        threads=[1, 2],
        runs=4,
        progress=lambda now: steps.append((now.done, now.total)),
    )
    places = [(one.threads, one.batch, one.file) for one in found.timings]
    assert places == [(n, b, f) for n in (1, 2) for b in (1, 3) for f in ("fp32.onnx", "w4a4.onnx")]
    for one in found.timings:
        assert 0 < one.low_s <= one.median_s <= one.high_s
        assert one.throughput == pytest.approx(one.batch / one.median_s)
        assert one.runs == 4
        base = next(o for o in found.timings if (o.threads, o.batch) == (one.threads, one.batch))
        assert one.speedup == pytest.approx(base.median_s / one.median_s)
        assert (one.speedup_interval is None) == (one is base)
        if one is not base:
            low, high = one.speedup_interval
            assert 0 < low <= high
    for file in found.files:
        assert file.size_bytes == Path(file.name).stat().st_size
        assert file.load_s > 0
        assert file.memory_bytes > 0
    ran = {kernel.op: kernel.count for kernel in found.files[1].kernels["cpu"]}
    assert ran["QLinearConv"] == 6
    assert all(kernel.provider == "CPUExecutionProvider" for kernel in found.files[1].kernels["cpu"])
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    json.dumps(found.to_json())


def test_a_single_path_is_a_file_and_a_network_of_torch_is_told_what_to_do(here: Path) -> None:
    assert [file.name for file in benchmark("fp32.onnx", runs=1).files] == ["fp32.onnx"]
    with pytest.raises(ModelError, match="export it first"):
        benchmark(torch.nn.ReLU())  # type: ignore[arg-type]


@pytest.mark.slow
def test_models_in_memory_are_called_by_their_places(here: Path) -> None:
    found = benchmark([SimpleNamespace(model=residual(), output=None), "w4a4.onnx"], runs=3)  # as quantize returns it
    assert [file.name for file in found.files] == ["model 1", "w4a4.onnx"] == [t.file for t in found.timings]
    assert found.files[0].size_bytes == pytest.approx(Path("fp32.onnx").stat().st_size, rel=0.05)
    with pytest.raises(ModelError, match=r"model 2: its inputs .* are not those of model 1"):
        benchmark([residual(), classifier()])
    assert sorted(path.name for path in here.iterdir()) == ["fp32.onnx", "w4a4.onnx"]


def test_the_command_does_not_take_the_cpu_for_another_provider(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime registers the provider and gives it no node."""
    all_on_cpu(monkeypatch)
    fails("benchmark", "fp32.onnx", "--provider", "cuda", "--runs", "1", code=2, says=("'cuda' ran none of its nodes",))


def test_models_with_other_inputs_are_refused(here: Path) -> None:
    onnx.save(onnx.compose.add_prefix(conv_relu(), "other_"), "other.onnx")
    with pytest.raises(ModelError, match=r"other\.onnx: its inputs \(other_input .*are not those of fp32\.onnx"):
        benchmark(["fp32.onnx", "other.onnx"], runs=1)
    model = onnx.load("fp32.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, "two.onnx")
    with pytest.raises(ModelError, match="fixed batch 2"):
        benchmark(["fp32.onnx", "two.onnx"], batch=[1], runs=1)
    assert [one.batch for one in benchmark(["two.onnx"], runs=1).timings] == [2]
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "free.onnx")
    with pytest.raises(ModelError, match=r"free\.onnx: input 'input' has free sizes"):
        benchmark(["free.onnx"], runs=1)


@pytest.mark.slow
def test_the_command_shows_tables_and_writes_json_and_a_plot(here: Path) -> None:
    pytest.importorskip("matplotlib")
    result = works(
        "benchmark", "fp32.onnx", "w4a4.onnx", "--batch", "1,2", "--threads", "1", "--runs", "2", "--json", "b.json",
        "--plot", "b.png",
    )  # fmt: skip
    for text in ("size", "load", "memory", "median", "items/s", "against the first", "QLinearConv 6"):
        assert text in result.stdout
    found = json.loads(Path("b.json").read_text())
    assert len(found["timings"]) == 4
    assert np.asarray(Image.open("b.png")).std() > 0


def test_the_command_refuses_in_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails("benchmark", "fp32.onnx", "--provider", "abacus", code=2, says=("abacus", "cpu, cuda"))
    fails("benchmark", "fp32.onnx", "--batch", "1,many", code=2, says=("--batch '1,many'",))
    fails("benchmark", "fp32.onnx", "--batch", "0", code=2, says=("batch is 0",))
    fails("benchmark", "fp32.onnx", "--runs", "0", code=2, says=("runs is 0",))
    fails("benchmark", "fp32.onnx", "fp32.onnx", code=2, says=("twice",))
    fails("benchmark", "fp32.onnx", "--json", "fp32.onnx", code=2, says=("is the model itself",))
    fails("benchmark", "nothing.onnx", code=2, says=("nothing.onnx",))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    fails(
        "benchmark", "fp32.onnx", "--provider", "qnn", code=2, says=("'qnn'", "has no QNNExecutionProvider", "install")
    )


@pytest.mark.slow
def test_a_time_that_may_be_either_has_no_factor(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(models: InTurn, *_: object) -> dict[str, Seconds]:
        shapes = ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0], [1.0, 1.1, 1.0, 1.1, 1.0, 1.1], [1.8, 2.4, 1.9, 2.3, 1.8, 2.2])
        return {name: [[one] for one in shape] for name, shape in zip(models.sessions, shapes, strict=True)}

    monkeypatch.setattr("mrecg_onnx.validating.benchmarking.latency", taken)
    (here / "again.onnx").write_bytes((here / "w4a4.onnx").read_bytes())
    found = benchmark(["fp32.onnx", "w4a4.onnx", "again.onnx"], runs=6)
    shown = [speedup_text(one.speedup, one.speedup_interval) for one in found.timings]
    assert shown == ["the same", "1.90x faster", "same within noise"]
    lines = str(found).splitlines()[3:]
    assert [line.partition(" ms")[2] for line in lines] == ["", ", 1.90x faster", ", same within noise"]
    assert found.to_json()["timings"][2]["speedup_interval"] == pytest.approx((2.0 / 2.4, 2.0 / 1.8))
