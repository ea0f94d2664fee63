"""What an export hands on: the file, and what of it is in integers."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

__all__ = ["Exported"]


@dataclass
class Exported:
    """The written model and what could not be kept in integers.

    Attributes:
        model: quantized model.
        float_biases: layers whose bias did not fit int32.
        integer_layers: node names of layers with quantized input, weight and output, by op type.
        integer_ops: node names of other ops between quantizers, by op type.
        codes: by quantizer, the tensors that hold its codes: behind QuantizeLinear, and behind what bounds them.
        float_layers: all other layers of the model, by node name, with the reason.
    """

    model: onnx.ModelProto
    float_biases: list[str] = field(default_factory=list)
    integer_layers: dict[str, list[str]] = field(default_factory=dict)
    integer_ops: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)
