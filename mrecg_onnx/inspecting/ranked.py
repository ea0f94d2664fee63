"""What :func:`mrecg_onnx.sensitivity` found: layers and tensors in order, and suggestions with what each brings back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.results import Pictured
from mrecg_onnx.converters.text import counted
from mrecg_onnx.inspecting.suggesting import under
from mrecg_onnx.machine import plain_zero, points

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from mrecg_onnx.measures import Metric
    from mrecg_onnx.settings import Settings

__all__ = ["Quality", "Ranked", "Ranking", "Suggestion"]

#: Layers and tensors, and suggestions, that ``print`` shows.
SHOWN = 5
#: From this p on a difference may be chance.
NOISE_P = 0.05
#: What is said behind such a difference, and of all suggestions together.
NOISE, ALL_THAT_HELP = ", within noise", "all that help"


@dataclass(frozen=True)
class Ranked:
    """Weights of a layer, or a tensor that has a quantizer.

    Attributes:
        name: node name of the layer, or the tensor.
        kind: "weights" or "activations".
        bits: width under the settings.
        layers: the layer, or those that read the tensor; none of one that other ops read alone, or that makes an output.
        losses: task loss (:mod:`mrecg_onnx.measures.task`) by width with this one alone quantized; for a tensor that no layer
            reads only at the width it has: no option gives it another one.
    """

    name: str
    kind: str
    bits: int
    layers: tuple[str, ...]
    losses: dict[int, float]

    @property
    def loss(self) -> float:
        """At the width it has."""
        return self.losses[self.bits]


@dataclass(frozen=True)
class Quality:
    """What a network is worth, all on the same images.

    Attributes:
        top1: share of right answers; None without labels or class scores.
        agreement: share of predictions that are the float network's; None without class scores.
        error: relative L2 error of the outputs (:func:`mrecg_onnx.measures.output_errors.output_error`).
        score: by the metric that was asked for; None without one.
        lower_is_better: that metric counts errors.
    """

    top1: float | None
    agreement: float | None
    error: float
    score: float | None = None
    lower_is_better: bool = False

    @property
    def worth(self) -> float:
        """Grows as the network gets better, by what a user is shown: the metric, top-1, agreement or the outputs' error."""
        if self.score is not None:
            return -self.score if self.lower_is_better else self.score
        first = self.top1 if self.top1 is not None else self.agreement
        return first if first is not None else -self.error

    @property
    def order(self) -> tuple[float, float]:
        """Likewise, and by the error where that is equal."""
        return self.worth, -self.error


@dataclass(frozen=True)
class Suggestion:
    """An option of ``quantize`` and what the network is worth with it, all else as before.

    ``option`` and ``value`` are as on the command line; together they are "--bits" or "--exclude" and its argument. ``p`` is
    McNemar's of what that changes on the images, None where it is no answer that counts. ``ranks`` are the places in
    :attr:`Ranking.ranked`, from 1, of what it is for: weights of a layer and what it alone reads may have the same.
    """

    option: str
    value: str
    quality: Quality
    p: float | None = None
    ranks: tuple[int, ...] = ()

    @property
    def is_noise(self) -> bool:
        """What it brings may be chance: as few answers change by it."""
        return self.p is not None and self.p >= NOISE_P


