"""What is imported is no garbage; what is made later is."""

from __future__ import annotations

import gc

import pytest

from mrecg_onnx.commands._loading import loading


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_waits_and_goes_on_without_what_was_imported():
    gc.unfreeze()
    with loading():
        assert not gc.isenabled()
        held = [[] for _ in range(5)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(held)
    assert not any(found is held[0] for found in gc.get_objects())


def test_it_goes_on_where_an_import_fails():
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_one_that_waited_before_waits_on():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
