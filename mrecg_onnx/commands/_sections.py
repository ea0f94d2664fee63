"""Options by the sections of the help pages, with the defaults of :class:`mrecg_onnx.Settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mrecg_onnx.converters.text import did_you_mean
from mrecg_onnx.settings import Settings

__all__ = [
    "BITS",
    "EXPERT",
    "FIELDS",
    "IMAGES",
    "METHOD",
    "RUN",
    "Choice",
    "Command",
    "F",
    "Option",
    "Steps",
    "all_but",
    "all_of",
    "option",
]

#: Sections of the help pages, in their order.
SECTIONS = IMAGES, BITS, METHOD, RUN, EXPERT = "Images", "Bits", "Method", "Run", "For experts"

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = Settings()
FIELDS = frozenset(field.name for field in dataclasses.fields(Settings)) - {"bits", "exclude", "preprocess"}
"""Fields of the settings that a parameter of the same name gives; the other three take several words."""


class Option(click.Option):
    """An option that the help page lists under ``section``."""

    def __init__(self, *args: Any, section: str = RUN, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Choice(click.Choice):  # type: ignore[type-arg]
    """A word among others; a wrong one is answered with the one that is most like it."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """What there is, and what may have been meant."""
        said = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return said + did_you_mean(value, map(str, self.choices))


class Steps(click.ParamType):  # type: ignore[type-arg]
    """A number of steps, "off" (0) or "auto" (None)."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number that ``value`` means."""
        words = {"auto": None, "off": 0}
        if value in words:
            return words[value]
        try:
            return int(value)
        except ValueError:
            self.fail(f"'{value}' is not a number of steps, auto or off", param, ctx)


class Command(click.Command):
    """A command whose help page has a section for each name that its options carry."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a system gives none with a zero byte, a host may, and no path can hold one."""
        if any("\0" in text for text in args):
            raise click.UsageError("an argument holds a zero byte, which nothing takes", ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", RUN), []).append(record)
        for name in sorted(sections, key=SECTIONS.index):
            with formatter.section(name):
                formatter.write_dl(sections[name])


def option(section: str, *names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option of a section; its default is the one of the settings' field of the same name, if there is one."""
    field = names[-1].lstrip("-").replace("-", "_")
    if field in FIELDS:
        kwargs.setdefault("default", getattr(_DEFAULTS, field))
        kwargs.setdefault("show_default", kwargs["default"] is not None)
    return click.option(*names, cls=Option, section=section, **kwargs)


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator of several, in reading order."""

    def decorate(function: F) -> F:
        for decorator in reversed(options):
            function = decorator(function)
        return function

    return decorate


def all_but(options: Callable[[F], F], *names: str) -> Callable[[F], F]:
    """``options`` without the parameters called ``names``: a command may have its own in their place."""

    def decorate(function: F) -> F:
        before = list(getattr(function, "__click_params__", []))
        function = options(function)
        made = [p for p in function.__click_params__ if p not in before]  # type: ignore[attr-defined]
        function.__click_params__ = before + [p for p in made if p.name not in names]  # type: ignore[attr-defined]
        return function

    return decorate
