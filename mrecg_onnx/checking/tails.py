"""The whole file of a model that was cut: what lies behind the quantized part is put there again, and the file is run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ExportError, ModelError
from mrecg_onnx.running import fixed_batch, open_session, pad_batch, run_outputs
from mrecg_onnx.writing import Contained, runnable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mrecg_onnx.planning import Tail

__all__ = ["completed"]


def completed(held: Contained, tail: Tail | None, data: Mapping[str, Tensor]) -> Contained:
    """``held`` with the tail behind it, which has been run on one image; ``held`` itself where there is none.

    Args:
        held: the quantized part, for its target and in its container.
        tail: what lies behind.
        data: images by input name, [N, ...] on the CPU.

    Raises:
        ExportError: the tail is not there in the opset of the file, or ONNX Runtime refuses the whole.
    """
    if tail is None:
        return held
    model = tail.behind(held.model)
    try:
        session = open_session(runnable(model))
        if all(value.name in data for value in session.get_inputs()):  # others are settings of what lies behind
            size = fixed_batch(session) or 1
            run_outputs(session, {name: pad_batch(x[:1].numpy(), size) for name, x in data.items()})
    except ModelError as error:
        raise ExportError(f"ONNX Runtime refuses the file with what lies behind the quantized part: {error}") from error
    return dataclasses.replace(held, model=model)
