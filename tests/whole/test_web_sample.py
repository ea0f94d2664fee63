"""samples/web in a real browser: what it shows, what it refuses, and that it computes what ONNX Runtime does.

Needs Chromium (or Chrome; MRECG_CHROMIUM names another one) and onnxruntime-web: `npm install --no-save --prefix samples/web
onnxruntime-web@1.30.0`, or MRECG_NODE_MODULES with the path of another node_modules. Skipped where one is missing.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.node import node_modules
from PIL import Image

import mrecg_onnx
from mrecg_onnx.data import Preprocess
from mrecg_onnx.data.images import ImageDataset
from mrecg_onnx.running import input_specs, open_session
from mrecg_onnx.validating import source_sha256

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "samples" / "web"
FP32, PACKED = ROOT / "samples" / "digits.onnx", PAGE / "digits_w4a4_packed.onnx"
SECONDS = 180
TIMES = "\N{MULTIPLICATION SIGN}"


def chromium() -> str:
    names = [os.environ.get("MRECG_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, or its path in MRECG_CHROMIUM")
    return found


class Handler(SimpleHTTPRequestHandler):
    """Serves the sample, the harness, a folder of made files and onnxruntime-web; takes the report."""

    def __init__(self, *args: Any, folders: dict[str, Path], task: bytes, reports: queue.Queue[str]) -> None:
        self.folders, self.task, self.reports = folders, task, reports
        super().__init__(*args)

    def translate_path(self, path: str) -> str:
        plain = path.split("?", maxsplit=1)[0]
        for prefix, folder in self.folders.items():
            if plain.startswith(prefix):
                return str(folder / plain.removeprefix(prefix))
        return "/nonexistent"

    def do_GET(self) -> None:
        if self.path != "/task":
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.task)

    def do_POST(self) -> None:
        self.reports.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., Any]:
    """Runs one task of the harness in a browser and returns what it reports; made files lie in tmp_path, at /made/."""
    program, modules = chromium(), node_modules("onnxruntime-web")
    folders = {
        "/samples/web/node_modules/": modules,
        "/samples/": ROOT / "samples",
        "/harness/": Path(__file__).parent / "web",
        "/made/": tmp_path,
    }

    def run(name: str, **given: Any) -> Any:
        reports: queue.Queue[str] = queue.Queue()
        task = json.dumps({"name": name, "given": given}).encode()
        handler = partial(Handler, folders=folders, task=task, reports=reports)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/harness/harness.html"
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
            command = [program, "--headless", *sandbox, f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run"]
            with subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
                try:
                    report = json.loads(reports.get(timeout=SECONDS))
                finally:
                    browser.terminate()
                    browser.wait()
                    server.shutdown()
        assert "error" not in report, report["error"]
        return report["found"]

    return run


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32)


def digit_inputs(model: Path, paths: list[Path]) -> dict[str, np.ndarray]:
    (spec,) = input_specs(open_session(model))
    found: dict[str, np.ndarray] = ImageDataset(spec, paths, None, Preprocess()).load(len(paths))
    return found


def test_the_samples_file_was_made_from_its_network() -> None:
    entries = {entry.key: entry.value for entry in onnx.load(PACKED).metadata_props}
    assert entries["mrecg_onnx.source_sha256"] == source_sha256(FP32)
    assert json.loads(entries["mrecg_onnx.container"])["name"] == "packed"
    assert mrecg_onnx.validate(FP32, PACKED, ROOT / "samples" / "val", repeats=0).quantized.top1.value > 0.95


@pytest.mark.slow
def test_the_page_shows_both_networks_side_by_side(browse: Callable[..., Any]) -> None:
    found = browse("sample")
    first, everything = found["first"], found["all"]
    image = {"image": digit_inputs(FP32, [ROOT / "samples" / "val" / "0" / "0003.png"])["image"]}
    for slot, path in (("fp32", FP32), ("quantized", PACKED)):
        (scores,) = open_session(path).run(None, image)
        assert first[slot]["name"] == path.name
        assert first[slot]["size"] == f"{path.stat().st_size / 1e3:.1f} kB"
        assert first[slot]["top"] == [str(c) for c in np.argsort(-scores[0], kind="stable")[:5]]
        parts = np.exp(scores[0] - scores[0].max())
        shown = [float(text.removesuffix("%")) / 100 for text in first[slot]["chances"]]
        np.testing.assert_allclose(shown, np.sort(parts / parts.sum())[::-1][:5], atol=6e-4)
        assert " ms " in first[slot]["time"]
    assert first["quantized"]["kind"] == "W4A4 packed"
    assert first["state"] == everything["state"] == "done"
    assert not first["problemShown"]
    assert first["unnamed"] == []
    assert first["options"] | {"size": "32x32", "resize": "auto", "mean": "0.485, 0.456, 0.406"} == first["options"]
    agree, sqnr, ratio, size = first["verdict"]
    assert agree == "yes"
    assert sqnr.endswith(" dB")
    assert float(ratio.removesuffix(TIMES)) > 0
    assert size == f"{PACKED.stat().st_size / FP32.stat().st_size:.2f}{TIMES}"
    shown = [p for digit in range(10) for p in sorted((ROOT / "samples" / "val" / str(digit)).glob("*.png"))[:3]]
    inputs = digit_inputs(FP32, shown)
    exact, quantized = (open_session(path).run(None, inputs)[0].argmax(1) for path in (FP32, PACKED))
    right = [int((found == np.repeat(np.arange(10), 3)).sum()) for found in (exact, quantized)]
    assert everything["status"].startswith(
        f"Same top-1 on {int((exact == quantized).sum())} of 30 images. Right: FP32 {right[0]}, quantized {right[1]}."
    )


@pytest.mark.slow
def test_the_page_fits_a_phone(browse: Callable[..., Any]) -> None:
    found = browse("phone")
    assert found["state"] == "done"
    assert found["width"] <= 340


@pytest.mark.slow
@pytest.mark.parametrize("container", ["int8", "packed"])
def test_outputs_in_the_browser_are_those_of_native_onnx_runtime(
    container: str, browse: Callable[..., Any], tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    if container == "packed":
        shutil.copy(PACKED, model)
    else:
        mrecg_onnx.convert(PACKED, container, output=model)
    x = digit_inputs(FP32, sorted((ROOT / "samples" / "val").glob("*/*.png"))[:64])["image"]
    x.tofile(tmp_path / "x.bin")
    (found,) = browse("outputs", model="/made/model.onnx", values="/made/x.bin", dims=list(x.shape))
    (expected,) = open_session(model).run(None, {"image": x})
    assert found["dims"] == list(expected.shape)
    got = floats(found["data"]).reshape(expected.shape)
    np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))
    # Sums of codes (QLinearAdd) round some to the other side in WebAssembly: docs/deployment.md 4.
    assert np.mean((got == expected).all(axis=1)) > 0.9


@pytest.mark.slow
def test_pixels_become_the_numbers_that_validate_feeds(browse: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (53, 71, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    plain = {"layout": "nchw", "channels": 3, "mean": [0.5, 0.45, 0.4], "std": [0.23, 0.22, 0.21]}
    options = [
        plain
        | {"size": size, "resize": resize, "interpolation": name, "color": color, "scale": 1 / 255, "bytes": False}
        for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
        for size, resize, color in (
            ([32, 32], None, "rgb"),
            ([48, 64], [100, 90], "bgr"),
            ([24, 40], 45, "gray"),
            ([60, 60], "off", "rgb"),
            ([53, 71], None, "rgb"),
        )
    ]
    found = browse("pixels", image="/made/noise.png", options=options)
    (spec,) = input_specs(open_session(FP32))
    for one, text in zip(options, found, strict=True):
        chosen = Preprocess(
            mean=tuple(one["mean"]),
            std=tuple(one["std"]),
            resize=tuple(one["resize"]) if isinstance(one["resize"], list) else one["resize"],
            crop=tuple(one["size"]),
            layout=one["layout"],
            color=one["color"],
            interpolation=one["interpolation"],
        )
        free = replace(spec, shape=(None, 3, None, None))
        expected = ImageDataset(free, [tmp_path / "noise.png"], None, chosen).load(1)[spec.name]
        np.testing.assert_array_equal(floats(text).reshape(expected.shape), expected, err_msg=str(one))


@pytest.mark.slow
def test_names_and_labels_are_text_and_typed_files_end_in_one_line(browse: Callable[..., Any], tmp_path: Path) -> None:
    mark = '<img src=x onerror="parent.ran=1;ran=1"><b>x'
    (tmp_path / "labels.txt").write_text("\n".join(f"{mark}{i}" for i in range(10)) + "\n")
    mrecg_onnx.convert(PACKED, "typed", output=tmp_path / "typed.onnx")
    (tmp_path / "broken.onnx").write_bytes(PACKED.read_bytes()[:5000])
    files = [["/samples/web/digits_w4a4_packed.onnx", f"{mark}.onnx"], ["/samples/digits.onnx", "float.onnx"]]
    found = browse("dropped", files=[*files, ["/made/labels.txt", "labels.txt"]], options={"resize": "16"})
    shown = found["dropped"]
    assert shown["quantized"]["name"] == f"{mark}.onnx"
    assert shown["quantized"]["top"][0].startswith(mark)
    assert (shown["foreign"], shown["own"]) == (0, False)
    assert found["again"]["problem"] == "Resize: not smaller than the size"
    found = browse("dropped", files=[["/made/typed.onnx", "typed.onnx"]])["dropped"]
    assert found["problemShown"]
    assert found["problem"].startswith("typed.onnx holds codes in 4-bit types (container typed)")
    assert "convert FILE --container packed" in found["problem"]
    found = browse("dropped", files=[["/made/broken.onnx", "broken.onnx"]])["dropped"]
    assert found["problem"] == "broken.onnx is not an ONNX model: the file ends too early"


@pytest.mark.slow
def test_metadata_are_read_as_they_were_written(browse: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = PACKED.read_bytes()
    for number in range(20):  # damaged files are refused or read, nothing else
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 40)] = rng.integers(0, 256, 40)
        (tmp_path / f"{number}.onnx").write_bytes(damaged.tobytes())
    plain, *rest = browse(
        "metadata", models=["/samples/web/digits_w4a4_packed.onnx", *(f"/made/{n}.onnx" for n in range(20))]
    )
    model = onnx.load(PACKED)
    assert plain["opset"] == model.opset_import[0].version
    assert plain["metadata"] == {entry.key: entry.value for entry in model.metadata_props}
    assert all(found.get("kind", "FormatError") == "FormatError" for found in rest)
