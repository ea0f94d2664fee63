"""Calibration without data: images made from BatchNormalization statistics, and what every method makes of them."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers.architectures import Graph, residual
from PIL import Image

import mrecg_onnx
from mrecg_onnx.calibrating.zeroq import SyntheticDataset, _batches, make_images
from mrecg_onnx.commands import main
from mrecg_onnx.converters import normalize, to_torch
from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.metadata_keys import CALIBRATION_KEY
from mrecg_onnx.data import Preprocess
from mrecg_onnx.machine import parallel
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.network.steps import Network
from mrecg_onnx.planning import graph_inputs
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE, CHANNELS = 12, 3
FAST: dict[str, Any] = {"samples": 24, "batch_size": 12, "zeroq_iters": 60}


def real(count: int, seed: int = 0) -> np.ndarray:
    """Inputs as the network below was made for: smooth, off centre, each channel with a mean and a scale of its own."""
    generator = np.random.default_rng(seed)
    coarse = generator.standard_normal((count, CHANNELS, 3, 3))
    smooth = coarse.repeat(4, 2).repeat(4, 3) + 0.2 * generator.standard_normal((count, CHANNELS, SIZE, SIZE))
    values = smooth * np.array([2.0, 0.5, 1.0])[:, None, None] + np.array([1.5, -1.0, 0.5])[:, None, None]
    return values.astype(np.float32)


@lru_cache
def _network(input_shape: tuple[int | str, ...] = ("N", CHANNELS, SIZE, SIZE)) -> bytes:
    """Three convolutions with BatchNormalization whose statistics are those of :func:`real`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.from_numpy(real(128))
    g = Graph(seed=1)
    name = g.input(CHANNELS, SIZE)
    g.inputs[0] = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, list(input_shape))
    if input_shape[-1] == CHANNELS:
        name = g.op("Transpose", [name], "turn", perm=[0, 3, 1, 2])
    width = CHANNELS
    for i, out in enumerate((8, 12, 12)):
        weight = torch.randn(out, width, 3, 3, generator=generator) * (2 / (9 * width)) ** 0.5
        x = torch.nn.functional.conv2d(x, weight, padding=1)
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        gamma, beta = 0.5 + torch.rand(out, generator=generator), 0.3 * torch.randn(out, generator=generator)
        weights = [g.constant(f"c{i}.weight", weight.numpy())]
        name = g.op("Conv", [name, *weights], f"c{i}", pads=[1] * 4, kernel_shape=[3, 3])
        values = zip(("gamma", "beta", "mean", "var"), (gamma, beta, mean, var), strict=True)
        name = g.op("BatchNormalization", [name, *(g.constant(f"n{i}.{k}", v.numpy()) for k, v in values)], f"n{i}")
        name = g.relu(name, f"r{i}")
        x = torch.relu(torch.nn.functional.batch_norm(x, mean, var, gamma, beta))
        width = out
    g.classifier(name, width)
    return g.model().SerializeToString()


def network(*shape: int | str) -> onnx.ModelProto:
    return onnx.load_from_string(_network(shape) if shape else _network())


@cache
def default() -> SyntheticDataset:
    """Made once for all tests that only look at them."""
    return made()


def made(model: onnx.ModelProto | None = None, **settings: Any) -> SyntheticDataset:
    model = model or network()
    chosen = Settings(**FAST | settings)
    return make_images(model, graph_inputs(normalize(model)), chosen, torch.device("cpu"))


def images(data: SyntheticDataset) -> np.ndarray:
    return data.load()[data.inputs[0].name]


def distance(x: np.ndarray) -> float:
    """Of the statistics that the second and third BatchNormalization see on ``x`` from those stored, in their own units."""
    net = Network(to_torch(normalize(network(), keep_batchnorm=True)))
    norms = [step for step in net.steps if step.op == "BatchNormalization"][1:]
    seen = net.run({"input": torch.from_numpy(x)}, keep=[step.arguments[0] for step in norms])
    total = 0.0
    for step in norms:
        source, _, _, mean, var = step.arguments
        got_var, got_mean = torch.var_mean(seen[source], (0, 2, 3), correction=0)
        mean, std = net.constants[mean], net.constants[var].sqrt()
        total += float(((got_mean - mean) / std).square().mean() + (got_var.sqrt() / std - 1).square().mean())
    return total


# --- the images --------------------------------------------------------------------------------------------------


def test_images_come_near_to_the_stored_statistics():
    data = made(zeroq_iters=100)
    assert data.origin["distance"] < 0.1 * data.origin["distance_of_noise"]
    noise = np.random.default_rng(0).standard_normal((24, CHANNELS, SIZE, SIZE)).astype(np.float32)
    # On what was really seen the distance is next to nothing; noise is far from it, made images are near.
    assert distance(real(64, seed=9)) < 0.05
    assert distance(images(data)) < 0.2 * distance(noise)


def test_more_iterations_come_nearer():
    few, many = (made(zeroq_iters=n).origin["distance"] for n in (5, 100))
    assert many < few


