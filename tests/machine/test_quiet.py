"""What C code writes is kept away while it is asked for, and only then."""

from __future__ import annotations

import os

import pytest

from mrecg_onnx.machine import silent


@pytest.mark.parametrize("descriptor", [1, 2])
def test_one_stream_is_silent_for_as_long_as_asked_and_errors_pass(
    descriptor: int, capfd: pytest.CaptureFixture[str]
) -> None:
    other = 3 - descriptor
    os.write(descriptor, b"before ")

    @silent(descriptor)
    def within() -> None:
        os.write(descriptor, b"within ")
        os.write(other, b"other")
        raise ValueError("passes")

    with pytest.raises(ValueError, match="passes"):
        within()
    os.write(descriptor, b"behind")
    found = capfd.readouterr()
    assert (found.out, found.err)[descriptor - 1] == "before behind"
    assert (found.out, found.err)[other - 1] == "other"
