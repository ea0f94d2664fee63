"""The collector of garbage is the host program's: as it was, after whatever happens."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest

from mrecg_onnx.converters.garbage import collecting_seldom

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(650, 7, 8)
    yield
    gc.set_threshold(*before)


def test_the_threshold_is_raised_and_comes_back() -> None:
    with collecting_seldom():
        assert gc.get_threshold()[0] > 100_000
        assert gc.isenabled()
        with collecting_seldom():
            pass
        assert gc.get_threshold()[0] > 100_000
    assert gc.get_threshold() == (650, 7, 8)


def test_it_comes_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="anything"), collecting_seldom():
        raise ValueError("anything")
    assert gc.get_threshold() == (650, 7, 8)


@pytest.mark.parametrize("first", [0, 10_000_000])
def test_a_host_that_collects_less_is_left_alone(first: int) -> None:
    gc.set_threshold(first, 7, 8)
    with collecting_seldom():
        assert gc.get_threshold() == (first, 7, 8)
    assert gc.get_threshold() == (first, 7, 8)


def test_threads_that_end_in_any_order() -> None:
    entered, go = threading.Event(), threading.Event()

    def other() -> None:
        with collecting_seldom():
            entered.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with collecting_seldom():
        thread.start()
        assert entered.wait(10)
    assert gc.get_threshold()[0] > 100_000  # the other is still in
    go.set()
    thread.join(10)
    assert gc.get_threshold() == (650, 7, 8)