@dataclass(frozen=True, repr=False)
class Ranking(Pictured):
    """What :func:`sensitivity` found.

    Attributes:
        settings: what the network was quantized for.
        images: how many the qualities were measured on.
        labelled: they have labels, which are classes.
        float_quality: the float network.
        quality: quantized as the settings say.
        ranked: the most sensitive first.
        suggestions: for the first of them, each alone; what brings back most comes first. None where nothing is lost.
        together: all suggestions at once that bring something back alone; None where there are none.
        skipped: images that could not be read, with the reason.
        metric: what suggestions are measured by; None for top-1, or agreement.
        targets: the images have what a metric holds outputs against; False without a metric.
        available: images that there were to choose from; None where nobody knows.
        helpful: options and values of the suggestions that help alone, all of which :attr:`together` has.
        together_p: McNemar's p of what they change together, None where it is no answer that counts.
        source: the float model, as it was given; not in :meth:`to_json`.
        warnings: what makes the figures doubtful, a sentence each.
    """

    settings: Settings
    images: int
    labelled: bool
    float_quality: Quality
    quality: Quality
    ranked: tuple[Ranked, ...]
    suggestions: tuple[Suggestion, ...]
    together: Quality | None
    skipped: tuple[str, ...] = ()
    metric: Metric | None = None
    targets: bool = False
    available: int | None = None
    helpful: tuple[tuple[str, str], ...] = ()
    together_p: float | None = None
    source: onnx.ModelProto | str | Path | None = field(default=None, repr=False, compare=False)
    warnings: tuple[str, ...] = ()

    @property
    def helps(self) -> bool:
        """Suggestions that help alone help together, too; where they do not, what they bring may be the noise of few images."""
        return self.together is not None and self.together.worth > self.quality.worth

    @property
    def is_noise(self) -> bool:
        """What all of them bring together may be chance: as few answers change by it."""
        return self.together_p is not None and self.together_p >= NOISE_P

    @property
    def all_that_help(self) -> Settings:
        """:attr:`settings` with every suggestion that helps, for :func:`mrecg_onnx.quantize`; as they are where nothing helps."""
        return under(self.settings, self.helpful) if self.helps else self.settings

    @property
    def nothing_lost(self) -> bool:
        """The quantized network is worth as much as the float one on these images, or more."""
        return self.quality.worth >= self.float_quality.worth

    def __str__(self) -> str:
        """What the network is worth, the most sensitive layers and tensors, and what helps most."""
        widths = f"W{self.settings.wbits}A{self.settings.abits}"
        lines = [f"{widths} rounded to nearest on {counted(self.images, 'image')}: {self._worth(self.quality)}"]
        lines += [
            f"{i}. {r.name} ({r.kind}, {r.bits} bits): loss {plain_zero(r.loss, '.2g')}"
            for i, r in enumerate(self.ranked[:SHOWN], 1)
        ]
        if len(self.ranked) > SHOWN:
            lines.append(f"and {len(self.ranked) - SHOWN} more")
        for one in self.suggestions[:SHOWN]:
            wanted = f"for {', '.join(map(str, one.ranks))}: " if one.ranks else ""
            lines.append(f"{wanted}{one.option} '{one.value}': {self._worth(one.quality)}{NOISE * one.is_noise}")
        if self.helps and self.together is not None:
            better = self.all_that_help
            fields = {"bits": [rule.text for rule in better.bits], "exclude": list(better.exclude)}
            said = ", ".join(f"{name}={value}" for name, value in fields.items() if value)
            noise = NOISE * self.is_noise
            lines.append(
                f"all that help: {self._worth(self.together)}{noise}: Settings(..., {said}), which is .all_that_help"
            )
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _worth(self, quality: Quality) -> str:
        return " ".join(self.figure(quality))

    def figure(self, quality: Quality) -> tuple[str, str]:
        """What a quality is counted by (the metric, "top-1", "agreement" or "output error"), and its figure."""
        if self.metric is not None and quality.score is not None:
            every = (self.float_quality, self.quality, *(s.quality for s in self.suggestions), self.together)
            return self.metric.name, self.metric.text(quality.score, (q.score for q in every if q is not None))
        for name, share in (("top-1", quality.top1), ("agreement", quality.agreement)):
            if share is not None:
                return name, f"{share:.2%}"
        return "output error", f"{quality.error:.4f}"

    def gain(self, after: Quality) -> str:
        """What ``after`` has more than :attr:`quality`, with its sign."""
        before = self.quality
        if self.metric is not None and before.score is not None and after.score is not None:
            return self.metric.change(before.score, after.score)
        for one, other in ((before.top1, after.top1), (before.agreement, after.agreement)):
            if one is not None and other is not None:
                return points(other - one)
        return plain_zero(before.error - after.error, "+.4f")

    def tried(self) -> list[tuple[str, str, Quality, str]]:
        """Rows of a table of suggestions: ranks, option, what the network is worth with it, and what that brings back.

        The last one has all that help, where they help together; its option is not one to be copied.
        """
        found = [
            (
                ", ".join(map(str, s.ranks)),
                f"{s.option} '{s.value}'",
                s.quality,
                self.gain(s.quality) + NOISE * s.is_noise,
            )
            for s in self.suggestions
        ]
        if self.helps and self.together is not None:
            found.append(("", ALL_THAT_HELP, self.together, self.gain(self.together) + NOISE * self.is_noise))
        return found

    @property
    def noise(self) -> str:
        """What the mark of noise means, where a suggestion or all together have it."""
        if not any(one.is_noise for one in self.suggestions) and not (self.helps and self.is_noise):
            return ""
        return f"what few answers change by may be chance (McNemar's p is {NOISE_P:.2f} or more) on {self.these}"

    @property
    def these(self) -> str:
        """The images, and how there are more."""
        if self.available is None or self.available <= self.images:
            return f"these {self.images} images"
        return f"these {self.images} of {self.available} images: --limit takes more"

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        metric = self.metric.to_json() if self.metric is not None else None
        plain = dataclasses.asdict(dataclasses.replace(self, metric=None, source=None)) | {
            "settings": self.settings.to_json(),
            "metric": metric,
        }
        del plain["source"]
        for entry in plain["ranked"]:
            entry["losses"] = {str(width): loss for width, loss in entry["losses"].items()}
        return plain
