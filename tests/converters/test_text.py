"""Words of messages."""

from __future__ import annotations

import pytest

from mrecg_onnx.converters.text import counted, with_article


@pytest.mark.parametrize(
    "said",
    [
        "an int",
        "an object",
        "an ndarray",
        "an Add",
        "an Upsample",
        "a uint8",
        "a Unique",
        "a tuple",
        "a str",
        "a NoneType",
    ],
)
def test_a_word_has_the_article_that_it_is_spoken_with(said: str) -> None:
    assert with_article(said.split()[1]) == said


def test_one_thing_is_no_several() -> None:
    assert [counted(count, "cell") for count in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
