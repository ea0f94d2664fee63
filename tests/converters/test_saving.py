"""Models whose tensors lie in a second file: at every moment one model is there, whole, with the tensors that are its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters import save, save_model
from mrecg_onnx.converters.parity import run_onnx


@pytest.fixture(autouse=True)
def large(monkeypatch) -> None:
    """What takes 2 GB elsewhere takes a hundred bytes here."""
    monkeypatch.setattr(save, "EXTERNAL_DATA_BYTES", 100)
    monkeypatch.setattr(save, "_INLINE_BYTES", 64)


def model(seed: float) -> onnx.ModelProto:
    """Adds ``seed`` to its input, eight by eight times."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in "xy")
    added = numpy_helper.from_array(np.full((8, 8), seed, np.float32), "added")
    graph = helper.make_graph([helper.make_node("Add", ["x", "added"], ["y"])], "g", [x, y][:1], [y], [added])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seed_of(path: Path) -> float:
    """Which of the models is at ``path``: it has to open and compute with the tensors that are its own."""
    found = onnx.load(path)
    onnx.checker.check_model(found, full_check=True)
    values = run_onnx(found, {"x": np.zeros((8, 8), np.float32)})["y"]
    assert (values == values[0, 0]).all()
    return float(values[0, 0])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.data"))


def test_the_second_file_is_named_by_its_content(tmp_path):
    save_model(model(1), tmp_path / "out.onnx")
    (name,) = data(tmp_path)
    assert name == f"out.onnx-{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:12]}.data"
    assert contents(tmp_path).keys() == {"out.onnx", name}
    assert seed_of(tmp_path / "out.onnx") == 1


@pytest.mark.parametrize("bytes_inside", [100, 10**9], ids=["large", "small"])
def test_a_new_model_takes_the_tensors_of_the_old_one_away(tmp_path, monkeypatch, bytes_inside):
    save_model(model(1), tmp_path / "out.onnx")
    before = data(tmp_path)
    monkeypatch.setattr(save, "EXTERNAL_DATA_BYTES", bytes_inside)
    save_model(model(2), tmp_path / "out.onnx")
    assert seed_of(tmp_path / "out.onnx") == 2
    assert len(data(tmp_path)) == (bytes_inside == 100)
    assert not set(before) & set(data(tmp_path))


def test_the_same_model_once_more_keeps_its_tensors(tmp_path):
    save_model(model(1), tmp_path / "out.onnx")
    before = contents(tmp_path)
    save_model(model(1), tmp_path / "out.onnx")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("moment", "found"), [("data", 1), ("model", 1), ("after", 2)])
def test_an_interruption_leaves_a_whole_model_and_the_next_one_tidies_up(tmp_path, monkeypatch, moment, found):
    path, replace, calls = tmp_path / "out.onnx", Path.replace, []
    save_model(model(1), path)
    old = contents(tmp_path)

    def interrupt(self: Path, target: Path) -> Path:
        calls.append(Path(target).suffix)
        if len(calls) == {"data": 1, "model": 2}[moment]:
            raise KeyboardInterrupt
        return replace(self, target)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "after":
            patch.setattr(save, "_remove_unread", stop)
        else:
            patch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_model(model(2), path)
    assert calls == {"data": [".data"], "model": [".data", ".onnx"], "after": []}[moment]
    assert seed_of(path) == found
    assert contents(tmp_path).items() >= {n: c for n, c in old.items() if n != "out.onnx" or found == 1}.items()
    save_model(model(1), path)
    assert contents(tmp_path) == old


def test_tensors_that_another_model_reads_stay(tmp_path):
    save_model(model(1), tmp_path / "out.onnx")
    other = tmp_path / "before.onnx.bak"
    other.write_bytes((tmp_path / "out.onnx").read_bytes())
    save_model(model(2), tmp_path / "out.onnx")
    assert seed_of(other) == 1
    other.unlink()
    save_model(model(2), tmp_path / "out.onnx")
    assert len(data(tmp_path)) == 1


def test_a_stranger_s_file_stays(tmp_path):
    for name in ("out.onnx.data", "out.onnx-0123456789ab.data", "out.onnx-0123.data", "other.onnx-0123456789ab.data"):
        (tmp_path / name).write_bytes(b"a stranger's")
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "out.onnx-e3b0c44298fc.data").symlink_to("nothing")  # the digest of nothing
    before = contents(tmp_path)
    save_model(model(1), tmp_path / "out.onnx")
    save_model(model(2), tmp_path / "out.onnx")
    assert contents(tmp_path).items() > before.items()


def test_nothing_is_removed_while_another_process_writes_there(tmp_path, monkeypatch):
    save_model(model(1), tmp_path / "out.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(save, "written_now", lambda _: True)
        save_model(model(2), tmp_path / "out.onnx")
    assert len(data(tmp_path)) == 2
    save_model(model(2), tmp_path / "out.onnx")
    assert len(data(tmp_path)) == 1


@pytest.mark.parametrize("name", ["a" * 250, "ä" * 125, b"\xff\xfe.onnx".decode("utf-8", "surrogateescape")])
def test_any_name_has_room_for_the_digest(tmp_path, name):
    save_model(model(1), tmp_path / name)
    save_model(model(2), tmp_path / name)
    assert seed_of(tmp_path / name) == 2
    assert len(data(tmp_path)) == 1
