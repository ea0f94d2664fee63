"""Sizes in bytes are shown with three digits and read in every unit that people write."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import byte_size, parse_byte_size


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (322_860, "323 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_800_000, "1.80 MB"),
        (13_964_571, "14.0 MB"),
        (123_456_789, "123 MB"),
        (2_346_000_000, "2.35 GB"),
    ],
)
def test_sizes_have_three_digits_and_powers_of_1000(count: int, said: str) -> None:
    assert byte_size(count) == said


def test_more_digits_may_be_asked_for() -> None:
    assert byte_size(1_796_312, 4) == "1.796 MB"
    assert byte_size(12_346, 4) == "12.35 kB"
    assert byte_size(345_678, 4) == "345.7 kB"


@example(1001, 4)  # as floats 1.001 times 1000 is less
@given(st.integers(0, 10**14), st.integers(3, 4))
def test_a_bound_that_is_shown_is_large_enough_and_hardly_larger(count: int, digits: int) -> None:
    shown = parse_byte_size("--memory", byte_size(count, digits, up=True))
    assert count <= shown <= count * (1 + 10 ** (1 - digits))


@given(st.integers(0, 10**14))
def test_what_is_shown_is_read(count: int) -> None:
    assert parse_byte_size("--memory", byte_size(count)) == pytest.approx(count, rel=5.1e-3)


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
        ("1.8 kB", 1800),
        ("36 bytes", 36),
        ("36B", 36),
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
