"""Groups of settings: what fields say they take is checked, and bases' rules with their own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from mrecg_onnx.converters.choices import AtLeast, Between, OneOf, SettingsGroup
from mrecg_onnx.converters.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Ground(SettingsGroup):
    word: Annotated[str, OneOf("a", "b")] = "a"
    limit: Annotated[int | None, AtLeast(1)] = None
    free: int = -1

    def check(self) -> None:
        super().check()
        if self.free == 0:
            raise SettingsError("free is nothing")


@dataclass(frozen=True, kw_only=True)
class Left(Ground):
    share: Annotated[float, Between(0.5, 2.0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Right(Ground):
    def check(self) -> None:
        super().check()
        if self.free == 7:
            raise SettingsError("free is seven")


@dataclass(frozen=True, kw_only=True)
class Both(Left, Right):
    pass


@pytest.mark.parametrize("kind", [Left, Both])
def test_values_that_fields_take(kind):
    assert kind() == kind(word="a", limit=None, free=-1, share=1.0)
    for given in ({"word": "b"}, {"limit": 1}, {"share": 0.5}, {"share": 2.0}, {"free": 10**9}):
        assert dataclasses.replace(kind(), **given) == kind(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"word": "c"}, "word is 'c': choose among a, b"),
        ({"word": None}, "word is None: choose among a, b"),
        ({"limit": 0}, "limit is 0: it must be 1 or more"),
        ({"limit": math.nan}, "limit is nan: it must be 1 or more"),
        ({"share": 0.49}, "share is 0.49: it must lie between 0.5 and 2"),
        ({"share": 2.01}, "share is 2.01: it must lie between 0.5 and 2"),
        ({"share": math.nan}, "share is nan: it must lie between 0.5 and 2"),
        ({"free": 0}, "free is nothing"),
    ],
)
def test_others_are_refused_wherever_the_field_comes_from(given, says):
    for kind in (Left, Both):
        with pytest.raises(SettingsError) as error:
            kind(**given)
        assert str(error.value) == says
        with pytest.raises(SettingsError):
            dataclasses.replace(kind(), **given)


def test_rules_of_every_base_count():
    Left(free=7)
    for kind in (Right, Both):
        with pytest.raises(SettingsError, match="free is seven"):
            kind(free=7)


def test_fields_go_by_keyword():
    with pytest.raises(TypeError):
        Left("b")


def test_a_group_prints_as_it_would_be_written() -> None:
    for group in (Left(), Left(word="b", limit=3), Left(share=0.5)):
        assert eval(repr(group)) == group
    assert repr(Left(limit=3, free=-1)) == "Left(limit=3)"


def test_the_command_lines_word_leaves_a_number_to_the_run() -> None:
    assert Left(limit="auto").limit is None  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="free is 'auto': it must be a number"):
        Left(free="auto")  # type: ignore[arg-type]
