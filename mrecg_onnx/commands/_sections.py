"""Options by the sections of the help pages, with the defaults of :class:`mrecg_onnx.Settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click
import cloup
from click.shell_completion import CompletionItem

from mrecg_onnx.commands._completion import offering
from mrecg_onnx.commands._console import alone_on_stdout
from mrecg_onnx.commands._help import Context
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
    "Steps",
    "all_but",
    "all_of",
    "option",
]

#: Sections of the help pages, in their order.
SECTIONS = IMAGES, BITS, METHOD, EXPERT = tuple(map(cloup.OptionGroup, ("Images", "Bits", "Method", "For experts")))
#: The section of options that are in none of those: cloup lists it last.
RUN = None

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = Settings()
FIELDS = frozenset(field.name for field in dataclasses.fields(Settings)) - {"bits", "exclude", "preprocess"}
"""Fields of the settings that a parameter of the same name gives; the other three take several words."""


class Choice(click.Choice):  # type: ignore[type-arg]
    """A word among others; a wrong one is answered with the one that is most like it."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """What there is, and what may have been meant."""
        said = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return said + did_you_mean(value, map(str, self.choices))


class Steps(click.ParamType):  # type: ignore[type-arg]
    """A number of steps, "off" (0) or "auto" (None)."""

    name = "steps"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words."""
        return offering(("auto", "off"))(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number that ``value`` means."""
        words = {"auto": None, "off": 0}
        if value in words:
            return words[value]
        try:
            return int(value)
        except ValueError:
            self.fail(f"'{value}' is not a number of steps, auto or off", param, ctx)


class Command(cloup.Command):
    """A command whose help page has the sections that its options are in, always in one order."""

    context_class = Context

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any) -> None:
        # A group of cloup's holds the options of the command that was made last (findings/cloup_group_of_two_commands.sh): each
        # command has groups of its own.
        own = {section: cloup.OptionGroup(section.title) for section in SECTIONS}
        for parameter in params or ():
            if isinstance(parameter, cloup.Option) and parameter.group is not None:
                parameter.group = own[parameter.group]
        super().__init__(*args, params=params, **kwargs)
        self.option_groups.sort(key=list(own.values()).index)

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - click's signature
        """The first sentence, whole: lists of commands have lines enough."""
        return super().get_short_help_str(len(self.help or ""))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a system gives none with a zero byte, a host may, and no path can hold one."""
        if any("\0" in text for text in args):
            raise click.UsageError("an argument holds a zero byte, which nothing takes", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Do the work; stdout is left to JSON where that was asked for."""
        with alone_on_stdout(ctx):
            return super().invoke(ctx)


def option(section: cloup.OptionGroup | None, *names: str, **kwargs: Any) -> Callable[[F], F]:
    """An option of a section, or of none; its default is the one of the settings' field of the same name, if there is one."""
    field = names[-1].lstrip("-").replace("-", "_")
    if field in FIELDS:
        kwargs.setdefault("default", getattr(_DEFAULTS, field))
        kwargs.setdefault("show_default", kwargs["default"] is not None)
    return cloup.option(*names, group=section, **kwargs)


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
