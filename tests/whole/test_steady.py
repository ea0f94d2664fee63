"""A process that quantizes again and again holds what it held: no file, no thread, no memory is left behind by a run."""

from __future__ import annotations

import gc
import linecache
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from helpers.command_line import classifier, write_images
from helpers.scarce import cache_nothing

from mrecg_onnx import Settings, quantize, validate
from mrecg_onnx.machine import give_back

METHODS = ("nearest", "brecq", "adaround", "mrecg", "lapq")


@dataclass
class Here:
    """A model, images, and an empty temporary folder."""

    folder: Path
    temporary: Path

    def run(self, number: int) -> None:
        """Quantize by one of the methods, with or without a cache on disk and a checkpoint, and validate."""
        settings = Settings(
            method=METHODS[number % len(METHODS)],
            wbits=4,
            abits=4,
            iters=2,
            batch_size=8,
            threads=1,
            lapq_evaluations=10,
        )
        kept = self.folder / f"kept{number}" if number % 3 else None
        output, images = self.folder / "out.onnx", self.folder / "images"
        with pytest.MonkeyPatch.context() as patched:
            if number % 2:
                cache_nothing(patched)
            quantize(self.folder / "model.onnx", images, settings, output=output, checkpoint=kept)
        validate(self.folder / "model.onnx", output, images, threads=1, repeats=0)

    def held(self) -> dict[str, int]:
        """Descriptors and threads of this process, files in its temporary folder."""
        gc.collect()
        time.sleep(0.05)  # threads of sessions that are gone end
        process = psutil.Process()
        return {
            "threads": process.num_threads(),
            "descriptors": process.num_fds(),
            # torch makes an empty folder for its compiler when that is imported.
            "temporary files": sum(not path.name.startswith("torchinductor") for path in self.temporary.rglob("*")),
        }


@pytest.fixture
def here(tmp_path, monkeypatch) -> Here:
    onnx.save(classifier(), tmp_path / "model.onnx")
    write_images(tmp_path / "images", 24)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return Here(tmp_path, temporary)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="the system does not count open files")
def test_threads_files_and_descriptors_stay_as_many(here):
    for number in range(len(METHODS)):  # libraries open and start what they keep
        here.run(number)
    before = here.held()
    assert before["temporary files"] == 0
    for number in range(5):
        here.run(number)
        assert here.held() == before


@pytest.mark.slow
def test_objects_stay_as_many(here):
    def objects() -> Counter[str]:
        gc.collect()
        return Counter(f"{type(one)}" for one in gc.get_objects())

    def sources() -> set[str]:
        return {name for name in linecache.cache if name.startswith("<")}

    for _ in range(2):
        here.run(0)
    before, texts = objects(), sources()
    for _ in range(5):
        here.run(0)
    grown = {kind: more for kind, more in (objects() - before).items() if more >= 5}
    assert not grown, "one or more a run"
    assert sources() == texts


@pytest.mark.slow
def test_memory_stays_as_much(here):
    for number in range(10):
        here.run(number)
    held = []
    for number in range(30):
        here.run(number)
        gc.collect()
        give_back()
        held.append(psutil.Process().memory_info().rss / 1e6)
    slope = float(np.polyfit(range(len(held)), held, 1)[0])
    assert slope < 0.3, f"{slope:.2f} MB a run: {held}"
