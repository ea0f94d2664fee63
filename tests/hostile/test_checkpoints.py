"""Checkpoint folders that are damaged, foreign, planted or in use: never run, never believed, told in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import zipfile
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.command_line import works
from helpers.hostile import Arguments, Case, Hostile, model_and_images, rows

if TYPE_CHECKING:
    from collections.abc import Callable

QUANTIZE = (
    "quantize", "model.onnx", "--calib", "images", "--method", "brecq", "--iters", "2", "--samples", "4", "--batch-size", "4",
    "--equalize", "off", "--range", "mse", "--threads", "1", "-o", "out.onnx", "--checkpoint", "kept",
)  # fmt: skip
#: The same on a file that is no model: a run that gets past the folder ends soon.
NO_MODEL = tuple("none.onnx" if argument == "model.onnx" else argument for argument in QUANTIZE)
PAST = ("none.onnx", "is not an ONNX file")
FOUND = "cannot be read"


@cache
def finished() -> dict[str, bytes]:
    """What a sound run keeps, by name."""
    before = Path.cwd()
    with TemporaryDirectory() as name:
        model_and_images(Path(name))
        os.chdir(name)
        try:
            works(*QUANTIZE)
        finally:
            os.chdir(before)
        return {str(p.relative_to(name)): p.read_bytes() for p in Path(name, "kept").rglob("*") if p.is_file()}


def spoiled(name: str, spoil: Callable[[Path], Any], folder: Path) -> Arguments:
    """A finished checkpoint, one of whose files is another one."""
    model_and_images(folder)
    for path, content in finished().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / name).unlink(missing_ok=True)
    spoil(folder / name)
    return QUANTIZE


def unit(spoil: Callable[[Path], Any]) -> Callable[[Path], Arguments]:
    return partial(spoiled, "kept/reconstruct-0000.pt", spoil)


def description(spoil: Callable[[Path], Any]) -> Callable[[Path], Arguments]:
    return partial(spoiled, "kept/run.json", spoil)


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Arguments]:
    """A unit that is whole and says something else."""

    def spoil(path: Path) -> None:
        content = torch.load(io.BytesIO(finished()["kept/reconstruct-0000.pt"]), weights_only=True)
        change(content)
        torch.save(content, path)

    return unit(spoil)


def content(text: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def itself(path: Path) -> None:
    path.symlink_to(path.name)


class Runs:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("ran"), "it ran")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs()))


def pickled_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("unit/data.pkl", pickle.dumps({"result": Runs()}, protocol=2))
        file.writestr("unit/version", "3\n")
        file.writestr("unit/byteorder", "little")


def nothing(folder: Path) -> None:
    """A model and images that are none, where they have to be."""
    (folder / "none.onnx").touch()
    (folder / "images").mkdir()


def planted(make: Callable[[Path], Any], arguments: Arguments = NO_MODEL) -> Callable[[Path], Arguments]:
    """Something in the place of the folder, or in it."""

    def made(folder: Path) -> Arguments:
        nothing(folder)
        make(folder)
        return arguments

    return made


def in_folder(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Arguments]:
    def made(folder: Path) -> Arguments:
        nothing(folder)
        (folder / "kept").mkdir()
        make(folder / "kept" / name)
        return NO_MODEL

    return made


def owner(**found: object) -> bytes:
    return json.dumps({"host": "h", "pid": 1, "since": "s", "place": "elsewhere", "started": 1, **found}).encode()


def in_use(text: bytes) -> Callable[[Path], Arguments]:
    return in_folder(".lock.json", content(text))


def weights(content: dict[str, Any]) -> dict[str, Any]:
    return next(iter(content["weights"].values()))


#: Another run has the folder.
HELD = "import fcntl; held = open('kept/.lock', 'w'); fcntl.flock(held, fcntl.LOCK_EX); globals()['__builtins__']['held'] = held"
USAGE = "--checkpoint kept: cannot be used"
DAMAGED = (USAGE, "kept/run.json is damaged", "remove the folder")

IN_USE = [
    Case("in use by another machine's run", in_use(owner(pid=77)), says=("in use by process 77 on h since s",)),
    Case("in use, nobody says by whom", in_folder("x", os.mkdir), says=("is in use: wait",)),
    Case("in use, its owner is no JSON", in_use(b"\xff{"), says=("is in use: wait",)),
    Case("in use, its owner is nested deeply", in_use(b"[" * 4000), says=("is in use: wait",)),
    Case("in use, its owner is long", in_use(b" " * 10**6), says=("is in use: wait",)),
    Case("in use, its owner has a long number", in_use(owner(pid="9" * 4000)), says=("is in use: wait",)),
    Case("in use, its owner paints", in_use(owner(host="\x1b[31m\n" * 9)), says=("in use by process 1",)),
]
CASES = [
    *(dataclasses.replace(case, before=HELD, writes=("kept/.lock",)) for case in IN_USE),

    Case("a file in its place", planted(lambda f: (f / "kept").write_bytes(b"")), says=(USAGE,), code=2),
    Case("a pipe in its place", planted(lambda f: os.mkfifo(f / "kept")), says=(USAGE,), code=2),
    Case("a link to itself in its place", planted(lambda f: itself(f / "kept")), says=(USAGE,), code=2),
    Case("a link to nowhere in its place", planted(lambda f: (f / "kept").symlink_to("a/b")), says=(USAGE,), code=2),
    Case("a folder for its lock", in_folder(".lock", os.mkdir), says=(USAGE, "directory"), code=2),
    Case("a link for its lock", in_folder(".lock", lambda p: p.symlink_to("/dev/zero")), says=(USAGE,), code=2),
    Case("a pipe for its lock", in_folder(".lock", os.mkfifo), says=(USAGE, "named pipe"), code=2),
    Case("a pipe for its owner", in_folder(".lock.json", os.mkfifo), says=(USAGE, "named pipe"), code=2),
    Case("a lock that a dead run left", in_folder(".lock", content(b"")), says=PAST, writes=("kept/*",)),
    Case("an owner that a dead run left", in_use(owner(place="", pid=1)), says=PAST, writes=("kept/*", "kept")),
    Case(
        "a lock of the future",
        in_folder(".lock", lambda p: (p.write_bytes(b""), os.utime(p, (4e9, 4e9)))),
        says=PAST,
        writes=("kept/*",),
    ),
    Case("a description that is no text", description(content(b"\xff\xfe{")), says=DAMAGED, code=2),
    Case("a description that is no JSON", description(content(b"no JSON")), says=DAMAGED, code=2),
    Case("a description that is a list", description(content(b"[1, 2]")), says=DAMAGED, code=2),
    Case("a description nested deeply", description(content(b"[" * 100_000)), says=DAMAGED, code=2),
    Case("a description of a terabyte", description(sparse), says=(*DAMAGED, "longer than"), code=2),
    Case("a description that is a pipe", description(os.mkfifo), says=(USAGE, "named pipe"), code=2),
    Case("a description that is a folder", description(os.mkdir), says=(USAGE,), code=2),
    Case("a unit that runs code", unit(pickled), says=(FOUND,)),
    Case("a unit that runs code, in torch's form", unit(pickled_in_zip), says=(FOUND,)),
    Case("an empty unit", unit(content(b"")), says=(FOUND,)),
    Case("a unit of text", unit(content(b"hello")), says=(FOUND,)),
    Case("a unit that is cut off", unit(lambda p: p.write_bytes(finished()["kept/reconstruct-0000.pt"][:-100])), says=(FOUND,)),
    Case("a unit that is a pipe", unit(os.mkfifo), says=(FOUND, "named pipe")),
    Case("a unit that is a folder", unit(os.mkdir), says=(FOUND,)),
    Case("a unit of a terabyte", unit(sparse), says=(FOUND,)),
    Case("a unit that is gone", unit(lambda _: None), code=0, lines=("reconstruct ",), writes=("out.*", "kept/*", "kept/*/*"),
        cpu_s=20),
    Case("a unit without a result", changed(lambda c: c.pop("result")), says=(FOUND,)),
    Case("a unit whose loss is text", changed(lambda c: c["result"].update(loss="x")), says=(FOUND, "loss is str")),
    Case("a unit whose layers are a number", changed(lambda c: c["result"].update(layers=7)), says=(FOUND,)),
    Case("a unit with other sizes", changed(lambda c: weights(c).update(codes=torch.zeros(1))), says=("another unit",)),
    Case("a unit whose codes are text", changed(lambda c: weights(c).update(codes="x")), says=("checkpoint",)),
    Case("a unit with a scale of nothing", changed(lambda c: weights(c)["grid"]["scale"].mul_(0)), says=("another unit",)),
    Case("a unit with scales that are none", changed(lambda c: weights(c)["grid"]["scale"].mul_(float("nan"))),
        says=("another",)),
    Case("a unit with a bias of another size", changed(lambda c: c["biases"].update(stem=torch.zeros(10**6))),
        says=("another",)),
    Case("a unit with a tensor nobody has", changed(lambda c: c["activations"].update(
        x={"scale": torch.ones(()), "zero_point": torch.zeros(()), "bits": 4})), says=("another unit",)),
    Case("ranges that are no JSON", partial(spoiled, "kept/prepared/activation-ranges.json", content(b"{")), code=0,
        says=("cannot be read",), lines=("Warning: ", "reconstruct "), writes=("out.*", "kept/*", "kept/*/*"), cpu_s=20),
]  # fmt: skip


@pytest.mark.parametrize("name", ["kept/reconstruct-0000.pt", "kept/run.json", "kept/prepared/activation-ranges.json"])
def test_a_sound_run_keeps_what_the_cases_spoil(name: str) -> None:
    assert name in finished()


@rows(CASES)
def test_checkpoints(case: Case, hostile: Hostile) -> None:
    hostile(case)
