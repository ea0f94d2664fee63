"""What a shell offers for the value of an option: words, paths, or lists of words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

__all__ = ["listed", "offering", "path_or", "providers", "runtimes_known"]

#: The words, or what finds them when a shell asks.
Words: TypeAlias = Iterable[str] | Callable[[], Iterable[str]]
Offer: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def providers() -> Iterable[str]:
    """Where ONNX Runtime runs files."""
    from mrecg_onnx.running import PROVIDERS

    return PROVIDERS


def runtimes_known() -> Iterable[str]:
    """Short names of the runtimes that files are opened in."""
    from mrecg_onnx.running import RUNTIMES

    return RUNTIMES


def _beginning(words: Words, begun: str) -> list[str]:
    return [word for word in (words() if callable(words) else words) if word.lower().startswith(begun.lower())]


def offering(words: Words) -> Offer:
    """Words that begin as what was typed."""
    return lambda _ctx, _param, begun: [CompletionItem(word) for word in _beginning(words, begun)]


def path_or(words: Words) -> Offer:
    """The same, and paths where no word begins so: bash shows no path beside a word."""

    def offer(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in _beginning(words, begun)]
        return found or [CompletionItem(begun, type="file")]

    return offer


def listed(words: Words) -> Offer:
    """Words with commas between them: what may stand behind the last comma, which is not there already."""

    def offer(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        before, comma, last = begun.rpartition(",")
        there = set(before.split(","))
        return [CompletionItem(f"{before}{comma}{word}") for word in _beginning(words, last) if word not in there]

    return offer
