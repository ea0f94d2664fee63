"""What is freed stays with the process, but for what the user has set."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from mrecg_onnx.machine import cache
from mrecg_onnx.machine.cache import KEEPING, KEPT_AT_ONCE, KEPT_FREED, TIGHT_AT_ONCE, TIGHT_FREED, keep_freed

#: Page faults of a hundred times three tensors of 16 MB, made together.
ROUNDS, PAGES = 100, 3 * (16 << 20) // 4096
FAULTS = f"""
import resource, torch
from mrecg_onnx.machine.cache import keep_freed
keep_freed(1 << 32)
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
three = lambda: (torch.ones(1 << 22), torch.ones(1 << 22), torch.ones(1 << 22))
three(), three()
before = count()
for _ in range({ROUNDS}): three()
print(count() - before)
"""


class Library:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.told.append((option, value))
        return 1


@pytest.fixture
def library(monkeypatch) -> Library:
    found = Library()
    monkeypatch.setattr(cache.ctypes, "CDLL", lambda _: found)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_both_limits_are_set(library):
    keep_freed(1 << 32)
    assert library.told == [(-3, KEPT_AT_ONCE), (-1, KEPT_FREED)]


def test_little_is_kept_of_little(library):
    keep_freed(KEEPING - 1)
    assert library.told == [(-3, TIGHT_AT_ONCE), (-1, TIGHT_FREED)]


def test_who_has_set_them_is_left_alone(library, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    keep_freed(1 << 32)
    assert not library.told


def test_another_library_of_c_is_no_error(library, monkeypatch):
    monkeypatch.delattr(Library, "mallopt")
    keep_freed(1 << 32)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_large_tensors_are_not_made_of_new_pages():
    """Without it they are in many processes: it depends on what else lies in the heap. Pages may be larger than 4 KB."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < ROUNDS * PAGES / 20