def test_the_same_settings_give_the_same_images_and_other_seeds_others():
    data, again, other = default(), made(), made(seed=1)
    first = images(data)
    assert np.array_equal(first, images(again))
    assert not np.allclose(first, images(other))
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not np.allclose(first[:12], first[12:])


@pytest.mark.parametrize(("samples", "size", "parts"), [(64, 32, [32, 32]), (33, 32, [17, 16]), (5, 32, [5])])
def test_batches_are_of_equal_size(samples, size, parts):
    assert _batches(samples, size) == parts


def test_the_number_of_images_is_that_asked_for():
    data = made(samples=7, zeroq_iters=2)
    assert len(data) == 7
    assert images(data).shape == (7, CHANNELS, SIZE, SIZE)
    assert images(data).dtype == np.float32
    assert made(samples=None, zeroq_iters=1).origin["images"] == 256


def test_channels_may_come_last():
    data = made(network("N", SIZE, SIZE, CHANNELS), zeroq_iters=60)
    assert images(data).shape == (24, SIZE, SIZE, CHANNELS)
    assert data.preprocess.layout == "nhwc"
    assert data.origin["distance"] < 0.3 * data.origin["distance_of_noise"]


def test_free_sizes_come_from_crop():
    model = network("N", CHANNELS, "H", "W")
    with pytest.raises(DataError, match=r"height and width .* are free: say which to use with --crop"):
        made(model)
    assert images(made(model, preprocess=Preprocess(crop=(8, 10)), zeroq_iters=1)).shape == (24, CHANNELS, 8, 10)


def test_the_input_is_expected_in_the_units_that_preprocessing_gives_it():
    g = Graph()
    x = g.conv(g.input(CHANNELS, SIZE), CHANNELS, 4)
    values = [g.constant(f"bn.{k}", np.full(4, v, np.float32)) for k, v in (("g", 1), ("b", 0), ("m", 0), ("v", 1))]
    g.classifier(g.op("BatchNormalization", [x, *values], "bn"), 4)
    zero = Preprocess(mean=(0.0,), std=(1.0,), scale=1.0)
    pixels = images(made(g.model(), preprocess=zero, zeroq_iters=1))
    assert 90 < pixels.mean() < 140
    assert 50 < pixels.std() < 75


def test_shares_are_parts_of_one_set():
    data = default()
    parts = [data.shard(rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [12, 12]
    assert parts[0].whole == 24
    assert np.array_equal(images(parts[1]), images(data)[1::2])
    assert parts[0].origin == data.origin


def test_the_first_process_makes_the_images_for_all(monkeypatch):
    """The others do not start: they get what the first one made."""
    first = default()

    class Second(parallel.Workers):
        def once(self, make):
            return images(first), first.origin

    monkeypatch.setattr(
        "mrecg_onnx.calibrating.zeroq._generate", lambda *_: pytest.fail("a second process made images")
    )
    model = network()
    got = make_images(
        model, graph_inputs(normalize(model)), Settings(**FAST), torch.device("cpu"), workers=Second(1, 2)
    )
    assert np.array_equal(images(got), images(first))


def test_made_images_are_kept_and_found_again(tmp_path, monkeypatch):
    model = network()

    def make(**settings: Any) -> SyntheticDataset:
        inputs = graph_inputs(normalize(model))
        return make_images(model, inputs, Settings(**FAST | settings), torch.device("cpu"), keep=tmp_path)

    first = make()
    other = make(seed=3)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("mrecg_onnx.calibrating.zeroq._generate", lambda *_: pytest.fail("made again"))
    assert np.array_equal(images(make()), images(first))
    assert np.array_equal(images(make(seed=3)), images(other))
    assert make().origin == first.origin
    for path in tmp_path.iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"zeroq-.*cannot be read .* remove it"):
        make()


# --- errors ------------------------------------------------------------------------------------------------------


def test_without_batchnorm_the_way_out_is_said():
    with pytest.raises(DataError, match=r"no BatchNormalization left .* export it without folding .* or give images"):
        made(residual())


def several() -> onnx.ModelProto:
    g = Graph()
    g.classifier(g.op("Add", [g.input(), g.input(name="second")], "add"), 8)
    return g.model()


def test_models_with_several_inputs_are_refused():
    with pytest.raises(DataError, match=r"zeroq makes images for models with one float input, this one has .*second"):
        made(several())


def test_networks_that_overflow_are_told():
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name == "c1.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, 1e30, np.float32), "c1.weight"))
    with pytest.raises(DataError, match="zeroq: the network computes NaN or Inf"):
        made(model)


# --- whole runs --------------------------------------------------------------------------------------------------


def quantized(calib: Any, **settings: Any) -> QuantizationResult:
    return quantize(network(), calib, Settings(**{"method": "nearest", "wbits": 8, "abits": 4, **FAST, **settings}))


def accuracy(result: QuantizationResult) -> float:
    """Output SQNR on real inputs, in dB."""
    fed = {"input": real(128, seed=7)}
    return sqnr_db(*(run_padded(open_session(m, level="off"), fed)["output"] for m in (network(), result.model)))


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_calibration_by_zeroq_beats_noise(tmp_path):
    noise = np.random.default_rng(0).standard_normal((24, CHANNELS, SIZE, SIZE)).astype(np.float32)
    by_noise = accuracy(quantized(saved(tmp_path / "noise.npy", noise)))
    by_zeroq = accuracy(quantized("zeroq", zeroq_iters=100))
    by_real = accuracy(quantized(saved(tmp_path / "real.npy", real(24))))
    assert by_zeroq > by_noise + 1.0
    assert by_real > by_noise


@pytest.mark.parametrize("method", ["adaround", "brecq", "qdrop", "mrecg", "bit-split"])
def test_every_method_takes_made_images(method):
    result = quantized("zeroq", method=method, wbits=4, iters=5)
    assert result.verification.warnings == ()
    assert result.images == 24
    assert result.seconds["zeroq"] > 0


def test_the_file_says_that_calibration_was_synthetic(tmp_path):
    output = tmp_path / "out.onnx"
    result = quantize(network(), "zeroq", Settings(method="nearest", **FAST), output=output)
    entries = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    said = json.loads(entries[CALIBRATION_KEY])
    assert (said["data"], said["images"], said["iterations"], said["layers"]) == ("zeroq", 24, 60, 3)
    assert said == result.origin == result.to_json()["origin"]
    assert json.loads(entries["mrecg_onnx.settings"])["zeroq_iters"] == 60
    assert json.loads(entries["mrecg_onnx.preprocess"])["crop"] == [SIZE, SIZE]
    plain = quantized(saved(tmp_path / "real.npy", real(8)))
    assert CALIBRATION_KEY not in {entry.key for entry in plain.model.metadata_props}
    assert plain.origin is None


def test_a_stopped_run_goes_on_with_the_same_images(tmp_path, monkeypatch):
    settings = {"method": "brecq", "wbits": 4, "iters": 5}
    whole = quantize(network(), "zeroq", Settings(**FAST, **settings), checkpoint=tmp_path)
    monkeypatch.setattr("mrecg_onnx.calibrating.zeroq._generate", lambda *_: pytest.fail("made again"))
    again = quantize(network(), "zeroq", Settings(**FAST, **settings), checkpoint=tmp_path)
    assert again.model.graph == whole.model.graph


def test_progress_is_told():
    seen: list[Progress] = []
    quantize(network(), "zeroq", Settings(method="nearest", **FAST), progress=seen.append)
    told = [p for p in seen if p.stage == "zeroq" and p.total]
    assert {(p.done, p.total, p.iters) for p in told} == {(0, 2, 60), (1, 2, 60)}
    assert told[0].loss > 5 * min(p.loss for p in told)


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), tmp_path / "model.onnx")
    return tmp_path


