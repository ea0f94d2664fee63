"""Which changes of the float graph are made, as a user chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import OneOf, SettingsGroup

__all__ = ["RewritingSettings"]


@dataclass(frozen=True, kw_only=True)
class RewritingSettings(SettingsGroup):
    """What is rewritten.

    Attributes:
        equalize: "auto" or "off".
        relu6: "auto": equalization may turn a Relu6 into an upper bound for each channel where that lowers the error of the
            output; "off".
        absorb: "auto": what a channel never falls below moves into the biases behind it where that lowers it; "off".
        channel_bits: "auto": ``aciq`` gives channels of weights and activations widths of their own, "weights": of weights only;
            "off": every channel has the tensor's width.
    """

    equalize: Annotated[str, OneOf("auto", "off")] = "auto"
    relu6: Annotated[str, OneOf("auto", "off")] = "off"
    absorb: Annotated[str, OneOf("auto", "off")] = "off"
    channel_bits: Annotated[str, OneOf("auto", "weights", "off")] = "auto"
