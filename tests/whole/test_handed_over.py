"""The same samples make the same file and the same figures, whatever hands them over."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.command_line import classifier, write_images
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from mrecg_onnx import Preprocess, Settings, compare, inspect, quantize, sensitivity, validate
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.data import InputSpec, open_validation, profile
from mrecg_onnx.progress import Progress

N = 24
SETTINGS = Settings(wbits=4, abits=4, method="brecq", iters=4, batch_size=8, threads=1, preprocess="unit")
NEAREST = replace(SETTINGS, method="nearest")


class Reader:
    def __init__(self, name: str, x: np.ndarray) -> None:
        self.batches = iter([{name: x[:10]}, {name: x[10:]}])

    def get_next(self) -> Any:
        return next(self.batches, None)


@dataclass
class Here:
    """A model, images in a folder with a class in each name, and the same as arrays."""

    model: Path
    images: Path
    files: list[Path]
    x: np.ndarray
    y: np.ndarray

    def handed(self, kind: str) -> Any:
        x, y = self.x, self.y
        tensors = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return {
            "array": lambda: x,
            "pair": lambda: (x, y),
            "tensor": lambda: torch.from_numpy(x).requires_grad_(),
            "dict": lambda: {self.name: x, "labels": y},
            "DataLoader": lambda: DataLoader(tensors, batch_size=5),
            "data set": lambda: tensors,
            "generator": lambda: ((one, int(label)) for one, label in zip(x, y, strict=True)),
            "reader": lambda: Reader(self.name, x),
            "paths": lambda: list(zip(self.files, y.tolist(), strict=True)),
            "images": lambda: [(Image.open(file), label) for file, label in zip(self.files, y.tolist(), strict=True)],
            "generator of images": lambda: (
                {"image": Image.open(f), "label": i} for f, i in zip(self.files, y, strict=True)
            ),
        }[kind]()

    @property
    def name(self) -> str:
        return onnx.load(self.model).graph.input[0].name


ARRAYS = ["array", "pair", "tensor", "dict", "DataLoader", "data set", "generator", "reader"]
IMAGES = ["paths", "images", "generator of images"]
LABELLED = ["pair", "dict", "DataLoader", "data set", "generator", *IMAGES]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("handed")
    onnx.save(classifier(), folder / "model.onnx")
    images = write_images(folder / "images", N)
    torch.set_num_threads(1)
    spec = InputSpec("x", (None, 3, 16, 16), np.dtype(np.float32))
    data = open_validation(images, [spec], profile("unit"))
    assert data.files is not None
    assert data.labels is not None
    return Here(folder / "model.onnx", images, data.files, data.load()["x"], data.labels)


def graph_of(file: bytes) -> bytes:
    return onnx.load_from_string(file).graph.SerializeToString()


def made(here: Here, calib: Any, settings: Settings = SETTINGS, **more: Any) -> bytes:
    return quantize(here.model, calib, settings, **more).model.SerializeToString()


@pytest.fixture(scope="module")
def by_folder(here: Here) -> bytes:
    return made(here, here.images)


@pytest.fixture(scope="module")
def by_array(here: Here) -> bytes:
    return made(here, here.x)


def test_results_are_a_few_lines_that_name_no_model(here: Here, tmp_path: Path) -> None:
    made = quantize(here.model, here.x, NEAREST, output=tmp_path / "x.onnx")
    labelled = made.validate((here.x, here.y), repeats=1)
    bare = made.validate(here.x, repeats=0)
    ranked = sensitivity(here.model, here.x, NEAREST, data=(here.x, here.y), top=1)
    for result in (made, labelled, bare, ranked):
        assert len(str(result)) < 1500
        assert len(str(result).splitlines()) < 16
        assert "\n" not in repr(result)
        assert len(repr(result)) < 300
        assert repr(result).startswith(f"<{type(result).__name__}: ")
    assert "x.onnx: W4A4 by nearest" in str(made)
    assert "kB, FP32 " in str(made)
    assert labelled.quantized.top1 is not None
    assert f"top-1: {labelled.quantized.top1}, FP32 {labelled.fp32.top1}, " in str(labelled)
    assert "no labels: agreement only" in str(bare)
    assert "no labels" not in str(labelled)
    assert not any("no labels" in w for w in made.validate(here.x, labels="none", repeats=0).warnings)
    few = "ranges and rounding fit 24 calibration rows alone: give 256 to 1,024, or the file may do badly on others"
    for found in (made, ranked):
        assert found.warnings.count(few) == found.to_json()["warnings"].count(few) == str(found).count(few) == 1


def test_units_that_learning_did_not_help_are_counted(here: Here) -> None:
    made = quantize(here.model, here.x, SETTINGS)
    narrow = {layer.name for layer in made.plan.quantized_layers if layer.wbits < 8}
    first = next(i for i, unit in enumerate(made.units) if narrow & {*unit.layers})
    units = tuple(replace(unit, kept="nearest" if i == first else "learned") for i, unit in enumerate(made.units))
    (said,) = set(replace(made, units=units).warnings) - {*made.verification.warnings, *made.doubts}
    assert said.startswith(
        f"1 of {len(units)} units keep rounding to nearest: learning did not lower their loss; more iter"
    )
    learned = tuple(replace(unit, kept="learned") for unit in units)
    assert replace(made, units=learned).warnings == (*made.doubts, *made.verification.warnings)
    wide = tuple(replace(unit, kept="learned" if narrow & {*unit.layers} else "nearest") for unit in units)
    assert any(unit.kept == "nearest" for unit in wide)  # at 8 bits there is nothing to learn
    assert replace(made, units=wide).warnings == (*made.doubts, *made.verification.warnings)


def test_bits_that_no_layer_has_are_told(here: Here) -> None:
    made = quantize(here.model, np.concatenate([here.x, here.x]), NEAREST)
    assert made.to_json()["warnings"] == list(made.warnings) == []
    two = replace(made, settings=replace(made.settings, wbits=2))
    (said,) = two.warnings
    assert said.startswith("no layer has weights of 2 bits: the first and the last one have 8, and there is no other")
    assert two.to_json()["warnings"] == [said]
    narrow = replace(made, settings=replace(made.settings, wbits=2, first_last_bits=2))
    assert narrow.warnings == ()
    assert "in memory: " in str(replace(made, output=None))


def test_python_writes_over_what_is_there(here: Here, tmp_path: Path, by_array: bytes) -> None:
    output = tmp_path / "x.onnx"
    for settings in (NEAREST, SETTINGS):
        quantize(here.model, here.x, settings, output=output)
    assert graph_of(output.read_bytes()) == graph_of(by_array)
    assert "over a file that is there" in (quantize.__doc__ or "")


@pytest.mark.parametrize("kind", IMAGES)
def test_images_make_the_bytes_that_their_folder_makes(here: Here, by_folder: bytes, kind: str) -> None:
    assert made(here, here.handed(kind)) == by_folder


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_make_the_same_bytes_whatever_hands_them_over(here: Here, by_array: bytes, kind: str) -> None:
    assert made(here, here.handed(kind)) == by_array


def test_arrays_make_the_graph_that_their_images_make(here: Here, by_folder: bytes, by_array: bytes) -> None:
    assert graph_of(by_array) == graph_of(by_folder)
    stored = [{e.key for e in onnx.load_from_string(file).metadata_props} for file in (by_folder, by_array)]
    assert stored[0] - stored[1] == {"mrecg_onnx.preprocess"}
    assert stored[1] <= stored[0]


def test_memory_is_none_of_the_result(here: Here, by_array: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.data.opening.HELD", 1)
    assert made(here, here.handed("generator")) == by_array


def test_finished_units_are_those_of_the_same_samples(here: Here, by_array: bytes, tmp_path: Path) -> None:
    def learned(calib: Any) -> int:
        seen: list[Progress] = []
        file = made(here, calib, checkpoint=tmp_path / "work", progress=seen.append)
        assert (file == by_array) == (calib is not other)
        return len({p.unit for p in seen if p.stage == "reconstruct" and p.iteration and p.result is None})

    other = here.x[::-1].copy()
    assert learned(here.x) > 0
    for kind in ("DataLoader", "generator", "tensor"):
        assert learned(here.handed(kind)) == 0
    assert learned(other) > 0


# --- measuring ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(here: Here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "q.onnx"
    quantize(here.model, here.images, NEAREST, output=path)
    return path


def figures(result: Any) -> dict[str, Any]:
    found = result.to_json()
    return json.loads(json.dumps({k: v for k, v in found.items() if k not in {"preprocess", "warnings", "data"}}))


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("layers", [False, True])
def test_validation_finds_the_same(here: Here, file: Path, kind: str, layers: bool) -> None:
    expected = validate(here.model, file, here.images, repeats=0, layers=layers)
    found = validate(here.model, file, here.handed(kind), repeats=0, layers=layers)
    assert found.quantized.top1 == expected.quantized.top1 is not None
    assert found.agreement == expected.agreement
    assert found.sqnr_by_output == expected.sqnr_by_output
    assert found.images == N
    assert [e.makes_db for e in found.layers.layers] == [e.makes_db for e in expected.layers.layers] if layers else True


@pytest.mark.parametrize("kind", ["array", "generator"])
def test_labels_may_be_left_out_or_given_beside_the_data(here: Here, file: Path, kind: str) -> None:
    found = validate(here.model, file, here.handed(kind), labels="none", repeats=0)
    assert found.quantized.top1 is None
    assert found.agreement is not None
    if kind == "array":
        beside = validate(here.model, file, here.x, labels=here.y, limit=9, repeats=3)
        assert beside.images == 9
        assert beside.quantized.top1 is not None


def test_latency_is_measured_on_what_goes_by(here: Here, file: Path) -> None:
    found = validate(here.model, file, here.handed("generator"), repeats=2, batch_size=7)
    assert found.fp32.latency_s is not None


@pytest.mark.parametrize("kind", ["images", "generator", "DataLoader"])
def test_labels_beyond_the_classes_are_found_in_any_batch(here: Here, file: Path, kind: str) -> None:
    y = here.y.copy()
    y[20] = 99
    with pytest.raises(DataError, match="label 99 of row 20 is beyond the 10 classes"):
        validate(here.model, file, replace(here, y=y).handed(kind), batch_size=4, repeats=0)


def test_labels_that_count_from_one_are_recognised(here: Here, file: Path) -> None:
    x, y = here.x[:10], np.arange(10) + 1
    said = (
        r"\(1 of 10 are\): they seem to count from 1: subtract 1, or give others with labels=\.\.\., or labels='none'"
    )
    for call in (
        lambda: validate(here.model, file, x, labels=y, repeats=0),
        lambda: sensitivity(here.model, x, NEAREST, data=x, labels=y, top=0),
    ):
        with pytest.raises(DataError, match=said):
            call()


@pytest.mark.slow
def test_ranking_and_inspection_take_them(here: Here) -> None:
    expected = sensitivity(here.model, here.images, NEAREST, data=here.images, top=1)
    for kind in ("generator of images", "DataLoader", "pair"):
        found = sensitivity(here.model, here.handed(kind), NEAREST, data=here.handed(kind), top=1)
        assert [r.losses for r in found.ranked] == [r.losses for r in expected.ranked]
        assert (found.quality, found.labelled) == (expected.quality, True)
    found = sensitivity(here.model, here.x, NEAREST, data=iter(here.x), labels="none", top=0)
    assert not found.labelled
    assert inspect(here.model, here.handed("generator"), NEAREST).measured.images == N


@pytest.mark.parametrize(
    "kind",
    [
        "generator",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("pair", "images", "generator of images", "DataLoader")
        ),
    ],
)
def test_a_drop_is_measured_on_them_as_often_as_needed(here: Here, kind: str) -> None:
    settings = replace(NEAREST, max_drop=0.5)
    expected = quantize(here.model, here.images, settings, data=here.images)
    found = quantize(here.model, here.handed(kind), settings, data=here.handed(kind))
    assert [t.drop for t in found.trials] == [t.drop for t in expected.trials]
    assert len(found.trials) > 1


def test_images_need_to_know_how_they_become_numbers(here: Here) -> None:
    plain = replace(NEAREST, preprocess=Preprocess(beside=True), max_drop=0.5)
    with pytest.raises(SettingsError, match="the list holds images, and the model is calibrated on arrays"):
        quantize(here.model, here.x, plain, data=here.handed("images"))


def test_two_samples_are_the_least(here: Here) -> None:
    with pytest.raises(DataError, match="calibration needs at least two images"):
        quantize(here.model, [here.x[0]], NEAREST)


# --- comparing ---------------------------------------------------------------------------------------------------------------


def compared(here: Here, calib: Any, data: Any, folder: Path, **more: Any) -> Any:
    settings = Settings(threads=1, preprocess="unit")
    more = {"methods": ["nearest"], "bits": ["W4A4"], "settings": settings, "repeats": 0} | more
    return compare(here.model, calib, data, folder, **more)


@pytest.fixture(scope="module")
def by_paths(here: Here, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compared(here, here.images, here.images, tmp_path_factory.mktemp("compared") / "out").cells[0]


@pytest.mark.parametrize(
    ("calib", "data"),
    [
        pytest.param("images", "generator of images", marks=pytest.mark.slow),
        pytest.param("generator", "pair", marks=pytest.mark.slow),
        pytest.param("paths", "paths", marks=pytest.mark.slow),
    ],
)
def test_a_comparison_writes_them_for_its_cells(
    here: Here, by_paths: Any, calib: str, data: str, tmp_path: Path
) -> None:
    found = compared(here, here.handed(calib), here.handed(data), tmp_path / "out", repeats=2)
    (cell,) = found.cells
    assert cell.error is None
    assert (cell.top1, cell.agreement, cell.sqnr_db) == (by_paths.top1, by_paths.agreement, by_paths.sqnr_db)
    assert cell.latency_s is not None
    written = sorted(path.name.split("-")[0] for path in (tmp_path / "out" / "cells").glob("data/*"))
    assert written == ([] if calib == "paths" else ["calibration", "validation", "validation"])
    assert all(Path(shown).exists() for shown in (found.calib, found.data)) or calib == "paths"


@pytest.mark.slow
def test_a_comparison_goes_on_with_the_same_samples(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def stages(calib: Any, data: Any) -> set[str]:
        seen: list[Any] = []
        compared(here, calib, data, folder, progress=seen.append)
        return {event.stage for event in seen if event.stage}

    assert "validate" in stages(here.x, (here.x, here.y))
    assert "validate" not in stages(here.handed("DataLoader"), here.handed("generator"))
    assert "validate" in stages(here.x, (here.x, here.y[::-1]))
    assert len(list((folder / "cells" / "data").iterdir())) == 3
    with pytest.raises(SettingsError, match=r"belong to another comparison \(different: calib\)"):
        compared(here, here.x[::-1].copy(), (here.x, here.y), folder)


@pytest.mark.slow
def test_a_model_in_memory_is_compared_as_its_file_is(here: Here, tmp_path: Path) -> None:
    """It is written once, and the same call goes on where it was."""
    methods = {"methods": ["nearest"], "bits": ["W8A8"], "repeats": 0, "settings": NEAREST}
    model = onnx.load(here.model)
    folder = tmp_path / "out"
    found = compare(model, here.images, here.images, folder, **methods)
    assert found.failed == ()
    (written,) = (folder / "cells" / "data").rglob("model.onnx")
    assert found.model == written
    made = (folder / "model_nearest_w8a8.onnx").stat().st_mtime_ns
    again = compare(model, here.images, here.images, folder, **methods)
    assert (folder / "model_nearest_w8a8.onnx").stat().st_mtime_ns == made
    assert again.cells[0].top1 == found.cells[0].top1
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    with pytest.raises(SettingsError, match="belong to another comparison"):
        compare(model, here.images, here.images, folder, **methods)
