"""What a run may use of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import AtLeast, Between, OneOf, SettingsGroup
from mrecg_onnx.converters.deadline import LIMIT_S

__all__ = ["MOST_THREADS", "MachineSettings"]

#: Threads that a run may ask for: every one has a stack, and no machine computes faster with more.
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class MachineSettings(SettingsGroup):
    """Where a run computes and what it takes for it.

    Attributes:
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of torch, None for its default.
        timeout: seconds that one call of ONNX Runtime may take: a Loop of the model may go on for ever.
        memory: bytes that the process should stay within, None for half of what is free; activations that do not fit go
            to temporary files.
        compile: use kernels that torch.compile makes: "on", "off", or "auto", on a GPU in runs long enough to earn their
            making (on the CPU they were measured to bring nothing).
    """

    device: Annotated[str, OneOf("auto", "cpu", "cuda")] = "auto"
    threads: Annotated[int | None, Between(1, MOST_THREADS)] = None
    timeout: Annotated[float, Between(0.001, 10**7)] = LIMIT_S
    memory: Annotated[int | None, AtLeast(1)] = None
    compile: Annotated[str, OneOf("auto", "on", "off")] = "auto"
