"""Sizes in bytes are shown in the unit asked for and read in every unit that people write."""

from __future__ import annotations

import pytest

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import byte_size, parse_byte_size


def test_sizes_are_shown_in_powers_of_1000_and_of_1024() -> None:
    assert byte_size(2_345_000_000, "GB") == "2.35 GB"
    assert byte_size(1_800_000, "MB", 4) == "1.8000 MB"
    assert byte_size(123_456_789, "MB", 0) == "123 MB"
    assert byte_size(3 << 20, "MiB") == "3.00 MiB"
    assert byte_size(1536, "KiB", 1) == "1.5 KiB"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 gib", 3 * 2**29),
        ("800M", 8 * 10**8),
        ("1.8 MB", 1_800_000),
        ("2g", 2 * 10**9),
        ("512MiB", 512 << 20),
        (" 1KIB ", 1024),
        ("1T", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_byte_size("--memory", text) == count


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "2XB", "1.GB", "2 G B"])
def test_what_is_no_size_names_the_option(text: str) -> None:
    with pytest.raises(SettingsError, match=f"--memory '{text}': expected a size such as 2GB or 1.8MB"):
        parse_byte_size("--memory", text)


def test_a_size_beyond_all_numbers_is_none_and_not_shown_whole() -> None:
    with pytest.raises(SettingsError, match="expected a size such as"):
        parse_byte_size("--memory", "9" * 400 + "TB")