def works(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


QUICK: Sequence[str] = ("--method", "nearest", "--samples", "8", "--zeroq-iters", "5", "--threads", "1")


def test_zeroq_from_the_command_line(here):
    output = works("quantize", "model.onnx", "--calib", "zeroq", *QUICK, "-o", "out.onnx", "-v")
    assert "8 made from 3 BatchNormalization layers (zeroq)" in output
    assert "arrays" not in output
    output = works("inspect", "model.onnx", "--calib", "zeroq", *QUICK, "--json", "plan.json")
    assert "8 of 8 made by zeroq" in output
    assert json.loads((here / "plan.json").read_text())["measured"]["origin"]["data"] == "zeroq"


def test_a_folder_called_zeroq_is_a_path(here):
    folder = here / "zeroq"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    assert "3 calibration images" in works("quantize", "model.onnx", "--calib", "./zeroq", *QUICK, "-o", "a.onnx", "-v")
    assert "8 made from" in works("quantize", "model.onnx", "--calib", "zeroq", *QUICK, "-o", "b.onnx", "-v")
    settings = Settings(method="nearest", samples=8, zeroq_iters=2)
    for calib in ("./zeroq", Path("zeroq")):
        assert mrecg_onnx.quantize("model.onnx", calib, settings).images == 3


def test_options_without_a_use_are_told(here):
    np.save("real.npy", real(4))
    given = (
        "--method",
        "nearest",
        "--zeroq-iters",
        "2",
        "--batch-size",
        "4",
        "--threads",
        "1",
        "-o",
        "out.onnx",
        "--force",
    )
    said = works("quantize", "model.onnx", "--calib", "real.npy", *given)
    assert "--zeroq-iters has no effect with --calib real.npy" in said
    assert "--batch-size has no effect with --method nearest" in said
    assert "has no effect" not in works("quantize", "model.onnx", "--calib", "zeroq", "--samples", "4", *given)


def test_no_batchnorm_ends_with_one_line(here):
    onnx.save(residual(), here / "folded.onnx")
    result = CliRunner().invoke(main, ["quantize", "folded.onnx", "--calib", "zeroq", "-o", "out.onnx"])
    assert result.exit_code == 1
    assert "no BatchNormalization left" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (here / "out.onnx").exists()
