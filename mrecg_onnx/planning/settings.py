"""Widths and budgets of them, what stays in float, and how units are merged, as a user chooses them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mrecg_onnx.converters.choices import AtLeast, Between, OneOf, SettingsGroup, require_number
from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.converters.text import bounded, did_you_mean, quoted
from mrecg_onnx.methods import MethodSettings
from mrecg_onnx.planning.plan import FLOAT_BITS, WIDE_BITS
from mrecg_onnx.targets import TargetSettings, load_target

__all__ = ["BitRule", "BitSettings", "BudgetSettings", "MergeSettings", "PlanSettings"]

_BITS = re.compile(r"^(?:W(?P<w>\d+))?(?:A(?P<a>\d+))?$", re.IGNORECASE)


@dataclass(frozen=True)
class BitRule:
    """Widths for the layers whose node name matches ``pattern`` (``re.search``); None leaves a width as it is."""

    pattern: str
    wbits: int | None
    abits: int | None

    @classmethod
    def parse(cls, text: str) -> BitRule:
        """Read ``REGEX=W4A8``, ``REGEX=W8`` or ``REGEX=A8``.

        Raises:
            SettingsError: the text has another form, or a width is not in 2..8 (or 16, of activations).
        """
        pattern, _, widths = text.rpartition("=")
        match = _BITS.match(widths)
        if not pattern or match is None or not widths:
            raise SettingsError(f"--bits {quoted(text)}: expected REGEX=W4A8, REGEX=W8 or REGEX=A8")
        w, a = (int(g) if g else None for g in (match["w"], match["a"]))
        for width, wide in ((w, None), (a, WIDE_BITS)):
            if width is not None and not 2 <= width <= 8 and width != wide:
                raise SettingsError(f"--bits {quoted(text)}: widths go from 2 to 8 (activations have {WIDE_BITS}, too)")
        return cls(pattern, w, a)

    @property
    def text(self) -> str:
        """What :meth:`parse` reads."""
        widths = "".join(
            f"{letter}{bits}" for letter, bits in (("W", self.wbits), ("A", self.abits)) if bits is not None
        )
        return f"{self.pattern}={widths}"


def _several(value: object, kind: type) -> tuple[Any, ...] | None:
    """One or several of ``kind``, or words for them, as a tuple; None where it is something else."""
    several = (value,) if isinstance(value, str | kind) else value
    fits = isinstance(several, tuple | list) and all(isinstance(one, str | kind) for one in several)
    return tuple(several) if fits and isinstance(several, tuple | list) else None


@dataclass(frozen=True, kw_only=True)
class BitSettings(TargetSettings):
    """Widths, within what the target takes.

    Attributes:
        wbits: weight width, 2..8.
        abits: activation width, 2..8, 16 where the target has it, or 32 to leave activations in float.
        first_last_bits: width of the first and the last weighted layers and of their inputs.
        exclude: a regular expression, or several; matching nodes stay in float. One that matches no name of a node is looked
            for among the modules that torch wrote beside them.
        bits: widths of single layers: rules, or the command line's words for them, ``"head=W8A8"``; one or several.
        residual: "wide": tensors that low-bit layers share with additions keep 8 bits, the layers read a copy of their
            own width; "shared": one quantizer of the layers' width for all, as in the papers.
        protect: number of activation tensors raised to 8 bits, the most sensitive first.
        symmetric_weights: weights have signed codes around zero point 0 at every width, -2^(b-1)..2^(b-1)-1 (of 8 bits, which are
            symmetric anyway, -127..127); None: where the target asks for it.
    """

    wbits: Annotated[int, Between(2, 8)] = 4
    abits: int = 4
    first_last_bits: Annotated[int, Between(2, 8)] = 8
    exclude: tuple[str, ...] = ()
    bits: tuple[BitRule, ...] = ()
    residual: Annotated[str, OneOf("wide", "shared")] = "wide"
    protect: Annotated[int, AtLeast(0)] = 0
    symmetric_weights: bool | None = None

    @property
    def weights_symmetric(self) -> bool:
        """:attr:`symmetric_weights`, or what the target says."""
        asked = self.symmetric_weights
        return load_target(self.target).weights == "symmetric" if asked is None else asked

    def check(self) -> None:
        """Widths exist and the target takes them; patterns are regular expressions."""
        super().check()
        bits, exclude = _several(self.bits, BitRule), _several(self.exclude, str)
        if bits is None:
            raise SettingsError(
                f"bits is {bounded(repr(self.bits), 80)}: it takes widths of single layers, bits='conv1=W8A8' or a list of such; "
                "widths of all layers are wbits and abits"
            )
        if exclude is None:
            raise SettingsError(
                f"exclude is {bounded(repr(self.exclude), 80)}: it takes regular expressions, exclude='conv1' or a list of such"
            )
        rules_given = tuple(BitRule.parse(rule) if isinstance(rule, str) else rule for rule in bits)
        object.__setattr__(self, "bits", rules_given)
        object.__setattr__(self, "exclude", exclude)
        require_number("abits", self.abits)
        if self.abits not in {WIDE_BITS, FLOAT_BITS} and not 2 <= self.abits <= 8:
            raise SettingsError(
                f"abits is {self.abits}: it must lie between 2 and 8, or be {WIDE_BITS}, or {FLOAT_BITS} for float activations"
            )
        rules = load_target(self.target)
        rules.check_widths(self.wbits, 32, "--wbits")
        rules.check_widths(32, self.abits, "--abits")
        rules.check_widths(self.first_last_bits, self.first_last_bits, "--first-last-bits")
        for rule in self.bits:
            rules.check_widths(rule.wbits or 32, rule.abits or 32, f"--bits '{rule.pattern}'")
        patterns = [("--exclude", pattern) for pattern in self.exclude] + [
            ("--bits", rule.pattern) for rule in self.bits
        ]
        for option, pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise SettingsError(
                    f"{option}: {quoted(pattern)} is not a regular expression: {first_line(error)}; a part of the name will do"
                ) from error


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(BitSettings):
    """Widths that are not given but chosen within a budget (:mod:`mrecg_onnx.widths`).

    Attributes:
        allocate: "milp": integer programming gives every layer its own widths, ``wbits`` and ``abits`` on average; "none".
        size_budget: bytes of the file with packed codes within which every layer's weights get widths of their own, None without.
        avg_wbits: the same, bits a weight on average, the first and the last layer not counted.
        max_drop: the same, by as few bits as lose at most so many points of top-1 on ONNX Runtime (without labels: percent of
            predictions that change).
    """

    allocate: Annotated[str, OneOf("none", "milp")] = "none"
    size_budget: Annotated[int | None, AtLeast(1)] = None
    avg_wbits: Annotated[float | None, Between(2.0, 8.0)] = None
    max_drop: Annotated[float | None, Between(0.0, 100.0)] = None

    @property
    def mixed(self) -> bool:
        """Layers get weight widths of their own."""
        budgets = (self.size_budget, self.avg_wbits, self.max_drop)
        return self.allocate == "milp" or any(value is not None for value in budgets)

    @property
    def widths(self) -> str:
        """``W4A8``, for people."""
        return "mixed widths" if self.mixed else f"W{self.wbits}A{self.abits}"

    def check(self) -> None:
        """One budget at most, and averages that integer programming can reach."""
        super().check()
        given = [n for n in ("size_budget", "avg_wbits", "max_drop") if getattr(self, n) is not None]
        if len(given) > 1:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(f"{options} are budgets of the same bits: give one of them")
        if self.allocate == "milp" and self.abits == WIDE_BITS:
            raise SettingsError(
                f"--allocate milp chooses among 2 to 8 bits, which cannot be {WIDE_BITS} on average: use a budget"
            )


@dataclass(frozen=True, kw_only=True)
class MergeSettings(SettingsGroup):
    """How ``mrecg`` merges units (docs/method.md 4).

    Attributes:
        scheme: "loss", "modcap", "none" or the path of a JSON file.
        selection: "peak" (signed rule), "eq4" (literal top-k objective) or "relative" (the same on relative differences).
        merges: number of merges k, None for the rule of :mod:`mrecg_onnx.planning.granularity`.
        penalty: lambda of Eq. 4, None for a hard limit at k.
        alpha: stride correction of the module capacity, Eq. 3.
    """

    scheme: str = "loss"
    selection: Annotated[str, OneOf("peak", "eq4", "relative")] = "peak"
    merges: Annotated[int | None, AtLeast(0)] = None
    penalty: Annotated[float | None, AtLeast(0.0)] = None
    alpha: Annotated[float, AtLeast(0.0)] = 1.6

    @property
    def scheme_file(self) -> bool:
        """The scheme is a file's."""
        return self.scheme not in {"loss", "modcap", "none"}

    def check(self) -> None:
        """The scheme is a word or a file."""
        super().check()
        if self.scheme_file and not Path(self.scheme).is_file():
            hint = did_you_mean(self.scheme, ("loss", "modcap", "none"))
            raise SettingsError(f"scheme '{self.scheme}' is neither loss, modcap, none nor an existing JSON file{hint}")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(MethodSettings, MergeSettings, BitSettings):
    """All that a plan depends on."""
