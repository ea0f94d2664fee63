"""Decisions kept on disk: they hold where all is as it was, and are made anew in any other case."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.machine import kept as module
from mrecg_onnx.machine.kept import EACH, NOTHING_KEPT, Kept, short_digest

KIND = "lengths of names"


def asked(kept: Kept, wanted: dict[str, Any], made: list[str] | None = None, **more: Any) -> dict[str, int]:
    """Lengths of the names ``wanted``; those not kept are noted in ``made``."""

    def make(names: list[str]) -> dict[str, int]:
        if made is not None:
            made.extend(names)
        return {name: len(name) for name in names}

    def restored(name: str, plain: Any) -> int:
        if plain["length"] > 99:
            raise ValueError("too long")
        return int(plain["length"])

    return kept.recall(KIND, wanted, make, plain=lambda length: {"length": length}, restored=restored, **more)


def again(kept: Kept, wanted: dict[str, Any], **more: Any) -> list[str]:
    """Names that are not kept."""
    made: list[str] = []
    assert asked(kept, wanted, made, **more) == {name: len(name) for name in wanted}
    return made


WANTED: dict[str, Any] = {"one": {"bits": 4}, "three": {"bits": 8, "reads": ("a", "b")}}


@pytest.fixture
def kept(tmp_path) -> Kept:
    """Two decisions are kept in it."""
    found = Kept(tmp_path / "prepared", {"version": "1"}).on({"images": "x"})
    assert again(found, WANTED) == ["one", "three"]
    return found


def file_of(kept: Kept) -> Path:
    assert kept.folder is not None
    (path,) = kept.folder.iterdir()
    return path


def test_without_a_folder_everything_is_made():
    assert again(NOTHING_KEPT, WANTED) == ["one", "three"]
    assert again(NOTHING_KEPT, WANTED) == ["one", "three"]


def test_what_is_kept_is_not_made_again(kept, caplog):
    caplog.set_level("INFO")
    assert again(kept, WANTED) == []
    assert f"{KIND} kept in {kept.folder}: all 2 hold" in caplog.text


def test_order_is_that_of_who_asks(kept):
    assert list(asked(kept, {"three": WANTED["three"], "new": {}, "one": WANTED["one"]})) == ["three", "new", "one"]


@pytest.mark.parametrize(
    ("other", "wanted", "made", "different"),
    [
        (lambda k: k, {**WANTED, "one": {"bits": 3}}, ["one"], "bits"),
        (lambda k: k, {**WANTED, "three": {"bits": 8, "reads": ["a"]}}, ["three"], "reads"),
        (lambda k: k, {**WANTED, "one": {"bits": 4, "more": 1}}, ["one"], "more"),
        (lambda k: k.on({"images": "y"}), WANTED, ["one", "three"], "images"),
        (lambda k: k.on({"model": "m"}), WANTED, ["one", "three"], "model"),
        (lambda k: Kept(k.folder, {"version": "2"}, k.here), {"one": {"bits": 2}}, ["one"], "bits, version"),
    ],
)
def test_what_does_not_hold_is_made_anew_and_one_line_says_why(kept, caplog, other, wanted, made, different):
    assert again(other(kept), wanted) == made
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    count = f"{len(made)} of {len(wanted)}"
    assert said == [f"{KIND} kept in {kept.folder}: {count} made anew (different: {different})"]


def test_another_form_or_way_of_deciding_is_another(kept, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert again(kept, WANTED) == ["one", "three"]


def test_decisions_that_do_not_look_at_images_hold_for_others(tmp_path):
    kept = Kept(tmp_path, {"version": "1"})
    assert again(kept.on({"images": "x"}), WANTED, anywhere=True) == ["one", "three"]
    assert again(kept.on({"images": "y"}), WANTED, anywhere=True) == []
    assert again(Kept(tmp_path, {"version": "2"}), WANTED, anywhere=True) == ["one", "three"]


def test_several_runs_are_kept_the_last_ones(kept):
    for bits in range(10, 10 + EACH):
        assert again(kept, {"one": {"bits": bits}}) == ["one"]
    assert again(kept, {"one": {"bits": 10}}) == []
    assert again(kept, {"one": {"bits": 4}}) == ["one"]
    assert again(kept, {"three": WANTED["three"]}) == []


def test_what_is_not_decided_is_not_kept(tmp_path):
    kept = Kept(tmp_path)

    def recall() -> dict[str, int]:
        return kept.recall(KIND, {"a": {}, "b": {}}, lambda names: {"b": 1}, plain=int, restored=lambda _, x: int(x))

    assert recall() == recall() == {"b": 1}


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"7", b"[1, 2]", b'{"one": 7}', b'{"one": [7, null, {}, {"of": 1}]}', b'{"one": {"of": {}}}',
        b'{"one": [{"of": {}, "value": 3, "digest": "0"}]}', b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_damaged_file_is_made_anew(kept, caplog, content):
    file_of(kept).write_bytes(content)
    assert again(kept, WANTED) == ["one", "three"]
    assert str(file_of(kept)) in caplog.text or not content.strip(b"{}")
    assert again(kept, WANTED) == []


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damaged_entry_is_never_trusted(kept, place):
    path = file_of(kept)
    text = path.read_text()
    at = next(i for i in range(int(len(text) * place), len(text)) if text[i].isdigit())
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    assert len(again(kept, WANTED)) == 1


def test_entry_under_another_name_is_not_taken(kept):
    path = file_of(kept)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({"one": stored["one"], "other": stored["one"]}))
    assert again(kept, {"other": {"bits": 4}}) == ["other"]


def test_entry_that_is_no_decision_is_made_anew(kept, caplog):
    path = file_of(kept)
    stored = json.loads(path.read_text())
    for value in ({"length": 100}, {}, 7):
        entry = {"of": stored["one"][0]["of"], "value": value}
        entry["digest"] = short_digest(["one", json.dumps([entry["of"], value], sort_keys=True)])
        path.write_text(json.dumps(stored | {"one": [entry]}))
        assert again(kept, WANTED) == ["one"]
    assert caplog.text.count("that of 'one' is no such thing") == 3


def test_larger_file_than_any_run_writes_is_not_read(kept, monkeypatch, caplog):
    path = file_of(kept)
    with path.open("r+b") as file:
        file.truncate(module.LARGEST + 1)
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda at, **more: pytest.fail("it was read") if at == path else read(at, **more)
    )
    assert again(kept, WANTED) == ["one", "three"]
    assert f"{path} is {module.LARGEST + 1} bytes long" in caplog.text
    assert path.stat().st_size < 2000


def test_no_more_is_kept_than_is_read(kept, monkeypatch, caplog):
    assert again(kept, {"one": {"bits": 5}}) == ["one"]
    monkeypatch.setattr(module, "LARGEST", file_of(kept).stat().st_size)
    assert again(kept, {"one": {"bits": 6}}) == ["one"]
    assert again(kept, {"one": {"bits": 6}, "three": WANTED["three"]}) == []
    assert again(kept, {"one": {"bits": 5}}) == ["one"]
    monkeypatch.setattr(module, "LARGEST", 10)
    assert again(kept, {"one": {"bits": 7}}) == ["one"]
    assert "too many to be kept" in caplog.text


def test_pipe_in_the_place_of_the_file_is_not_opened(kept):
    path = file_of(kept)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be written"):
        again(kept, WANTED)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"--checkpoint: '.*file/prepared/lengths-of-names\.json' cannot be written"):
        again(Kept(tmp_path / "file" / "prepared"), WANTED)
